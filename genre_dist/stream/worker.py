"""A reader process, started by `ring.py`: it receives sample refs, decodes into slots and reports finished tasks.

The process ends when the pipe closes, so it never outlives the trainer, however that ends. It ignores the signals
that a terminal or SLURM sends to the whole job: the trainer decides whether to go on.
"""

import ctypes
import gc
import mmap
import os
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, NamedTuple

from genre_dist.stream.batch import Seconds, SlotSpec, part_of, slot_batch
from genre_dist.stream.reader import Reader
from genre_dist.stream.refs import SampleRefs

PR_SET_PDEATHSIG = 1
"""Requests a signal from the kernel when the thread that started this process ends (prctl(2))."""


class WorkerSetup(NamedTuple):
    """The first message to a worker."""

    reader: Reader
    spec: SlotSpec
    memory: int
    """File descriptor of the slots."""


class ReadTask(NamedTuple):
    """Part of a batch to be read into a slot."""

    slot: int
    refs: SampleRefs
    samples: int
    """Samples of the whole batch."""
    first: int
    """The part's first sample in the batch."""
    longest: int
    """Width of the batch's token array."""


class Done(NamedTuple):
    """Report of a finished task."""

    slot: int
    first: int
    faults: list[str]
    samples: list[Any]
    seconds: Seconds


def main(descriptor: int, by_main_thread: bool) -> None:
    """Serve tasks until the pipe closes. A main thread that started this process takes it down with it."""
    if by_main_thread and sys.platform == "linux":  # a stopped process does not see the pipe close
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    connection = Connection(descriptor)
    tasks: SimpleQueue[Any] = SimpleQueue()
    threading.Thread(target=_receive, args=(connection, tasks), daemon=True).start()
    try:
        start: WorkerSetup = _next(tasks, connection)
        memory = mmap.mmap(start.memory, 0, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)  # no page faults later
        gc.freeze()  # garbage collection need not traverse the imported modules again
        while True:
            waiting = time.perf_counter()
            task: ReadTask = _next(tasks, connection)
            idle = time.perf_counter() - waiting
            batch = slot_batch(memory, task.slot, start.spec, task.samples, task.longest)
            part = part_of(batch, slice(task.first, task.first + len(task.refs.shard)))
            try:
                start.reader.fill(task.refs, part)
            except ValueError as error:  # the trainer reports it to the user
                connection.send(error)
                return
            seconds = part.seconds._replace(idle=idle)
            connection.send(Done(task.slot, task.first, part.faults, part.samples, seconds))
    except (BrokenPipeError, ConnectionResetError):
        return  # the trainer is gone, or has closed the ring


def _receive(connection: Connection, tasks: "SimpleQueue[Any]") -> None:
    """Queue the trainer's messages; exit at once when the trainer is gone."""
    while True:
        try:
            tasks.put(connection.recv())
        except (EOFError, ConnectionResetError):
            os._exit(0)
        except Exception as error:  # unpickling the user's decoder may raise anything
            tasks.put(
                ValueError(
                    f"a reader process cannot take over its work ({type(error).__name__}: {error}); what it is to "
                    "decode with has to lie in a module that can be imported, or take data.workers=0"
                )
            )


def _next(tasks: "SimpleQueue[Any]", connection: Connection) -> Any:
    """The trainer's next message; if it could not be unpickled, report that and exit."""
    if isinstance(sent := tasks.get(), ValueError):
        connection.send(sent)
        sys.exit()
    return sent
