"""One writer a folder of shards: parts share it, and whoever else comes is refused before reading anything."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_pack import command, files

from genre_dist.cli import main
from genre_dist.lock import BusyError
from genre_dist.packing import pack as packing
from genre_dist.packing.pack import merge_parts, pack, pack_all, pack_part

pytestmark = pytest.mark.slow

OPTIONS = {"size": 72, "shard_size": 50}
HOLD = """
import sys
from pathlib import Path
from genre_dist.lock import take
lock = take(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A folder that another process writes, and its number."""
    out = tmp_path / "shards"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield out, holder.pid
        holder.kill()


@pytest.mark.parametrize("more", [(), ("--overwrite",), ("--part=0/2",), ("--merge",)])
def test_a_second_pack_is_refused_within_two_seconds_and_before_it_reads_the_catalogue(
    busy: tuple[Path, int], capsys: pytest.CaptureFixture[str], more: tuple[str, ...]
) -> None:
    out, holder = busy
    began = time.monotonic()
    assert main([*command(out / "no catalogue", out), "--vectors=nowhere.txt", *more]) == 2
    assert time.monotonic() - began < 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{out} is being written by process {holder} on {os.uname().nodename}" in line


def test_a_wrong_option_makes_no_folder(sample_catalogue: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--size"):
        pack(sample_catalogue, tmp_path / "shards", size=0)
    assert not (tmp_path / "shards").exists()


def test_parts_share_the_folder_and_all_others_are_kept_out(
    sample_catalogue: Path, sample_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "shards"
    refused: list[str] = []

    def in_the_middle(*arguments: object) -> object:
        """What happens while part 0 is at work."""
        monkeypatch.setattr(packing, "pack_all", pack_all)
        for work in (
            lambda: pack_part(sample_catalogue, out, (0, 2), **OPTIONS),
            lambda: pack_part(sample_catalogue, out, (2, 2), **OPTIONS),  # the same in the other count
            lambda: pack_part(sample_catalogue, out, (0, 3), **OPTIONS),  # another cut
            lambda: pack(sample_catalogue, out, **OPTIONS),
            lambda: merge_parts(sample_catalogue, out, **OPTIONS),
        ):
            with pytest.raises(BusyError) as error:
                work()
            refused.append(str(error.value))
        pack_part(sample_catalogue, out, (1, 2), **OPTIONS)
        return pack_all(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(packing, "pack_all", in_the_middle)
    pack_part(sample_catalogue, out, (0, 2), **OPTIONS)
    assert [str(os.getpid()) in line for line in refused] == [True] * 5
    merge_parts(sample_catalogue, out, **OPTIONS)
    assert files(out) == files(sample_shards)


def test_a_part_removes_what_it_left_when_it_was_killed_and_nothing_of_others(
    sample_catalogue: Path, sample_shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "shards"
    work = out / ".packing" / "0-of-2"
    (work / "tmpkilled").mkdir(parents=True)
    (work / "tmpkilled" / "0.jsonl").write_text("half")
    mine, theirs = (out / f"train-00000{number}.tar.node-1-0123abcd.tmp" for number in (0, 1))
    for half in (mine, theirs):
        half.write_bytes(b"half")
    pack_part(sample_catalogue, out, (0, 2), **OPTIONS)
    assert [path.name for path in work.iterdir()] == [".lock"]
    assert (mine.exists(), theirs.exists()) == (False, True)
    pack_part(sample_catalogue, out, (1, 2), **OPTIONS)
    merge_parts(sample_catalogue, out, **OPTIONS)
    assert files(out) == files(sample_shards)


def test_the_lock_of_a_folder_disturbs_no_other_verb(shards_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shards_copy / ".lock").write_text("1 node 2026-01-01T00:00:00+0000 -\n")
    assert main(["inspect", str(shards_copy), "--verify"]) == 0
    before = files(shards_copy)
    assert main(["index", str(shards_copy)]) == 0
    assert files(shards_copy) == before


@pytest.mark.parametrize("name", ["1-of-0", "x-of-y", "1-of-99999999999999999999", "a-of-2", "-of-"])
def test_marks_that_are_none_are_no_part(sample_catalogue: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "shards"
    pack_part(sample_catalogue, out, (0, 2), **OPTIONS)
    (out / ".packing" / name).mkdir()
    with pytest.raises(ValueError, match=r"--part 1/2, or one pack without --part"):
        merge_parts(sample_catalogue, out, **OPTIONS)
