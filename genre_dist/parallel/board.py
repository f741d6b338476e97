"""Messages between ranks beside their collectives: progress, and a rank's premature end.

The messages go through the rendezvous store, about once a second. One thread with its own connection sends and receives
them: it may block (if the rank that hosts the store is frozen) without blocking another thread.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch.distributed as dist

from genre_dist.parallel import processes

PATIENCE_SECONDS = 10.0
"""Longest wait of a rank for messages of the others, or for their receipt of its own."""
KILLED = "is gone without a word: it was killed, or its machine is lost"


class End(NamedTuple):
    """A rank's premature end, and the exit code of the ranks that cannot continue without it."""

    rank: int
    host: str
    pid: int
    code: int
    why: str

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid} on {self.host}) {self.why}"


class _Peer(NamedTuple):
    host: str
    pid: int
    identity: str


def sign_in(store: dist.Store, rank: int) -> None:
    """Register this rank in the store, before any other rank looks."""
    store.set(f"rank {rank}", json.dumps(_Peer(socket.gethostname(), os.getpid(), processes.identity(os.getpid()))))
    store.set(f"sign {rank}", "0")


class Board:
    """A rank's view of all registered ranks.

    The board's thread calls `hear` once, at the first premature end of a rank.
    """

    def __init__(
        self, store: dist.Store, host: int | None, rank: int, size: int, seconds: float, hear: Callable[[End], None]
    ) -> None:
        """`host` is the rank that hosts the store, None if the launcher does; `seconds` is the polling interval."""
        self.host, self.rank, self.size, self.seconds = host, rank, size, seconds
        self.moved = time.monotonic()
        """Time of the last progress of any rank."""
        self.end: End | None = None
        """The first premature end."""
        self._store, self._hear = store, hear
        self._worked = self._sent = self._total = self._looks = self._heard = 0
        self._peers: list[_Peer] = []
        self._looking_for_signs = False
        self._signs: list[bytes] = []
        self._note: End | None = None
        self._lost = False
        self._wake, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._talk, name="board", daemon=True)
        self._thread.start()

    @property
    def is_host(self) -> bool:
        """Whether this rank hosts the store."""
        return self.host == self.rank

    def progress(self) -> None:
        """Count a unit of this rank's work."""
        self._worked += 1

    def own_end(self, code: int, why: str) -> End:
        """An `End` of this rank."""
        return End(self.rank, socket.gethostname(), os.getpid(), code, why)

    def tell(self, end: End) -> None:
        """Publish this rank's end; returns when the store has it. An earlier end of another rank stays valid."""
        self._note = end
        self._until(lambda: self.end is not None)

    def linger(self) -> None:
        """Wait until all live ranks have received the end."""
        end = self.end
        if end is not None:
            self._until(lambda: self._heard >= self.size - (end.why == KILLED))

    def find_end(self) -> End | None:
        """The premature end that may have caused an error of this rank, if there is one.

        A killed rank of another machine shows by missing signs of life for some seconds.
        """
        self._looking_for_signs = True
        self._until(lambda: self.end is not None or len(self._signs) > 0)
        before = self._signs
        self._until(lambda: self.end is not None, seconds=max(PATIENCE_SECONDS, 4 * self.seconds))
        if self.end is None and self._signs:
            silent = [rank for rank in range(self.size) if self._signs[rank] == before[rank] and rank != self.rank]
            if silent:
                self.tell(self._killed(silent[0]))
        return self.end

    def close(self) -> None:
        """Stop sending and receiving."""
        self._closed.set()
        self._wake.set()
        self._thread.join(PATIENCE_SECONDS)

    def _until(self, condition: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
        """Poll more often until the condition holds, the time is over, or the store is lost."""
        ends = time.monotonic() + seconds
        while not condition() and not self._lost and time.monotonic() < ends:
            self._wake.set()
            time.sleep(0.05)

    def _talk(self) -> None:
        try:
            self._peers = [_Peer(*json.loads(peer)) for peer in self._of_all("rank")]
            while not self._closed.is_set():
                self._look()
                self._wake.wait(self.seconds)
                self._wake.clear()
        except dist.DistError:  # the store ended with its host
            if self.end is None and self.host is not None and self._peers:
                end = self._killed(self.host)
                self._hear(end)
                self.end = end
            self._lost = True

    def _look(self) -> None:
        worked = self._worked
        total = self._store.add("progress", worked - self._sent)
        self._sent = worked
        if total != self._total:
            self._total, self.moved = total, time.monotonic()
        self._looks += 1
        self._store.set(f"sign {self.rank}", str(self._looks))
        if self._looking_for_signs:
            self._signs = self._of_all("sign")
        dead = next((rank for rank, peer in enumerate(self._peers) if processes.is_over(peer.identity)), None)
        if self.end is not None:
            self._heard = self._store.add("heard", 0)
        elif note := self._note or (None if dead is None else self._killed(dead)):
            self._take(self._store.compare_set("end", "", json.dumps(note)))  # returns an earlier end if there is one
        elif self._store.check(["end"]):
            self._take(self._store.get("end"))

    def _take(self, message: bytes) -> None:
        end = End(*json.loads(message))
        self._hear(end)
        self._store.add("heard", 1)
        self.end = end  # last, as a thread that sees it may exit

    def _killed(self, rank: int) -> End:
        return End(rank, self._peers[rank].host, self._peers[rank].pid, 1, KILLED)

    def _of_all(self, name: str) -> list[Any]:
        return self._store.multi_get([f"{name} {rank}" for rank in range(self.size)])
