"""The cache of remote blocks: bounded, shared, right whatever happens to its folder, and never in the way."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from genre_dist.stream import cache as cache_module
from genre_dist.stream.cache import BLOCK_BYTES, BlockCache


class Usage(NamedTuple):
    free: int


def test_a_full_cache_lets_the_oldest_blocks_go_and_stays_within_its_limit(tmp_path: Path) -> None:
    cache, limit = BlockCache(tmp_path, 10 * BLOCK_BYTES), 10 * BLOCK_BYTES
    data = os.urandom(40 * BLOCK_BYTES + 77)
    asked: list[int] = []

    def fetch(start: int, end: int) -> bytes:
        asked.append(start // BLOCK_BYTES)
        return data[start:end]

    for start in range(0, len(data), BLOCK_BYTES // 2):
        end = min(start + BLOCK_BYTES, len(data))
        assert cache.read("shard", start, end, len(data), fetch) == data[start:end]
        cache.read("shard", 0, 10, len(data), fetch)  # in use all the time
        assert sum(path.stat().st_size for path in tmp_path.glob("blocks/*/*")) <= limit
    assert asked == list(range(41)), "a block in use is never asked for again"


def test_readers_killed_at_any_moment_leave_a_cache_that_works(tmp_path: Path) -> None:
    program = (
        "import sys, itertools\nfrom pathlib import Path\nfrom genre_dist.stream.cache import BlockCache\n"
        "cache = BlockCache(Path(sys.argv[1]), 3 << 20)\nprint('go', flush=True)\n"
        "for n in itertools.count():\n"
        "    cache.read('shard', n % 9 << 20, (n % 9 << 20) + 5, 9 << 20, lambda a, b: bytes([a >> 20]) * (b - a))\n"
    )
    for _ in range(2):
        pair = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE) for _ in "ab"]
        for process in pair:
            assert process.stdout
            assert process.stdout.readline() == b"go\n"
            threading.Event().wait(0.05)
        for process in pair:
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert process.stdout
            process.stdout.close()
    cache = BlockCache(tmp_path, 3 << 20)
    for number in range(9):
        found = cache.read("shard", number << 20, number + 1 << 20, 9 << 20, lambda a, b: bytes([a >> 20]) * (b - a))
        assert found == bytes([number]) * BLOCK_BYTES
    assert sum(path.stat().st_size for path in tmp_path.glob("blocks/*/*")) <= 3 << 20


@pytest.mark.parametrize(
    "damage",
    [
        lambda block: block[:50],
        lambda block: b"",
        lambda block: b"y" + block[1:],
        lambda block: block + b"more",
        lambda block: b"z" * 100,  # as an earlier version wrote it
    ],
)
def test_a_damaged_block_is_asked_for_again(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    cache = BlockCache(tmp_path, 1 << 30)
    assert cache.read("shard", 0, 9, 100, lambda a, b: b"x" * (b - a)) == b"x" * 9
    block = next(tmp_path.glob("blocks/shard/*"))
    block.write_bytes(damage(block.read_bytes()))
    for _ in range(2):
        assert cache.read("shard", 60, 70, 100, lambda a, b: b"y" * (b - a)) == b"y" * 10
    assert cache.read("shard", 60, 70, 100, lambda a, b: b"z" * (b - a)) == b"y" * 10


def test_a_block_in_the_place_of_another_is_asked_for_again(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 1 << 30)
    cache.read("one", 0, 9, 9, lambda a, b: b"one" * 3)
    cache.read("two", 0, 9, 9, lambda a, b: b"two" * 3)
    shutil.copy(tmp_path / "blocks/one/000000", tmp_path / "blocks/two/000000")
    assert cache.read("two", 0, 9, 9, lambda a, b: b"two" * 3) == b"two" * 3


@pytest.mark.parametrize("written", ["", "abc", "-5", "9" * 400, "1.5", "\x00\x00", "٣", "12 34"])
def test_a_damaged_count_is_made_again(tmp_path: Path, written: str) -> None:
    cache = BlockCache(tmp_path, 3 * (BLOCK_BYTES + 4))
    for number in range(9):
        (tmp_path / "locks").mkdir(exist_ok=True)
        (tmp_path / "locks" / "used").write_text(written)
        assert cache.read(str(number), 0, 5, 1 << 20, lambda a, b: bytes(b - a)) == bytes(5)
    assert sum(path.stat().st_size for path in tmp_path.glob("blocks/*/*")) <= cache.limit


def read_twice(cache: BlockCache, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Three blocks read two times: how often they were asked for, and what was said."""
    data, asked = os.urandom(3 * BLOCK_BYTES), []

    def fetch(start: int, end: int) -> bytes:
        asked.append(start)
        return data[start:end]

    cache_module._say_once.cache_clear()
    for _ in range(2):
        assert cache.read("key", 7, len(data) - 7, len(data), fetch) == data[7:-7]
    return len(asked), capsys.readouterr().err


