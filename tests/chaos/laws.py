"""What must hold whatever happened: each law returns what breaks it, one line each, nothing if it holds."""

import json
import os
import re
import time
from collections.abc import Collection, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import genre_dist
from genre_dist.catalogue.catalogue import read_rows
from genre_dist.lock import FILE as LOCK

PACKAGE = Path(genre_dist.__file__).parent
EXIT_CODES = (0, 1, 2, 70, 75)  # README, "When something goes wrong"; torchrun makes 1 of each but 0
LEAVE_SECONDS = 10.0
"""For so long processes may outlive the command that started them."""
MEASURED = re.compile(r"second|hour|wait|memory|mfu|curves|beside|fetched_at|^sha256$")
"""Fields that tell how long something took, or when it was, and a file's checksum over them."""
DURATION = re.compile(r"(?<![\d.])\d+(\.\d+)? (s|min|h)\b")
"""Within a sentence, the same: an answer that quotes how long a training took."""
RENDERED = re.compile(r"\.html$|\.md$|journal\.jsonl$")
"""Files that only have to be there: what they say is compared elsewhere, or tells times in between."""
OWN = re.compile(rf"(^|/)({re.escape(LOCK)}|exit_code|metrics-lost-\d+\.jsonl|\.fetch/lock)$")
"""Files that tell of earlier starts: the last one's lock and end, rows of steps that no checkpoint held."""
CHECKPOINT = re.compile(r"checkpoints/step-\d+/(\.metadata|COMPLETE|facts\.json|__\d+_\d+\.distcp)$")
"""A checkpoint's files: which steps are saved depends on when a run was stopped, its last weights do not."""


def same_result(out: Path, expected: dict[str, Any]) -> list[str]:
    """Every file as in the undisturbed run's folder: none missing, none too many, every sample and step once."""
    found = contents(out)
    missing = [f"{name} is missing" for name in expected.keys() - found.keys()]
    left = [f"{name} is left behind" for name in found.keys() - expected.keys()]
    differing = [
        f"{name} differs{_where(found[name], expected[name])}"
        for name in found.keys() & expected.keys()
        if found[name] != expected[name]
    ]
    return sorted(missing) + sorted(left) + sorted(differing)


def contents(folder: Path) -> dict[str, Any]:
    """Name -> what is in the file, without what differs between two undisturbed runs; empty folders too."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            if not any(path.iterdir()):
                found[f"{name}/"] = "an empty folder"
        elif not OWN.search(name) and not CHECKPOINT.search(name):
            found[name] = _content(path, name, folder)
    return found


def _content(path: Path, name: str, folder: Path) -> Any:
    if RENDERED.search(name):
        return "there"
    if path.name == "movies.parquet":
        return [_unmeasured(row) for row in read_rows(path.parent)]
    data = path.read_bytes().replace(str(folder).encode(), b"OUT")
    if path.suffix == ".jsonl":
        return [_unmeasured(json.loads(line)) for line in data.splitlines()]
    return _unmeasured(json.loads(data)) if path.suffix == ".json" else data


def _unmeasured(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _unmeasured(value) for key, value in content.items() if not MEASURED.search(key)}
    if isinstance(content, list):
        return [_unmeasured(value) for value in content]
    return DURATION.sub("some time", content) if isinstance(content, str) else content


def _where(found: Any, expected: Any) -> str:
    """Where two contents part: the first row or field, and its two values."""
    if isinstance(found, list) and isinstance(expected, list):
        if len(found) != len(expected):
            return f": {len(found)} rows for {len(expected)}"
        at = next(at for at in range(len(found)) if found[at] != expected[at])
        return f"[{at}]{_where(found[at], expected[at])}"
    if isinstance(found, dict) and isinstance(expected, dict):
        key = min(key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key))
        return f".{key}{_where(found.get(key), expected.get(key))}"
    if isinstance(found, bytes):
        return f": {len(found)} bytes for {len(expected)}"
    return f": {found!r} for {expected!r}"


def nothing_runs(mark: bytes) -> list[str]:
    """No process of the command is left, readers and those in sessions of their own included."""
    ends = time.monotonic() + LEAVE_SECONDS
    while (left := list(marked(mark))) and time.monotonic() < ends:
        time.sleep(0.05)
    return [f"process {pid} still runs: {command_of(pid)[:120]}" for pid in left]


def marked(mark: bytes) -> Iterator[int]:
    """The living processes that inherited this entry of the environment."""
    for folder in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        if int(folder.name) != os.getpid() and mark in environment_of(int(folder.name)):
            yield int(folder.name)


def environment_of(pid: int) -> list[bytes]:
    """The environment that a process was started with; empty for one that is gone."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def ended_as_promised(code: int, said: str, allowed: Collection[int], error_expected: bool) -> list[str]:
    """A documented exit code, and an error of ours in one line, never a traceback through our code."""
    broken = [] if code in allowed else [f"it ended with {code}: {_last_line(said)}"]
    broken += [f"a traceback of ours: {error}" for error in tracebacks(said)]
    if error_expected and code != 0 and not re.search(r"^error: .", said, re.M):
        broken.append(f"it ended with {code} without a line that begins with `error: `")
    return broken


def hang_is_named(said: str, target: str, pid: int) -> list[str]:
    """A rank that waited for one that stands still says so; a reader that stands still is named by its process."""
    if target == "reader":
        return [] if re.search(rf"reader.*\b{pid}\b", said) else [f"nobody named the stopped reader, process {pid}"]
    return [] if re.search(r"\[rank \d+ of 2\] no collective finished", said) else ["no rank said that it waited"]


def tracebacks(said: str) -> list[str]:
    """The errors of tracebacks through this package, and where; launchers' own are theirs."""
    errors = []
    for block in re.sub(r"^\[rank\d+\]: ?", "", said, flags=re.M).split("Traceback (most recent call last):\n")[1:]:
        frames = list(takewhile(lambda line: line.startswith(" "), block.splitlines()))
        if ours := [line for line in frames if f'File "{PACKAGE}/' in line]:
            error = block.splitlines()[len(frames) : len(frames) + 1]
            errors.append(f"{' '.join(error)} ({ours[-1].strip()})".replace(f"{PACKAGE.parent}/", "")[:300])
    return errors


def _last_line(said: str) -> str:
    return next((line for line in reversed(said.splitlines()) if line.strip()), "it said nothing")[:200]
