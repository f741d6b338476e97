"""The HTTP client of a fetch: requests at the shared rate, repeated with backoff, over kept connections.

A v3 key travels in the URL, and the errors of `requests` quote the URL. So no error of that library leaves this file:
each becomes a `FetchError` with a short reason, which quotes nothing of the server's answer.
"""

import gzip
import io
import logging
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

import requests
import urllib3

from genre_dist import __version__
from genre_dist.printable import printable
from genre_dist.storage import retried
from genre_dist.tmdb.deadline import TimedAdapter
from genre_dist.tmdb.limiter import Limiter, retry_after_seconds

USER_AGENT = f"genre_dist/{__version__}"
ATTEMPTS = 6
TIMEOUT_SECONDS = (10.0, 30.0)  # to connect; between two reads of an answer
PAUSE_SECONDS = 1.0  # for all threads, after a 429 without Retry-After
LONG_PAUSE_SECONDS = 10.0
LONGEST_PAUSE_SECONDS = 15 * 60.0
"""Limit on the sum of the server's pauses without an answer between them; beyond it the fetch ends."""
CHUNK_BYTES = 1 << 16

Result = TypeVar("Result")


class FetchError(Exception):
    """A failed request. The text is a short reason, without URL or key."""


class TransientError(FetchError):
    """A failure after which another attempt may succeed."""


class UnreachableError(TransientError):
    """A fault of the server or the network, which says nothing about the requested film."""


class StoppedError(FetchError):
    """The user or the server ended the fetch."""


class Web:
    """The HTTP client of all threads of a fetch: connections, rate limit, and stopping."""

    def __init__(self, rate: int, concurrency: int) -> None:
        self.stopping = threading.Event()
        self.why_stopped = ""
        self.paused = 0.0  # seconds since the last good answer
        self.limiter = Limiter(rate, sleep=self.nap)
        self.session = _Session()
        self.session.headers.update({"User-Agent": USER_AGENT, "Accept-Encoding": "identity"})
        self.session.auth = _unchanged
        self.waiting = threading.local()  # per thread: the limiter's number of its request
        self.session.hooks["response"].append(self._answered)  # called after an answer's head, before its body
        for scheme in ("https://", "http://"):
            self.session.mount(scheme, TimedAdapter(concurrency, lambda: self.nap(0)))
        # urllib3's debug lines, and its warnings about malformed headers, quote URLs and so the key.
        logging.getLogger("urllib3").setLevel(logging.ERROR)

    def stop(self, why: str) -> None:
        """End all requests, those under way too, with a StoppedError; of several reasons the first counts."""
        self.why_stopped = self.why_stopped or why
        self.stopping.set()

    def nap(self, seconds: float) -> None:
        """Sleep. Raises StoppedError as soon as the process is asked to stop."""
        if self.stopping.wait(seconds) if seconds else self.stopping.is_set():
            raise StoppedError(self.why_stopped)

    def retried(self, attempt: Callable[[], Result]) -> Result:
        """Call `attempt`, which sends a request, again after a TransientError. Raises FetchError, also StoppedError."""
        return retried(lambda: self._once(attempt), lambda error: isinstance(error, TransientError), ATTEMPTS, self.nap)

    def body(self, url: str, most_bytes: int, redirects: int, **request: Any) -> bytes:
        """A whole answer, decompressed. Call it within `retried`; `request` holds arguments of `requests`."""
        with self.opened(url, redirects, **request) as answer:
            packed = b"".join(chunks(answer, most_bytes))
            return unpacked(packed, answer.headers, most_bytes)

    @contextmanager
    def opened(self, url: str, redirects: int, **request: Any) -> Iterator[requests.Response]:
        """An answer whose body is not read yet. Call it within `retried`."""
        for _ in range(redirects + 1):
            with self.session.get(url, stream=True, timeout=TIMEOUT_SECONDS, **request) as answer:
                if not answer.is_redirect:
                    if answer.status_code not in (200, 203):
                        raise self._refusal(answer)
                    yield answer
                    return
                url = urljoin(url, answer.headers["Location"])
        target = urlsplit(url)
        raise FetchError(printable(f"redirected to {target.scheme}://{target.hostname}")[:200])

    def _once(self, attempt: Callable[[], Result]) -> Result:
        self.nap(0)
        self.waiting.mine = self.limiter.acquire()
        try:
            result = attempt()
            self.paused = 0.0
            return result
        except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
            fetch_error = _fetch_error(error)
        finally:
            self._answered()
        raise fetch_error  # outside the handler, so that the error with the URL is not its context

    def _answered(self, *_: object, **__: object) -> None:
        self.limiter.answered(self.waiting.mine)

    def _refusal(self, response: requests.Response) -> FetchError:
        status = response.status_code
        seconds = retry_after_seconds(response.headers.get("Retry-After"))
        if status == 429 or (status == 503 and seconds is not None):
            self._pause(PAUSE_SECONDS if seconds is None else seconds, status)
        return UnreachableError(str(status)) if status == 429 or status >= 500 else FetchError(str(status))

    def _pause(self, seconds: float, status: int) -> None:
        """Pause as the server asks, with a message; end the fetch if the pauses become too long."""
        longer = self.limiter.pause(seconds)
        self.paused += longer
        until = datetime.now().astimezone() + timedelta(seconds=seconds)
        message = f"the server asks to wait {seconds:,.0f} s ({status}), until {until:%Y-%m-%d %H:%M:%S %Z}"
        if self.paused > LONGEST_PAUSE_SECONDS:
            self.stop(message)
        elif longer > LONG_PAUSE_SECONDS:
            print(message, file=sys.stderr, flush=True)


