"""A reader process: takes sample refs, decodes into slots, says when it is done. Started by `ring.py`, never by hand.

It ends when its end of the pipe closes, so it never outlives the trainer, however that ends. It ignores the signals
that a terminal or SLURM sends to the whole job: whether to go on is the trainer's decision.
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
"""Asks the kernel for a signal when the thread that started this process ends (prctl(2))."""


class WorkerSetup(NamedTuple):
    """What a worker is told first."""

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
    """Where in the batch this part begins."""
    longest: int
    """Width of the batch's tokens."""


class Done(NamedTuple):
    """A task that is finished."""

    slot: int
    first: int
    faults: list[str]
    samples: list[Any]
    seconds: Seconds


def main(descriptor: int, by_main_thread: bool) -> None:
    """Serve tasks until the pipe closes. Started by the main thread it is also killed with it."""
    if by_main_thread and sys.platform == "linux":  # one that is stopped sees no pipe close
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    connection = Connection(descriptor)
    tasks: SimpleQueue[Any] = SimpleQueue()
    threading.Thread(target=_receive, args=(connection, tasks), daemon=True).start()
    try:
        start: WorkerSetup = _next(tasks, connection)
        memory = mmap.mmap(start.memory, 0, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)  # no page faults later
        gc.freeze()  # what was imported lives as long as the process: no need to look at it again and again
        while True:
            waiting = time.perf_counter()
            task: ReadTask = _next(tasks, connection)
            idle = time.perf_counter() - waiting
            whole = slot_batch(memory, task.slot, start.spec, task.samples, task.longest)
            part = part_of(whole, slice(task.first, task.first + len(task.refs.shard)))
            try:
                start.reader.fill(task.refs, part)
            except ValueError as error:  # the user's to mend: told by the trainer, not here
                connection.send(error)
                return
            seconds = part.seconds._replace(idle=idle)
            connection.send(Done(task.slot, task.first, part.faults, part.samples, seconds))
    except (BrokenPipeError, ConnectionResetError):
        return  # the trainer is gone, or has closed the ring


def _receive(connection: Connection, tasks: "SimpleQueue[Any]") -> None:
    """Take in what the trainer sends, and leave when it is gone, whatever is still being read or sent."""
    while True:
        try:
            tasks.put(connection.recv())
        except (EOFError, ConnectionResetError):
            os._exit(0)
        except Exception as error:  # whatever it takes to make the trainer's decoder again
            tasks.put(
                ValueError(
                    f"a reader process cannot take over its work ({type(error).__name__}: {error}); what it is to "
                    "decode with has to lie in a module that can be imported, or take data.workers=0"
                )
            )


def _next(tasks: "SimpleQueue[Any]", connection: Connection) -> Any:
    """The next thing the trainer sent; one that could not be taken in is told, and the end."""
    if isinstance(sent := tasks.get(), ValueError):
        connection.send(sent)
        sys.exit()
    return sent
