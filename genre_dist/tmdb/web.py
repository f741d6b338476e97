"""HTTP as every request of a fetch goes: at the shared rate, tried again with patience, over kept connections.

A v3 key travels in the URL, and the errors of `requests` quote the URL. So no error of that library leaves this file:
each becomes a `FetchError` with a short reason, which quotes nothing of what the server says.
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
TIMEOUT_SECONDS = (10.0, 30.0)  # to connect; between two pieces of an answer
PAUSE_SECONDS = 1.0  # for everybody, after a 429 that does not say how long
LONG_PAUSE_SECONDS = 10.0
LONGEST_PAUSE_SECONDS = 15 * 60.0
"""Of pauses that the server asks for with no answer between them; beyond, the fetch ends."""
CHUNK_BYTES = 1 << 16

Result = TypeVar("Result")


class FetchError(Exception):
    """A request that did not bring what it should. The text is a short reason, without URL or key."""


class TransientError(FetchError):
    """A failure that another attempt may mend."""


class UnreachableError(TransientError):
    """The server, or the way to it, is in trouble: nothing is known about the film asked for."""


class StoppedError(FetchError):
    """Nothing more is to be asked for: the user said so, or the server."""


class Web:
    """What all threads of a fetch share: connections, rate, and whether to stop."""

    def __init__(self, rate: int, concurrency: int) -> None:
        self.stopping = threading.Event()
        self.why_stopped = ""
        self.paused = 0.0  # seconds since the last good answer
        self.limiter = Limiter(rate, sleep=self.nap)
        self.session = _Session()
        self.session.headers.update({"User-Agent": USER_AGENT, "Accept-Encoding": "identity"})
        self.session.auth = _leave_alone
        self.waiting = threading.local()  # of each thread: the limiter's number of the request that it waits for
        self.session.hooks["response"].append(self._answered)  # called at an answer's head, before its body
        for scheme in ("https://", "http://"):
            self.session.mount(scheme, TimedAdapter(concurrency, lambda: self.nap(0)))
        # Its debug lines hold whole URLs, and so the key; its warnings about odd heads of answers too.
        logging.getLogger("urllib3").setLevel(logging.ERROR)

    def stop(self, why: str) -> None:
        """Let all requests end with a StoppedError, those under way too; of several reasons the first counts."""
        self.why_stopped = self.why_stopped or why
        self.stopping.set()

    def nap(self, seconds: float) -> None:
        """Sleep. Raises StoppedError as soon as the process is asked to stop."""
        if self.stopping.wait(seconds) if seconds else self.stopping.is_set():
            raise StoppedError(self.why_stopped)

    def retried(self, work: Callable[[], Result]) -> Result:
        """Do one request, again where that may help. Raises FetchError, StoppedError among them."""
        return retried(lambda: self._once(work), lambda error: isinstance(error, TransientError), ATTEMPTS, self.nap)

    def body(self, url: str, most_bytes: int, redirects: int, **request: Any) -> bytes:
        """A whole answer, unpacked. To be called within `retried`; `request` is what `requests` takes."""
        with self.opened(url, redirects, **request) as answer:
            packed = b"".join(pieces(answer, most_bytes))
            return unpacked(packed, answer.headers, most_bytes)

    @contextmanager
    def opened(self, url: str, redirects: int, **request: Any) -> Iterator[requests.Response]:
        """An answer whose body is still to be read. To be called within `retried`."""
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

    def _once(self, work: Callable[[], Result]) -> Result:
        self.nap(0)
        self.waiting.mine = self.limiter.acquire()
        try:
            result = work()
            self.paused = 0.0
            return result
        except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
            plain = _plain(error)
        finally:
            self._answered()
        raise plain  # outside the handler, so that the error with the URL is not its context

    def _answered(self, *_: object, **__: object) -> None:
        self.limiter.answered(self.waiting.mine)

    def _refusal(self, response: requests.Response) -> FetchError:
        status = response.status_code
        seconds = retry_after_seconds(response.headers.get("Retry-After"))
        if status == 429 or (status == 503 and seconds is not None):
            self._pause(PAUSE_SECONDS if seconds is None else seconds, status)
        return UnreachableError(str(status)) if status == 429 or status >= 500 else FetchError(str(status))

    def _pause(self, seconds: float, status: int) -> None:
        """Do as the server asks, and say so; end the fetch where that is asked too much."""
        longer = self.limiter.pause(seconds)
        self.paused += longer
        until = datetime.now().astimezone() + timedelta(seconds=seconds)
        message = f"the server asks to wait {seconds:,.0f} s ({status}), until {until:%Y-%m-%d %H:%M:%S %Z}"
        if self.paused > LONGEST_PAUSE_SECONDS:
            self.stop(message)
        elif longer > LONG_PAUSE_SECONDS:
            print(message, file=sys.stderr, flush=True)


class _Session(requests.Session):
    """A session that follows no redirections by itself: it reads their bodies whole, however large they are."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        return None


def _leave_alone(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request  # without any `auth`, requests would put a password from ~/.netrc in the place of our bearer token


def _plain(error: Exception) -> FetchError:
    if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError):
        return UnreachableError("timeout")
    if isinstance(error, requests.ConnectionError):
        return UnreachableError("connection cut or refused")
    if isinstance(error, urllib3.exceptions.HTTPError):
        return UnreachableError("connection cut")
    return FetchError(type(error).__name__)


def pieces(answer: requests.Response, most_bytes: int) -> Iterator[bytes]:
    """An answer's body as it comes, packed if it is. Raises FetchError if it is too large."""
    read = 0
    while chunk := answer.raw.read(CHUNK_BYTES, decode_content=False):
        read += len(chunk)
        if read > most_bytes:
            raise FetchError(f"larger than {most_bytes >> 20} MiB")
        yield chunk


def unpacked(body: bytes, headers: Mapping[str, str], most_bytes: int) -> bytes:
    """The body of a JSON document or an image, by its first bytes: some servers say gzip where it is none, or nothing.

    Raises UnreachableError if it is cut short or damaged, FetchError if it is too large.
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
    """The body of an answer that is called deflate: zlib or, as some read the standard, without its head."""
    has_head = len(body) > 1 and body[0] & 15 == zlib.DEFLATED and int.from_bytes(body[:2], "big") % 31 == 0
    inflater = zlib.decompressobj(zlib.MAX_WBITS if has_head else -zlib.MAX_WBITS)
    try:
        inflated = inflater.decompress(body, most_bytes + 1)
    except zlib.error:
        return body  # nothing packed at all, it may be
    if not inflater.eof and len(inflated) <= most_bytes:
        raise EOFError
    return inflated
