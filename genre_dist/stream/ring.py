"""Prefetching: worker processes decode batches into a ring of shared slots.

Only small messages cross the pipes: the samples to read into a slot, and the report that a part is done. A batch is a
view of its slot, without a copy. At most `slots` batches exist at a time: a batch's slot is reused once `hold` later
batches have been requested.

    trainer                      worker 0            worker 1
      task(slot 3, samples 0-31) -->
      task(slot 3, samples 32-63)  ------------------>
      <-- done(slot 3, 0)        decodes in place
      <-- done(slot 3, 32)                           decodes in place
      yields the batch in slot 3
"""

import mmap
import os
import select
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

from genre_dist.stream.batch import Batch, Seconds, anonymous_file, private_memory, slot_batch
from genre_dist.stream.reader import Reader
from genre_dist.stream.refs import SampleRefs
from genre_dist.stream.worker import Done, ReadTask, WorkerSetup

SLOW_READER_SECONDS, STOPPED_READER_SECONDS = 60, 3
"""Seconds of waiting after which a line names a slow reader process, and a stopped one."""
Pin = Callable[[mmap.mmap], Callable[[], None]]
"""Pins memory for background copies to a device; returns the function that undoes it."""
Waiting = Callable[[int], None]
"""Called about once a second with the seconds waited for readers; may raise to give up."""


def no_limit(seconds: int) -> None:
    """Wait for readers without a limit."""


def batches(
    reader: Reader,
    refs: Iterable[SampleRefs],
    *,
    samples: int,
    workers: int,
    prefetch: int = 2,
    hold: int = 1,
    pin: Pin | None = None,
    waiting: Waiting = no_limit,
) -> Generator[Batch, None, None]:
    """The batches of these refs, in this order, each of at most `samples` samples.

    A batch stays valid until `hold` later ones have been requested and its `copied` event, if set, is done. With
    workers=0 this process reads each batch on request, with the same bytes.

    Raises ValueError for unreadable shards (a missing index), ChildProcessError if a worker dies.
    """
    if workers == 0 or reader.in_process:
        yield from _read_in_process(reader, refs, samples, hold, pin)
        return
    ring = Ring(reader, samples, hold + prefetch, workers, pin, waiting)
    try:
        yield from ring.run(iter(refs), hold)
    finally:
        ring.close()


def _read_in_process(
    reader: Reader, refs: Iterable[SampleRefs], samples: int, hold: int, pin: Pin | None
) -> Generator[Batch, None, None]:
    """Read each batch on request, into a released slot: fresh memory would have to be paged in."""
    spec = reader.slot_spec(samples)
    memory = private_memory(hold, spec)
    unpin = pin(memory) if pin is not None else None
    held: deque[Batch] = deque()
    try:
        for number, these in enumerate(refs):
            if len(held) == hold:
                _wait_for_copy(held.popleft())
            batch = slot_batch(memory, number % hold, spec, len(these.shard), reader.longest(these))
            reader.fill(these, batch)
            held.append(batch)
            yield batch
    finally:
        for batch in held:
            _wait_for_copy(batch)
        if unpin is not None:
            unpin()


def _wait_for_copy(batch: Batch) -> None:
    """Wait until the copies from a batch's slot are done."""
    if batch.copied is not None:
        batch.copied.synchronize()


