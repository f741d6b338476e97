"""Pools of threads, or of processes that end with their parent."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

Item = TypeVar("Item")
Result = TypeVar("Result")


def usable_cores() -> int:
    """The number of cores this process may use; SLURM and taskset give it fewer than the machine has."""
    return len(os.sched_getaffinity(0))


def in_processes(
    work: Callable[[Item], Result], jobs: Sequence[Item], workers: int, doing: str
) -> Iterator[tuple[Item, Result]]:
    """Pairs of a job and its result, as they finish; `work` is a function at the top of a module.

    One job, or one worker, runs in this process. Raises what `work` raises, or ValueError if a process was killed, with
    `doing` in its message.
    """
    if workers <= 1 or len(jobs) <= 1:
        yield from ((job, work(job)) for job in jobs)
        return
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    spawn = multiprocessing.get_context("spawn")  # a fork would copy locks that other threads of this process hold
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_end_with_parent) as pool:
        try:
            for job, future in outcomes(pool, work, jobs, 2 * workers, in_order=False):
                yield job, future.result()
        except BrokenProcessPool:
            raise ValueError(
                f"a process was killed at {doing}, perhaps for want of memory; what is finished stays. Run the same "
                "command again, with fewer --workers"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def outcomes(
    pool: "Executor", work: Callable[[Item], Result], items: Iterable[Item], in_flight: int, in_order: bool
) -> Iterator[tuple[Item, "Future[Result]"]]:
    """Pairs of an item and its finished future from a pool, `in_flight` at a time, in order or as they finish.

    Items are taken only as others finish, so neither items nor results pile up in memory.
    """
    from concurrent.futures import FIRST_COMPLETED, wait  # reader processes of local tars start faster without this

    running: dict[Future[Result], Item] = {}
    source = iter(items)
    while True:
        for item in islice(source, in_flight - len(running)):
            running[pool.submit(work, item)] = item
        if not running:
            return
        first = [next(iter(running))] if in_order else running
        for future in wait(first, return_when=FIRST_COMPLETED).done:
            yield running.pop(future), future


def _end_with_parent() -> None:
    """End this worker when its parent was killed: it would go on writing, and then wait for ever.

    Workers ignore Ctrl-C, which the parent handles.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None, "this runs in a worker"

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