class _Session(requests.Session):
    """A session without automatic redirects, because `requests` reads a redirect's body whole, however large."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        return None


def _unchanged(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request  # without any `auth`, requests would replace the bearer token by a password from ~/.netrc


def _fetch_error(error: Exception) -> FetchError:
    if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError):
        return UnreachableError("timeout")
    if isinstance(error, requests.ConnectionError):
        return UnreachableError("connection cut or refused")
    if isinstance(error, urllib3.exceptions.HTTPError):
        return UnreachableError("connection cut")
    return FetchError(type(error).__name__)


def chunks(answer: requests.Response, most_bytes: int) -> Iterator[bytes]:
    """The raw chunks of an answer's body, not decompressed. Raises FetchError if the body is too large."""
    read = 0
    while chunk := answer.raw.read(CHUNK_BYTES, decode_content=False):
        read += len(chunk)
        if read > most_bytes:
            raise FetchError(f"larger than {most_bytes >> 20} MiB")
        yield chunk


def unpacked(body: bytes, headers: Mapping[str, str], most_bytes: int) -> bytes:
    """Decompress a body. Its first bytes decide about gzip, as some servers send a wrong header or none.

    Raises UnreachableError for a damaged or truncated body, FetchError for one that is too large.
    """
    try:
        if body.startswith(b"\x1f\x8b"):
            with gzip.GzipFile(fileobj=io.BytesIO(body)) as file:
                body = file.read(most_bytes + 1)
        elif headers.get("Content-Encoding", "").strip().lower() == "deflate":
            body = _inflated(body, most_bytes)
    except (OSError, EOFError, zlib.error):
        raise UnreachableError("the packed answer is damaged or cut short") from None
    if len(body) > most_bytes:
        raise FetchError(f"larger than {most_bytes >> 20} MiB")
    return body


def _inflated(body: bytes, most_bytes: int) -> bytes:
    """The body of an answer with the encoding deflate: zlib or, as some servers send it, raw deflate without a head."""
    has_head = len(body) > 1 and body[0] & 15 == zlib.DEFLATED and int.from_bytes(body[:2], "big") % 31 == 0
    inflater = zlib.decompressobj(zlib.MAX_WBITS if has_head else -zlib.MAX_WBITS)
    try:
        inflated = inflater.decompress(body, most_bytes + 1)
    except zlib.error:
        return body  # the body may not be compressed at all
    if not inflater.eof and len(inflated) <= most_bytes:
        raise EOFError
    return inflated
