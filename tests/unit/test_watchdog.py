"""How a rank ends whose watchdog has spoken, and one that fails by itself; each a process of its own."""

import os
import subprocess
import sys
import time
from contextlib import suppress

import pytest
import torch.distributed as dist

from genre_dist.parallel.watchdog import HUNG, _comes_from_others

pytestmark = pytest.mark.slow

START = """
import threading, time
from genre_dist.parallel.watchdog import Watchdog
spoken = threading.Event()
report = Watchdog._report
Watchdog._report = lambda self, idle: (report(self, idle), spoken.set())
"""


def rank(body: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", START + body], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("meets", ["raise RuntimeError('Connection closed by peer')", "raise SystemExit(2)", "pass"])
def test_once_it_has_spoken_the_rank_ends_with_its_code_whatever_the_main_thread_meets(meets: str) -> None:
    done = rank(f"Watchdog(0, 2, seconds=0.4)\nspoken.wait()\n{meets}")
    assert done.returncode == HUNG
    assert "[rank 0 of 2] no collective finished" in done.stderr


def test_a_rank_that_fails_by_itself_ends_at_once_with_its_own_code() -> None:
    began = time.monotonic()
    done = rank("Watchdog(0, 2, seconds=600)\nraise SystemExit(2)")
    assert done.returncode == 2
    assert time.monotonic() - began < 30
    assert done.stderr == ""


def test_only_errors_of_connections_between_ranks_come_from_others() -> None:
    assert _comes_from_others(RuntimeError("[gloo] Connection closed by peer"))
    assert _comes_from_others(dist.DistNetworkError("no answer"))
    assert not _comes_from_others(ValueError("/data/igloo/train-000000.tar is damaged"))
    assert not _comes_from_others(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_a_watchdog_that_is_closed_says_nothing_and_keeps_nobody() -> None:
    done = rank("dog = Watchdog(0, 2, seconds=0.4)\ndog.close()\nassert not spoken.wait(1.5)")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_full_pipe_that_nobody_reads_keeps_no_rank() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(4096))
    os.set_blocking(writing, True)
    child = subprocess.Popen(
        [sys.executable, "-c", START + "Watchdog(0, 2, seconds=0.4)\nspoken.wait()"], stderr=writing
    )
    try:
        assert child.wait(30) == HUNG
    finally:
        child.kill()
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("lack", ["tempfile.tempdir = '/nowhere'", "os.close(2)"])
def test_without_a_folder_for_temporary_files_or_stderr_a_rank_ends_with_the_same_code(lack: str) -> None:
    assert rank(f"import os, tempfile\n{lack}\nWatchdog(0, 2, seconds=0.4)\nspoken.wait()").returncode == HUNG


def test_what_may_take_longer_is_not_taken_for_a_hang_and_progress_meanwhile_does_not_shorten_it() -> None:
    done = rank(
        "dog = Watchdog(0, 2, seconds=0.4)\ndog.allow(1.5)\ndog.progress()\nbegan = time.monotonic()\n"
        "spoken.wait()\nprint(time.monotonic() - began, flush=True)"
    )
    assert done.returncode == HUNG
    assert float(done.stdout) >= 1.9
