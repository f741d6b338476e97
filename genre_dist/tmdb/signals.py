"""SIGINT and SIGTERM during a fetch: the first signal asks it to stop, the second ends it at once."""

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
    """Call `stop` with a reason at the first signal, and exit at the second, even if the process hangs.

    A separate thread does both: the main thread may be waiting, or hold the very lock that `stop` needs. Outside the
    main thread this does nothing, as Python handles signals only there.
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
            with suppress(OSError):  # Ctrl-C may have ended the reader of stderr
                print(
                    "stopping: the catalogue is being written; once more to leave at once", file=sys.stderr, flush=True
                )
        else:
            if sys.stderr.isatty():
                os.write(sys.stderr.fileno(), b"\x1b[?25h")  # the cursor that a progress bar hides
            os._exit(128 + received[0])
