"""What the tests of fetch ask of a catalogue and of the server, and how they start the verb in a process of its own."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from acquire_server import KEY, Handle

from genre_dist.catalogue.catalogue import read_rows


def rows_of(catalogue: Path) -> list[dict[str, Any]]:
    """The catalogue without the times, which differ from run to run."""
    return [row | {"fetched_at": None} for row in read_rows(catalogue)]


def contents(catalogue: Path) -> dict[str, bytes]:
    return {str(file.relative_to(catalogue)): file.read_bytes() for file in (catalogue / "posters").rglob("*.jpg")}


def asked_for(server: Handle, pattern: str, forget: bool = False) -> dict[str, int]:
    return {path: n for path, n in server.control(forget=forget)["paths"].items() if re.search(pattern, path)}


def rule(path: str, do: str, times: int, **more: Any) -> dict[str, Any]:
    return {"path": path, "do": do, "times": times, "seconds": 1} | more


def start(server: Handle, out: Path, *options: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "genre_dist.cli", *server.arguments(out), "--years", "1985-2012", "--rate", "0"]
    environment = os.environ | {"TMDB_API_KEY": KEY}
    pipe = subprocess.PIPE
    return subprocess.Popen([*command, *options], stdout=pipe, stderr=pipe, text=True, env=environment)


def wait_for_journal(process: "subprocess.Popen[str]", out: Path, size: int) -> None:
    journal = out / ".fetch" / "journal.jsonl"
    while process.poll() is None and not (journal.exists() and journal.stat().st_size >= size):
        time.sleep(0.002)
