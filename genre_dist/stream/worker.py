"""A reader process: takes places, decodes into slots, says when it is done. Started by `ring.py`, never by hand.

It ends when its end of the pipe closes, so it never outlives the trainer, however that ends. It ignores the signals
that a terminal or SLURM sends to the whole job: whether to go on is the trainer's decision.
"""

import gc
import mmap
import signal
import time
from multiprocessing.connection import Connection
from typing import NamedTuple

from genre_dist.stream.reader import Found, Seconds, ShardReader
from genre_dist.stream.slots import Room, arrays, samples_of


class Start(NamedTuple):
    """What a worker is told first."""

    reader: ShardReader
    room: Room
    memory: int
    """File descriptor of the slots."""


class Task(NamedTuple):
    """Part of a batch to be read into a slot."""

    slot: int
    found: Found
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
    seconds: Seconds


def main(descriptor: int) -> None:
    """Serve tasks until the pipe closes."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    connection = Connection(descriptor)
    try:
        start: Start = connection.recv()
        memory = mmap.mmap(start.memory, 0, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)  # no page faults later
        gc.freeze()  # what was imported lives as long as the process: no need to look at it again and again
        while True:
            waiting = time.perf_counter()
            task: Task = connection.recv()
            idle = time.perf_counter() - waiting
            whole = arrays(memory, task.slot, start.room, task.samples, task.longest)
            part = slice(task.first, task.first + len(task.found.shard))
            try:
                faults, seconds = start.reader.fill(task.found, samples_of(whole, part))
            except ValueError as error:  # the user's to mend: told by the trainer, not here
                connection.send(error)
                return
            connection.send(Done(task.slot, task.first, faults, seconds._replace(idle=idle)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the trainer is gone, or has closed the ring