class Ring:
    """Worker processes and their slots."""

    def __init__(
        self,
        reader: Reader,
        samples: int,
        slots: int,
        workers: int,
        pin: Pin | None = None,
        waiting: Waiting = no_limit,
    ) -> None:
        self.reader, self.waiting = reader, waiting
        self.held: deque[tuple[int, Batch]] = deque()
        self.spec = reader.slot_spec(samples)
        self.free = deque(range(slots))
        memory = anonymous_file(slots, self.spec)
        self.processes, self.connections = [], []
        try:
            self.memory = mmap.mmap(memory, 0)
            for _ in range(workers):
                process, connection = _start_worker(WorkerSetup(reader, self.spec, memory))
                self.processes.append(process)
                self.connections.append(connection)
        except BaseException:
            self._end_workers()
            raise
        finally:
            os.close(memory)
        self.by_descriptor = {connection.fileno(): connection for connection in self.connections}
        self.poll = select.poll()
        for descriptor in self.by_descriptor:
            self.poll.register(descriptor, select.POLLIN)
        self.unpin = pin(self.memory) if pin is not None else None

    def run(self, refs: Iterator[SampleRefs], hold: int) -> Generator[Batch, None, None]:
        """Yield batches in the order of their refs, with every free slot in use."""
        waiting: deque[_Filling] = deque()
        while True:
            self._release(hold - 1)
            while self.free and (these := next(refs, None)) is not None:
                waiting.append(self._submit(self.free.popleft(), these))
            if not waiting:
                return
            self._wait_for(waiting)
            filling = waiting.popleft()
            batch = filling.batch
            for _, done in sorted(filling.done.items()):
                batch.faults += done.faults
                batch.samples += done.samples
            seconds = [done.seconds for done in filling.done.values()]
            batch.seconds = Seconds(*map(sum, zip(Seconds(), *seconds, strict=True)))
            self.held.append((filling.slot, batch))
            yield batch

    def _release(self, hold: int) -> None:
        """Free the slots of all but the last `hold` batches, each once the copies from it are done."""
        while len(self.held) > hold:
            slot, batch = self.held.popleft()
            _wait_for_copy(batch)
            self.free.append(slot)

    def _submit(self, slot: int, refs: SampleRefs) -> "_Filling":
        """Send every worker its part of a batch: always the same lanes, so each continues its own reads."""
        samples, longest = len(refs.shard), self.reader.longest(refs)
        filling = _Filling(slot, slot_batch(self.memory, slot, self.spec, samples, longest))
        for number, (first, part) in enumerate(refs.parts(len(self.connections))):
            if not len(part.shard):
                continue
            try:
                self.connections[number].send(ReadTask(slot, part, samples, first, longest))
            except (BrokenPipeError, ConnectionResetError):
                self._report_death(self.connections[number])
            filling.parts[first] = self.processes[number].pid
        return filling

    def _wait_for(self, waiting: "deque[_Filling]") -> None:
        """Receive the workers' reports until the first waiting batch is complete."""
        by_slot = {filling.slot: filling for filling in waiting}
        seconds = 0
        while waiting[0].parts:
            ready = self.poll.poll(1000)
            if not ready:
                seconds += 1
                _warn_of_slow(set(waiting[0].parts.values()), seconds)
                self.waiting(seconds)
            for descriptor, _ in ready:
                connection = self.by_descriptor[descriptor]
                try:
                    done: Done | ValueError = connection.recv()
                except (EOFError, ConnectionResetError):
                    self._report_death(connection)
                if isinstance(done, ValueError):
                    raise done
                filling = by_slot[done.slot]
                del filling.parts[done.first]
                filling.done[done.first] = done

    def _report_death(self, connection: Connection) -> None:
        process = self.processes[self.connections.index(connection)]
        code = process.wait(timeout=10)
        how = f"was killed by signal {-code} (out of memory?)" if code < 0 else f"ended with exit code {code}"
        raise ChildProcessError(f"a reader process (pid {process.pid}) {how}; start the run again, it continues")

    def close(self) -> None:
        """End the workers. The memory is freed with the last batch that views it."""
        try:
            self._release(0)
            if self.unpin is not None:
                self.unpin()
                self.unpin = None
        finally:
            self._end_workers()

    def _end_workers(self) -> None:
        for connection in self.connections:
            connection.close()
        ends = time.monotonic() + 5
        for process in self.processes:
            if is_stopped(process.pid):
                process.kill()
            try:
                process.wait(max(0.0, ends - time.monotonic()))  # a worker sees the closed pipe after its task
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _warn_of_slow(pids: set[int], seconds: int) -> None:
    """Name the readers that are waited for, after the seconds set above."""
    for pid in sorted(pids):
        stopped = seconds == STOPPED_READER_SECONDS and is_stopped(pid)
        if stopped or seconds == SLOW_READER_SECONDS:
            why = f", which is stopped: `kill -CONT {pid}` lets it go on" if stopped else ": is the storage slow?"
            print(f"warning: waiting for {seconds} s for reader process {pid}{why}", file=sys.stderr, flush=True)


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped (SIGSTOP, a debugger)."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    return False


class _Filling:
    """A slot that workers are filling."""

    def __init__(self, slot: int, batch: Batch) -> None:
        self.slot, self.batch = slot, batch
        self.parts: dict[int, int] = {}  # pending parts: first sample -> reader process
        self.done: dict[int, Done] = {}  # finished parts by first sample, which restores their order


def _start_worker(start: WorkerSetup) -> tuple[subprocess.Popen[bytes], Connection]:
    """A fresh interpreter at the other end of a pipe.

    Multiprocessing would import the user's main module again, and keep a tracker process and named semaphores. A fork
    is unsafe: the trainer has threads and perhaps a GPU.
    """
    parent, child = Pipe()
    by_main = threading.current_thread() is threading.main_thread()
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        **dict.fromkeys(
            ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"
        ),  # else NumPy starts a thread a core in each worker
    }
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", f"from genre_dist.stream.worker import main; main({child.fileno()}, {by_main})"],
            pass_fds=[child.fileno(), start.memory],
            stdin=subprocess.DEVNULL,
            env=environment,
        )
    finally:
        child.close()
    parent.send(start)
    return process, parent
