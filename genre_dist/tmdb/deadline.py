"""Connections with a deadline for the whole answer, head and body, which a fetch that stops can interrupt.

A time-out of `requests` limits the silence between two reads only, so a server that sends a byte now and then would
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
"""Longest time for an answer; every SLOWEST_BYTES received add a second."""
SLOWEST_BYTES = 32 << 10
CHECK_SECONDS = 0.5
"""Interval at which a waiting read calls `check_stopped`."""


class TimedAdapter(HTTPAdapter):
    """The connections of a session; waiting reads keep calling `check_stopped`, which may raise to end a request."""

    def __init__(self, connections: int, check_stopped: Callable[[], object]) -> None:
        self._check_stopped = check_stopped
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
        response = staticmethod(partial(_TimedResponse, self._check_stopped))
        connection = type("TimedConnection", (pool.ConnectionCls,), {"response_class": response})
        return type(pool.__name__, (pool,), {"ConnectionCls": connection})


class _TimedResponse(http.client.HTTPResponse):
    def __init__(self, check_stopped: Callable[[], object], sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_Incoming(sock, self.fp.detach(), check_stopped))


class _Incoming(io.RawIOBase):
    """The stream of bytes from a server. Raises TimeoutError when the server is silent or slow for too long."""

    def __init__(self, sock: socket.socket, file: io.RawIOBase, check_stopped: Callable[[], object]) -> None:
        self._socket, self._file, self._check_stopped = sock, file, check_stopped
        self._silence = sock.gettimeout() or ANSWER_SECONDS
        self._deadline = time.monotonic() + ANSWER_SECONDS

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        ends = min(time.monotonic() + self._silence, self._deadline)
        while (left := ends - time.monotonic()) > 0:
            self._check_stopped()
            self._socket.settimeout(min(left, CHECK_SECONDS))
            with suppress(TimeoutError):
                received = self._socket.recv_into(buffer)
                self._deadline += received / SLOWEST_BYTES
                return received
        raise TimeoutError("too slow")

    def close(self) -> None:
        self._file.close()  # the socket counts its open readers
        super().close()
