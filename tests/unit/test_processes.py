"""Whether the launcher is still there, and what a rank does when it is not."""

import errno
import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest

from genre_dist.parallel import processes
from genre_dist.parallel.processes import are_there, identity, is_over, launchers

RANK = """
import os, signal, sys, time
from genre_dist.parallel.processes import with_launcher

def end(*_):
    print("saved")
    os.write(int(sys.argv[1]), b"asked to stop")
    os._exit(0)

signal.signal(signal.SIGTERM, end)
with with_launcher():
    os.write(int(sys.argv[1]), b"begun ")
    time.sleep(60)
"""
LAUNCHER = """
import os, subprocess, sys
told, output = int(sys.argv[1]), int(sys.argv[2])
rank = [sys.executable, "-c", sys.argv[3], str(told)]
subprocess.run(rank, stdout=output, stderr=output, pass_fds=[told], env=os.environ | {"RANK": "0"})
"""


@pytest.mark.slow
@pytest.mark.parametrize("pipe", ["without a reader", "full"])
def test_a_rank_whose_output_the_launcher_took_is_asked_to_stop_all_the_same(pipe: str) -> None:
    told, telling = os.pipe()
    reading, output = os.pipe()
    if pipe == "full":
        os.set_blocking(output, False)
        with suppress(BlockingIOError):
            while True:
                os.write(output, bytes(4096))
        os.set_blocking(output, True)
    command = [sys.executable, "-c", LAUNCHER, str(telling), str(output), RANK]
    launcher = subprocess.Popen(command, pass_fds=[telling, output])
    os.close(telling)
    os.close(output)
    try:
        assert os.read(told, 100) == b"begun "
        if pipe == "without a reader":
            os.close(reading)
        launcher.send_signal(signal.SIGKILL)
        assert os.read(told, 100) == b"asked to stop"
    finally:
        launcher.kill()
        launcher.wait()
        os.close(told)


def test_what_cannot_be_seen_for_want_of_descriptors_is_not_taken_for_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    chain, own = [*launchers(), os.getppid()], identity(os.getpid())

    def none_left(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(processes, "_stat", none_left)
    assert are_there([1, *chain])
    assert not is_over(own)
