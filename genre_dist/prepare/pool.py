"""Packing shards that are planned, on several processes."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from genre_dist.prepare.report import Report
from genre_dist.prepare.shard import Job, finished, pack_shard
from genre_dist.progress import progress_bar


def pack_all(jobs: list[Job], workers: int) -> list[Report]:
    """Pack what is not finished yet; returns all reports in the order of the jobs."""
    reports = {job.file: report for job in jobs if (report := finished(job))}
    todo = [job for job in jobs if job.file not in reports]
    with progress_bar() as progress:
        task = progress.add_task("packing shards", total=len(jobs), completed=len(reports))
        for job, report in _packed(todo, workers):
            reports[job.file] = report
            progress.advance(task)
    return [reports[job.file] for job in jobs]


def _packed(jobs: list[Job], workers: int) -> Iterator[tuple[Job, Report]]:
    """Shards as they get finished, on several processes if there are several shards."""
    if workers <= 1 or len(jobs) <= 1:
        yield from ((job, pack_shard(job)) for job in jobs)
        return
    # spawn: a fork would copy the locks of whatever threads this process has
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_start_worker) as pool:
        waiting = {pool.submit(pack_shard, job): job for job in jobs}
        try:
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        except BrokenProcessPool:
            raise ValueError(
                f"{jobs[0].out}: a packing process was killed, perhaps for want of memory; the finished shards stay. "
                "Run the same command again, with fewer --workers"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """A worker whose parent was killed ends too; left alone it would go on writing, and then wait for ever.

    Ctrl-C is the parent's to heed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None, "this runs in a worker"

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
