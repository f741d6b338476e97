"""Packing where files cannot be written: one line, nothing half-written, and the same command goes on later."""

import errno
import os
import subprocess
import tempfile
from functools import partial
from pathlib import Path

import pytest
from test_pack import command, files, temporary

from genre_dist import atomic
from genre_dist.cli import main
from genre_dist.packing import pack as packing
from genre_dist.packing.pack import pack
from genre_dist.storage import any_path

VECTORS = "the 0.1 0.2 0.3\nwizard 0.4 0.5 0.6\n"
WRITTEN = (
    *("vocabulary.txt", "vectors.npy", "train-000000.tar.", "train-000000.index.npy", "train-000001.report.json"),
    *("val-000000.tar.", "manifest.json"),
)


@pytest.fixture
def vectors(tmp_path: Path) -> str:
    (tmp_path / "vectors.txt").write_text(VECTORS)
    return f"--vectors={tmp_path / 'vectors.txt'}"


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_at_any_file_is_one_line_and_the_same_command_goes_on(
    sample_catalogue: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    vectors: str,
    name: str,
    reason: int,
) -> None:
    out, whole = tmp_path / "shards", tmp_path / "whole"
    assert main([*command(sample_catalogue, whole), vectors]) == 0
    fsync = os.fsync

    def full(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.name.startswith(name) and path.parent == out:
            raise OSError(reason, os.strerror(reason))
        fsync(descriptor)

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "fsync", full)
        assert main([*command(sample_catalogue, out), vectors]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"no space left to write {out / name.rstrip('.')}" in line
    assert "run the same command again" in line
    assert temporary(out) == []
    assert not (out / "manifest.json").exists()
    assert main([*command(sample_catalogue, out), vectors]) == 0
    assert files(out) == files(whole)


def test_a_full_disk_leaves_a_finished_folder_as_it_was(
    sample_catalogue: Path, shards_copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(shards_copy)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    assert main(command(sample_catalogue, shards_copy)) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert files(shards_copy) == before


def test_a_full_folder_for_temporary_files_is_named_where_the_shards_are_remote(
    sample_catalogue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(packing, "lay_out", full)
    with pytest.raises(OSError, match=f"no space left to write {tempfile.gettempdir()}"):
        pack(sample_catalogue, any_path("memory://full/shards"), size=16)


def test_a_file_in_the_place_of_the_folder_is_one_line(
    sample_catalogue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "shards").write_bytes(b"a file")
    assert main(command(sample_catalogue, tmp_path / "shards")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "shards") in line
    assert (tmp_path / "shards").read_bytes() == b"a file"


def test_a_place_that_can_only_be_read_is_one_line(
    sample_catalogue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root may mount a disk")
    try:
        assert main(command(sample_catalogue, disk / "shards")) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "Read-only file system" in line
        assert str(disk / "shards") in line
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_packing_process_that_is_killed_for_memory_is_one_line(
    sample_catalogue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genre_dist.workers._end_with_parent", partial(os._exit, 137))
    assert main([*command(sample_catalogue, tmp_path / "shards"), "--workers=2"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "a process was killed at packing" in line
    assert "perhaps for want of memory" in line
    assert temporary(tmp_path / "shards") == []
