"""HTTP as every request of a fetch goes: at the shared rate, tried again with patience, over kept connections.

A v3 key travels in the URL, and the errors of `requests` quote the URL. So no error of that library leaves this file:
each becomes a `FetchError` with a short reason.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import TypeVar

import requests
import urllib3
from requests.adapters import HTTPAdapter
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from genre_dist import __version__
from genre_dist.acquire.limiter import Limiter, retry_after_seconds

USER_AGENT = f"genre_dist/{__version__}"
ATTEMPTS = 6
BACKOFF_SECONDS = 0.5  # the mean of the first wait; it doubles with every attempt
LONGEST_BACKOFF_SECONDS = 30.0
TIMEOUT_SECONDS = (10.0, 30.0)  # to connect; between two pieces of an answer
PAUSE_SECONDS = 1.0  # for everybody, after a 429 that does not say how long

Item = TypeVar("Item")
Result = TypeVar("Result")


class FetchError(Exception):
    """A request that did not bring what it should. The text is a short reason, without URL or key."""


class TransientError(FetchError):
    """A failure that another attempt may mend."""


class UnreachableError(TransientError):
    """The server, or the way to it, is in trouble: nothing is known about the film asked for."""


class StoppedError(Exception):
    """The user, or the system, asked this process to stop."""


class Web:
    """What all threads of a fetch share: connections, rate, and whether to stop."""

    def __init__(self, rate: int, concurrency: int) -> None:
        self.stopping = threading.Event()
        self.limiter = Limiter(rate, sleep=self.nap)
        self.session = requests.Session()
        self.session.headers["User-Agent"] = USER_AGENT
        self.session.auth = _leave_alone
        self.turns = threading.local()  # of each thread: the limiter's number of the request that it waits for
        self.session.hooks["response"].append(self._answered)  # called at an answer's head, before its body
        for scheme in ("https://", "http://"):
            self.session.mount(scheme, HTTPAdapter(pool_maxsize=concurrency))
        # Its debug lines hold whole URLs, and so the key.
        logging.getLogger("urllib3.connectionpool").setLevel(logging.INFO)

    def nap(self, seconds: float) -> None:
        """Sleep. Raises StoppedError as soon as the process is asked to stop."""
        if self.stopping.wait(seconds):
            raise StoppedError

    def patiently(self, work: Callable[[], Result]) -> Result:
        """Do one request, again where that may help. Raises FetchError or StoppedError."""
        retrying = Retrying(
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_random_exponential(multiplier=2 * BACKOFF_SECONDS, max=LONGEST_BACKOFF_SECONDS),
            retry=retry_if_exception_type(TransientError),
            sleep=self.nap,
            reraise=True,
        )
        return retrying(self._once, work)

    def _once(self, work: Callable[[], Result]) -> Result:
        if self.stopping.is_set():
            raise StoppedError
        self.turns.mine = self.limiter.acquire()
        try:
            return work()
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            plain = self._plain(error)
        finally:
            self._answered()
        raise plain  # outside the handler, so that the error with the URL is not its context

    def _answered(self, *_: object, **__: object) -> None:
        self.limiter.answered(self.turns.mine)

    def _plain(self, error: Exception) -> Exception:
        if isinstance(error, requests.HTTPError) and error.response is not None:
            return self._refusal(error.response)
        if isinstance(error, requests.JSONDecodeError):
            return TransientError("the answer is no JSON")
        if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError):
            return UnreachableError("timeout")
        if isinstance(error, requests.ConnectionError | requests.exceptions.ChunkedEncodingError):
            return UnreachableError("connection cut or refused")
        if isinstance(error, urllib3.exceptions.HTTPError):
            return UnreachableError("connection cut")
        return FetchError(type(error).__name__)

    def _refusal(self, response: requests.Response) -> Exception:
        status = response.status_code
        seconds = retry_after_seconds(response.headers.get("Retry-After"))
        if status == 429 or (status == 503 and seconds is not None):
            self.limiter.pause(PAUSE_SECONDS if seconds is None else seconds)
        return UnreachableError(str(status)) if status == 429 or status >= 500 else FetchError(str(status))


def _leave_alone(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request  # without any `auth`, requests would put a password from ~/.netrc in the place of our bearer token


def outcomes(
    pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item], in_flight: int, in_order: bool
) -> Iterator[tuple[Item, "Future[Result]"]]:
    """Work on items in threads, `in_flight` of them at a time: each with its finished future, in order or as they end.

    Items are taken one by one as there is room, so neither they nor the results add up in memory.
    """
    running: dict[Future[Result], Item] = {}
    source = iter(items)
    while True:
        for item in islice(source, in_flight - len(running)):
            running[pool.submit(work, item)] = item
        if not running:
            return
        first = [next(iter(running))] if in_order else running
        for future in wait(first, return_when=FIRST_COMPLETED).done:
            yield running.pop(future), future
