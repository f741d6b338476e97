"""A reader process: takes places, decodes into slots, says when it is done. Started by `ring.py`, never by hand.

It ends when its end of the pipe closes, so it never outlives the trainer, however that ends. It ignores the signals
that a terminal or SLURM sends to the whole job: whether to go on is the trainer's decision.
"""

import mmap
import signal
import time
from multiprocessing.connection import Connection
from typing import NamedTuple

from genre_dist.stream.order import Rows
from genre_dist.stream.reader import ShardReader
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
    rows: Rows
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
    seconds: float


def main(descriptor: int) -> None:
    """Serve tasks until the pipe closes."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    connection = Connection(descriptor)
    try:
        start: Start = connection.recv()
        memory = mmap.mmap(start.memory, 0, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)  # no page faults later
        while True:
            task: Task = connection.recv()
            began = time.perf_counter()
            whole = arrays(memory, task.slot, start.room, task.samples, task.longest)
            part = slice(task.first, task.first + len(task.rows.row))
            try:
                faults = start.reader.fill(task.rows, samples_of(whole, part))
            except ValueError as error:  # the user's to mend: told by the trainer, not here
                connection.send(error)
                return
            connection.send(Done(task.slot, task.first, faults, time.perf_counter() - began))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the trainer is gone, or has closed the ring
