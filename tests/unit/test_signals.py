"""Signals to a fetch: the first asks it to stop, the second ends it at once, whatever it hangs in."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from genre_dist.tmdb.signals import stopping_on_signals

HANGS = {
    "a wait": "threading.Event().wait()",
    "threads that are joined": "ThreadPoolExecutor(1).submit(threading.Event().wait).result()",
    "the lock that stop needs": "lock.acquire(); time.sleep(1000)",
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("hang", HANGS)
def test_the_second_signal_ends_at_once_whatever_hangs(number: signal.Signals, hang: str) -> None:
    program = (
        "import threading, time; from concurrent.futures import ThreadPoolExecutor\n"
        "from genre_dist.tmdb.signals import stopping_on_signals\n"
        "lock = threading.Lock()\n"
        "with stopping_on_signals(lambda why: lock.acquire(timeout=0.1)):\n"
        f"    print('ready', flush=True); {HANGS[hang]}\n"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", program], stdout=pipe, stderr=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(number)
            assert process.stderr.readline().startswith("stopping: the catalogue is being written; once more")
            assert process.poll() is None
            process.send_signal(number)
            assert process.wait(timeout=10) == 128 + number
        finally:
            process.kill()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT interrupts; a shell starts its background jobs with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_signals_act_as_before_when_the_fetch_is_over(interruptible: None) -> None:
    reasons: list[str] = []
    stopped = threading.Event()
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with stopping_on_signals(lambda why: (reasons.append(why), stopped.set())):
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopped.wait(10)
    assert reasons == ["stopped before the end"]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert signal.set_wakeup_fd(-1) == -1
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_other_signals_do_not_count() -> None:
    reasons: list[str] = []
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with stopping_on_signals(reasons.append):
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert not reasons