def test_a_disk_that_is_full_costs_the_cache_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = BlockCache(tmp_path, 1 << 40)
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda path: Usage(1 << 20))
    asked, said = read_twice(cache, capsys)
    assert asked == 6
    assert said.splitlines() == [
        f"{tmp_path}: the disk has less room than the cache's 1099.51 GB; it keeps less",
        f"{tmp_path}: the cache takes no more blocks (No space left on device); reading on",
    ]


def test_a_write_that_fails_is_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = BlockCache(tmp_path, 1 << 30)
    cache.read("before", 0, 5, 5, lambda a, b: b"12345")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        asked, said = read_twice(cache, capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert asked == 6
    assert said == f"{tmp_path}: the cache takes no more blocks (File too large); reading on\n"
    assert (tmp_path / "locks" / "used").read_text() == "9"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file() and path.parent.name != "locks"] == ["000000"]
    assert read_twice(cache, capsys) == (3, "")


def test_a_disk_that_is_smaller_than_the_cache_may_be_keeps_what_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    room = cache_module.SPARE_BYTES + 5 * BLOCK_BYTES

    def usage(path: Path) -> Usage:
        return Usage(room - sum(block.stat().st_size for block in tmp_path.glob("blocks/*/*")))

    monkeypatch.setattr(cache_module.shutil, "disk_usage", usage)
    cache = BlockCache(tmp_path, 1 << 40)
    cache_module._say_once.cache_clear()
    for number in range(20):
        cache.read(str(number), 0, BLOCK_BYTES, BLOCK_BYTES, lambda a, b: bytes(b - a))
        assert usage(tmp_path).free >= cache_module.SPARE_BYTES
    assert len(list(tmp_path.glob("blocks/*/*"))) == 4
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("kind", ["a file", "a file in it", "no right to write"])
def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = BlockCache(tmp_path / "cache", 1 << 40)
    if kind == "a file":
        cache.folder.touch()
    elif kind == "a file in it":
        cache.folder.mkdir()
        (cache.folder / "locks").touch()
    else:
        cache.folder.symlink_to("/proc/self")
    asked, said = read_twice(cache, capsys)
    assert asked == 6
    assert said.count("\n") == 1
    assert said.startswith(f"{cache.folder}: the cache cannot be used (")


def test_what_a_cache_holds_that_can_only_be_read_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = BlockCache(tmp_path, 1 << 40)
    cache.read("key", 0, 5, 5, lambda a, b: b"12345")

    def refuse(*arguments: object, **named: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(cache_module.os, "utime", refuse)
    monkeypatch.setattr(cache_module.fcntl, "flock", refuse)
    assert cache.read("key", 0, 5, 5, lambda a, b: b"wrong") == b"12345"
    assert cache.read("other", 0, 5, 5, lambda a, b: b"right") == b"right"


def test_an_error_of_the_server_is_no_error_of_the_cache(tmp_path: Path) -> None:
    def fetch(start: int, end: int) -> bytes:
        raise FileNotFoundError("x.tar is not there")

    with pytest.raises(FileNotFoundError, match=r"x\.tar is not there"):
        BlockCache(tmp_path, 1 << 30).read("key", 0, 5, 5, fetch)
