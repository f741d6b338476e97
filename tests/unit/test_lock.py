"""One writer a folder: who comes second is refused in one line, and any death of the first lets go."""

import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from genre_dist.lock import BusyError, one_writer, refuse_if_busy, take

HOLD = """
import sys
from pathlib import Path
from genre_dist.lock import take
lock = take(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()
    with suppress(BrokenPipeError):
        process.stdin.close()


def test_a_second_writer_is_refused_in_one_line_that_names_host_and_process(tmp_path, holder):
    began = time.monotonic()
    with pytest.raises(
        BusyError, match=rf"^{tmp_path} is being written by process {holder.pid} on {os.uname().nodename} .*"
    ):
        take(tmp_path)
    assert time.monotonic() - began < 2


def test_a_killed_writer_lets_go(tmp_path, holder):
    holder.kill()
    take(tmp_path).release()


def test_a_writer_that_is_just_ending_is_waited_for(tmp_path, holder):
    holder.stdin.close()  # it ends when it has noticed
    take(tmp_path).release()


def test_a_copy_of_a_locked_folder_is_free(tmp_path, holder):
    copy = tmp_path.with_name("copy")
    shutil.copytree(tmp_path, copy)
    take(copy).release()


def test_ranks_of_one_run_share_and_the_next_start_waits_for_the_last_of_them(tmp_path):
    first = take(tmp_path)
    first.share()
    second = take(tmp_path, shared=True)
    first.release()
    with pytest.raises(BusyError):
        take(tmp_path)
    second.release()
    take(tmp_path).release()


def test_children_do_not_inherit_the_lock(tmp_path):
    with one_writer(tmp_path):
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    take(tmp_path).release()
    child.communicate()


def test_the_other_ranks_of_a_second_start_are_refused_too(tmp_path, holder, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another launch")
    with pytest.raises(BusyError, match=str(holder.pid)):
        refuse_if_busy(tmp_path)


def test_the_other_ranks_of_the_same_start_go_on(tmp_path, monkeypatch):
    monkeypatch.setenv("MASTER_PORT", "29500")
    with one_writer(tmp_path):
        refuse_if_busy(tmp_path)
    refuse_if_busy(tmp_path)
    refuse_if_busy(tmp_path / "not there yet")


def test_a_folder_that_was_made_in_vain_goes_again(tmp_path):
    with one_writer(tmp_path / "new" / "folder"):
        pass
    assert not (tmp_path / "new").exists()
    with one_writer(tmp_path / "used" / "folder"):
        (tmp_path / "used" / "folder" / "result").touch()
    with one_writer(tmp_path / "used" / "folder"):  # it was there
        (tmp_path / "used" / "folder" / "result").unlink()
    assert (tmp_path / "used" / "folder").is_dir()


def test_a_remote_place_has_no_lock():
    from genre_dist.storage import any_path

    with one_writer(any_path("memory://shards")):
        pass
