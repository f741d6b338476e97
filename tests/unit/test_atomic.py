"""Files that are whole or absent, and what killed writers leave behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from genre_dist.atomic import atomic_file, remove_leftovers

KILLED = """
import os, signal, sys
from pathlib import Path
from genre_dist.atomic import atomic_file
with atomic_file(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_the_old_file_and_a_leftover_that_goes(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("old")
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "a.json")], check=False)
    assert len(list(tmp_path.iterdir())) == 2
    assert remove_leftovers(tmp_path) == 1
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.json", "old")]


def test_only_names_of_temporary_files_go(tmp_path: Path) -> None:
    kept = {"a.tmp", ".a.jpg.part", "a.tar", "a.host-1.tmp", "a.host-x-0123abcd.tmp"}
    gone = {
        f"a.tar.host-{os.getppid()}-0123abcd.tmp",  # in a container numbers of processes come again
        f"a.host-{10**30}-0123abcd.tmp",
        "a.tar.other-host.example.org-1-0123abcd.tmp",
        "line\nbreak.other-1-0123abcd.tmp",
        ".movies.parquet.part",  # of older versions
        ".603.jpg.part",
    }
    for name in kept | gone:
        (tmp_path / name).touch()
    assert remove_leftovers(tmp_path) == len(gone)
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_a_folder_that_is_not_there_has_no_leftovers(tmp_path: Path) -> None:
    assert remove_leftovers(tmp_path / "nowhere") == 0


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(TypeError), atomic_file(tmp_path / "a") as file:
        file.write("half")
    assert list(tmp_path.iterdir()) == []
