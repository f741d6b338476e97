"""SIGINT and SIGTERM to a fetch: the first asks it to stop, the second ends it at once."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stopping_on_signals(stop: Callable[[str], object]) -> Iterator[None]:
    """Call `stop` with a reason at the first signal, and leave the process at the second, whatever hangs.

    A thread of its own does both: the main thread may be in a wait, or hold the very lock that `stop` needs. Nothing
    changes outside the main thread, where Python does not let signals be handled.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    here, there = socket.socketpair()
    there.setblocking(False)
    before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    earlier = signal.set_wakeup_fd(there.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=_heed, args=(here, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(earlier)
        for number, handler in before.items():
            signal.signal(number, handler)
        there.close()
        thread.join()
        here.close()


def _heed(signals: socket.socket, stop: Callable[[str], object]) -> None:
    seen = 0
    while received := signals.recv(1):
        if received[0] not in SIGNALS:
            continue
        seen += 1
        if seen == 1:
            stop("stopped before the end")
            with suppress(OSError):  # Ctrl-C has ended the program that reads our messages
                print(
                    "stopping: the catalogue is being written; once more to leave at once", file=sys.stderr, flush=True
                )
        else:
            if sys.stderr.isatty():
                os.write(sys.stderr.fileno(), b"\x1b[?25h")  # the cursor that a progress bar hides
            os._exit(128 + received[0])
