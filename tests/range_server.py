"""A real HTTP server on loopback for files of a folder: range requests, and misbehaviour on demand."""

import gzip
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from quiet_server import QuietServer

LIES = ("another range", "another size", "fewer bytes", "more bytes", "gzip")
"""Answers to a request for a range that are not what was asked for."""


class RangeServer:
    """What a test says to the server, and what the server saw."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.url = folder, ""
        self.lock = threading.Lock()
        self.forget()
        self.ranges = True
        self.fail: dict[str, list[str]] = {}
        """End of a path -> what to do to the next requests for it: a status, `cut`, `slow`, `hang` or one of LIES."""

    def forget(self) -> None:
        with self.lock:
            self.sent: Counter[str] = Counter()  # path -> bytes of bodies
            self.requests: list[tuple[str, int, int]] = []  # (path, start, end)

    def bytes_of(self, ending: str) -> int:
        return sum(count for path, count in self.sent.items() if path.endswith(ending))

    def next_trouble(self, path: str) -> str | None:
        with self.lock:
            for ending, troubles in self.fail.items():
                if path.endswith(ending) and troubles:
                    return troubles.pop(0)
        return None


@contextmanager
def serve_folder(folder: Path) -> Iterator[RangeServer]:
    """Serve a folder until the block ends."""
    told = RangeServer(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = folder / self.path.lstrip("/")
            trouble = told.next_trouble(self.path) if body else None
            if trouble and trouble.isdigit():
                self.send_error(int(trouble))
                return
            if not path.is_file():
                self.send_error(404)
                return
            data = path.read_bytes()
            wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")) if told.ranges else None
            start, end = (int(wanted[1]), min(int(wanted[2]) + 1, len(data))) if wanted else (0, len(data))
            if wanted and trouble == "another range":
                start, end = start + 512, end + 512
            if wanted and trouble in ("fewer bytes", "more bytes"):
                end += 512 if trouble == "more bytes" else -512
            self.send_response(206 if wanted else 200)
            if wanted:
                last = int(wanted[2]) if trouble in ("fewer bytes", "more bytes") else end - 1
                self.send_header("Content-Range", f"bytes {start}-{last}/{len(data) + (trouble == 'another size')}")
            if trouble == "gzip":
                data = data[:start] + gzip.compress(data[start:end])
                end = len(data)
                self.send_header("Content-Encoding", "gzip")
            if told.ranges:
                self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(end - start))
            self.end_headers()
            if not body:
                return
            if trouble == "hang":
                time.sleep(1.5)
            middle = start + (end - start) // 2
            self.send_piece(data[start:middle])
            if trouble == "cut":
                self.close_connection = True
                self.connection.close()
                return
            if trouble == "slow":
                time.sleep(0.1)
            self.send_piece(data[middle:end])
            with told.lock:
                told.requests.append((self.path, start, end))

        def send_piece(self, data: bytes) -> None:
            try:
                self.wfile.write(data)
                self.wfile.flush()
            except OSError:
                self.close_connection = True
                return
            with told.lock:
                told.sent[self.path] += len(data)

        def log_message(self, *_: object) -> None:
            """Tests need no log."""

    server = QuietServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    told.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield told
    finally:
        server.shutdown()
        server.server_close()
