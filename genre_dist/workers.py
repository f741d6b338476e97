"""Work that is shared out to processes, which end when their parent does."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def usable_cores() -> int:
    """How many cores this process may use, which under SLURM or taskset are fewer than the machine has."""
    return len(os.sched_getaffinity(0))


def in_processes(
    work: Callable[[Job], Result], jobs: Sequence[Job], workers: int, doing: str
) -> Iterator[tuple[Job, Result]]:
    """Jobs with what `work`, a function at the top of a module, made of them, as they get finished.

    They are done here if there is one job or one worker. Raises what `work` raises, or ValueError if a process was
    killed; `doing` says at what.
    """
    if workers <= 1 or len(jobs) <= 1:
        yield from ((job, work(job)) for job in jobs)
        return
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool

    spawn = multiprocessing.get_context("spawn")  # a fork would copy the locks of whatever threads this process has
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_end_with_parent) as pool:
        waiting = {pool.submit(work, job): job for job in jobs}
        try:
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        except BrokenProcessPool:
            raise ValueError(
                f"a process was killed at {doing}, perhaps for want of memory; what is finished stays. Run the same "
                "command again, with fewer --workers"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """A worker whose parent was killed ends too: it would go on writing, and then wait for ever.

    Ctrl-C is the parent's to heed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None, "this runs in a worker"

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
