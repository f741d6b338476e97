"""Connections on which a whole answer, head and body, has a deadline, and which are given up when a fetch is to stop.

The time-outs of `requests` are for the silence between two pieces, so a server that sends a byte now and then would
hold a request for ever.
"""

import http.client
import io
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, PoolManager

ANSWER_SECONDS = 120.0
"""Longest time for an answer, and a second more for every SLOWEST_BYTES that it has brought."""
SLOWEST_BYTES = 32 << 10
LOOK_SECONDS = 0.5
"""How often a wait looks whether it is to go on."""


class TimedAdapter(HTTPAdapter):
    """The connections of a session; `go_on` is called all the while, in any thread, and may raise to end a request."""

    def __init__(self, connections: int, go_on: Callable[[], object]) -> None:
        self._go_on = go_on
        super().__init__(pool_maxsize=connections)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Make the pools of connections that need no proxy."""
        super().init_poolmanager(*args, **kwargs)
        self._time(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> PoolManager:
        """The pools of connections through a proxy."""
        is_new = proxy not in self.proxy_manager
        manager: PoolManager = super().proxy_manager_for(proxy, **kwargs)
        if is_new:
            self._time(manager)
        return manager

    def _time(self, manager: PoolManager) -> None:
        pools = manager.pool_classes_by_scheme.items()
        manager.pool_classes_by_scheme = {scheme: self._timed(pool) for scheme, pool in pools}

    def _timed(self, pool: type[HTTPConnectionPool]) -> type[HTTPConnectionPool]:
        response = staticmethod(partial(_TimedResponse, self._go_on))
        connection = type("TimedConnection", (pool.ConnectionCls,), {"response_class": response})
        return type(pool.__name__, (pool,), {"ConnectionCls": connection})


class _TimedResponse(http.client.HTTPResponse):
    def __init__(self, go_on: Callable[[], object], sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_Incoming(sock, self.fp.detach(), go_on))


class _Incoming(io.RawIOBase):
    """What a server sends from now on. Raises TimeoutError when it is silent or slow for too long."""

    def __init__(self, sock: socket.socket, file: io.RawIOBase, go_on: Callable[[], object]) -> None:
        self._socket, self._file, self._go_on = sock, file, go_on
        self._silence = sock.gettimeout() or ANSWER_SECONDS
        self._deadline = time.monotonic() + ANSWER_SECONDS

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        ends = min(time.monotonic() + self._silence, self._deadline)
        while (left := ends - time.monotonic()) > 0:
            self._go_on()
            self._socket.settimeout(min(left, LOOK_SECONDS))
            with suppress(TimeoutError):
                received = self._socket.recv_into(buffer)
                self._deadline += received / SLOWEST_BYTES
                return received
        raise TimeoutError("too slow")

    def close(self) -> None:
        self._file.close()  # the socket's own count of who still reads from it
        super().close()
