"""Local files and remote ones behind fsspec (http(s), s3 and others), with retries and plain errors.

A path is a `pathlib.Path` or, for a URL, a `UPath`, which has the same methods. Local files never go through fsspec,
which takes longer to import than a reader process to start: the first URL imports it. Remote files are read in ranges
of bytes, with several attempts each.
"""

import hashlib
import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias, TypeVar, Union

from genre_dist.printable import printable

if TYPE_CHECKING:
    from upath import UPath

AnyPath: TypeAlias = Union[Path, "UPath"]
Result = TypeVar("Result")

ATTEMPTS = 5
BACKOFF_SECONDS = 1.0  # twice the mean of the first wait; it doubles with every attempt
LONGEST_BACKOFF_SECONDS = 20.0
CONNECT_SECONDS = 10
SILENCE_SECONDS = 30
"""Longest wait between two chunks of a response."""
ANSWER_SECONDS = 60
"""Longest wait for a response of RANGE_BYTES: all attempts end before the other ranks consider this one hanging."""
RANGE_BYTES = 8 << 20


def any_path(text: str | AnyPath) -> AnyPath:
    """The path of a local file or a URL. Raises ValueError for a kind of URL that cannot be used here."""
    if not isinstance(text, str):
        return text
    scheme, mark, rest = text.partition("://")
    if not mark:
        return Path(text)
    if scheme == "file":
        return Path(rest)
    from upath import UPath

    try:
        return UPath(text, **_options(scheme))
    except (ImportError, ValueError) as error:
        hint = "; pip install 'genre_dist[s3]'" if scheme == "s3" else ""
        raise ValueError(f"{text}: places such as {scheme}:// cannot be used here ({error}){hint}") from None


def _options(scheme: str) -> dict[str, Any]:
    """Time-outs of the client libraries, without their own retries, which would multiply with those of this module."""
    if scheme in ("http", "https"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
        return {"client_kwargs": {"timeout": timeout}}
    if scheme in ("s3", "s3a"):
        patience = {"connect_timeout": CONNECT_SECONDS, "read_timeout": SILENCE_SECONDS}
        return {"config_kwargs": patience | {"retries": {"max_attempts": 0}}}
    return {}


def inside(folder: AnyPath, file: str) -> AnyPath:
    """A file named relative to a folder, or by itself: an absolute path or a URL."""
    return any_path(file) if "://" in file else folder / file


def is_remote(path: AnyPath) -> bool:
    """Whether a path is behind fsspec."""
    return not isinstance(path, Path)


def read_bytes(path: AnyPath, most: int | None = None) -> bytes:
    """A whole file of up to `most` bytes. Raises FileNotFoundError, or ValueError naming a file that cannot be read."""
    if isinstance(path, Path):
        with open(path, "rb") as local:
            data = local.read() if most is None else _read_up_to(local, most + 1)
    elif path.protocol in ("http", "https"):
        data = _remotely(path, partial(_over_http, path, most))
    else:
        end = most + 1 if most is not None and file_size(path) > most else None
        data = _remotely(path, lambda: bytes(path.fs.cat_file(path.path, end=end)))
    if most is not None and len(data) > most:
        raise ValueError(f"{path}: more than {most:,} bytes, which such a file never has")
    return data


def _read_up_to(file: IO[bytes], most: int) -> bytes:
    """Read up to `most` bytes; unlike `read(most)`, this allocates memory only for bytes that exist."""
    data = bytearray()
    while len(data) < most and (chunk := file.read(min(most - len(data), RANGE_BYTES))):
        data += chunk
    return bytes(data)


def sha256_of(path: AnyPath) -> str:
    """The SHA-256 of a file, read in chunks."""
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def read_range(path: AnyPath, start: int, end: int, size: int) -> bytes:
    """Bytes start to end of a file of `size` bytes.

    Raises FileNotFoundError; ValueError naming the file if the server has no range requests, if the file is shorter,
    or if it cannot be read in ATTEMPTS attempts.
    """
    if isinstance(path, Path):
        with open(path, "rb", buffering=0) as local:
            return os.pread(local.fileno(), end - start, start)
    edges = [*range(start, end, RANGE_BYTES), end]
    return b"".join(_remotely(path, partial(_range, path, first, last, size)) for first, last in pairwise(edges))


def _range(path: "UPath", start: int, end: int, size: int) -> bytes:
    if path.protocol in ("http", "https"):
        return _over_http(path, end - start, f"bytes {start}-{end - 1}", size)
    data = bytes(path.fs.cat_file(path.path, start=start, end=end))
    if len(data) != end - start:
        raise EOFError(f"{len(data):,} bytes came where {end - start:,} were asked for at byte {start:,}")
    return data


def _over_http(path: "UPath", most: int | None, wanted: str = "", size: int = 0) -> bytes:
    """A server's response, up to a little over `most` bytes: a whole file, or a range of one that has `size` bytes.

    Raises EOFError if the server sends another range, ValueError if it has none or the file has another size.
    """
    from fsspec.asyn import sync

    async def answer() -> bytes:
        session = await path.fs.set_session()
        options, began = dict(path.fs.kwargs), time.monotonic()
        headers = options.pop("headers", {}) | {"Accept-Encoding": "identity"}
        if wanted:
            headers["Range"] = wanted.replace(" ", "=")
        async with session.get(path.fs.encode_url(path.path), headers=headers, **options) as answer:
            answer.raise_for_status()
            if wanted:
                _check_range(answer.status, answer.headers, wanted, size)
            data = bytearray()
            async for chunk in answer.content.iter_chunked(RANGE_BYTES):
                data += chunk
                if time.monotonic() - began > ANSWER_SECONDS * (1 + len(data) / RANGE_BYTES):
                    raise TimeoutError(f"{len(data):,} bytes came in {time.monotonic() - began:.0f} s")
                if most is not None and len(data) > most:
                    break
        if wanted and len(data) != most:
            raise EOFError(f"{len(data):,} bytes came where {wanted} was asked for")
        return bytes(data)

    return bytes(sync(path.fs.loop, answer))


def _check_range(status: int, headers: Mapping[str, str], wanted: str, size: int) -> None:
    if status != 206:
        raise ValueError("no range requests")
    given, _, whole = headers.get("Content-Range", "").partition("/")
    if given != wanted or headers.get("Content-Encoding", "identity") != "identity":
        raise EOFError(f"the server sends {printable(given)[:80] or 'an unknown range'} where {wanted} was asked for")
    if whole not in ("*", str(size)):
        raise ValueError(f"it has {printable(whole)[:80]} bytes now, not {size:,}")


def file_size(path: AnyPath) -> int:
    """Size of a file in bytes. Raises FileNotFoundError, or ValueError naming a remote file that cannot be read."""
    return file_version(path)[0]


def file_version(path: AnyPath) -> tuple[int, str]:
    """Size of a file in bytes and its version: its modification time, or a server's ETag or date ("" if there is none).

    Raises as `file_size` does.
    """
    if isinstance(path, Path):
        about = path.stat()
        return about.st_size, str(about.st_mtime_ns)
    info = _remotely(path, lambda: path.fs.info(path.path))
    if info["size"] is None:
        raise ValueError(f"{path}: the server does not tell the size of its files (no Content-Length)")
    version = next((info[key] for key in ("ETag", "LastModified", "Last-Modified") if info.get(key)), "")
    return int(info["size"]), printable(version)


def exists(path: AnyPath) -> bool:
    """Whether a file exists."""
    if isinstance(path, Path):
        return path.is_file()
    try:
        file_size(path)
    except FileNotFoundError:
        return False
    return True


@contextmanager
def local_copy(path: AnyPath) -> Iterator[Path]:
    """The file itself if it is local, otherwise a temporary copy for the block."""
    if isinstance(path, Path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, path.name)
        with opened(path) as source, open(copy, "wb") as file:
            shutil.copyfileobj(source, file, RANGE_BYTES)
        yield copy


def opened(path: AnyPath) -> IO[bytes]:
    """A file to read and seek in; a remote one is read in blocks of RANGE_BYTES, with retries."""
    if isinstance(path, Path):
        return open(path, "rb")
    return io.BufferedReader(_Ranges(path), RANGE_BYTES)


class _Ranges(io.RawIOBase):
    """A remote file as a raw stream for Python's buffered reader."""

    def __init__(self, path: "UPath") -> None:
        self.path, self.size, self.position = path, file_size(path), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.position = offset + (0, self.position, self.size)[whence]
        return self.position

    def readinto(self, buffer: Any) -> int:
        end = min(self.position + len(buffer), self.size)
        data = read_range(self.path, self.position, end, self.size) if end > self.position else b""
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)


def upload(local: Path, path: AnyPath) -> None:
    """Upload a finished local file to a remote path, where it appears whole or not at all.

    Raises ValueError naming the path if that fails.
    """
    assert not isinstance(path, Path)
    check_writable(path)
    _remotely(path, lambda: path.fs.put_file(str(local), path.path))


def check_writable(path: AnyPath) -> None:
    """Raise ValueError for a path that cannot be written."""
    if not isinstance(path, Path) and path.protocol in ("http", "https"):
        raise ValueError(f"{path}: http(s) can only be read; write to a folder or to s3://")


def remove(path: AnyPath) -> None:
    """Remove a file if it exists."""
    if isinstance(path, Path):
        path.unlink(missing_ok=True)
        return
    with suppress(FileNotFoundError):
        _remotely(path, lambda: path.fs.rm_file(path.path))


def remove_folder(path: AnyPath) -> None:
    """Remove a folder (or file) and its contents, if it exists."""
    if isinstance(path, Path):
        shutil.rmtree(path, ignore_errors=True)
        return
    path.fs.invalidate_cache()
    with suppress(FileNotFoundError):
        _remotely(path, lambda: path.fs.rm(path.path, recursive=True))


def retried(
    work: Callable[[], Result],
    may_pass: Callable[[BaseException], bool],
    attempts: int = ATTEMPTS,
    sleep: Callable[[float], None] = time.sleep,
) -> Result:
    """Call `work`, and retry it with growing waits while its error may be temporary."""
    from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

    retrying = Retrying(
        stop=stop_after_attempt(attempts),
        wait=wait_random_exponential(multiplier=BACKOFF_SECONDS, max=LONGEST_BACKOFF_SECONDS),
        retry=retry_if_exception(may_pass),
        sleep=sleep,
        reraise=True,
    )
    return retrying(work)


def _remotely(path: "UPath", work: Callable[[], Result]) -> Result:
    """Call `work` on a remote file, with retries. Raises FileNotFoundError, or ValueError naming the file."""
    if hasattr(path.fs, "retries"):
        path.fs.retries = 1  # by default s3fs itself retries each attempt five times
    try:
        return retried(work, _may_pass)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is not there") from None
    except Exception as error:  # the client libraries' errors have no common type
        if _status(error) == 404:
            raise FileNotFoundError(f"{path} is not there") from None
        raise ValueError(f"{path}: {_plain(error)}") from None


def _status(error: Exception) -> int | None:
    """The HTTP status behind an error of a client library."""
    status = getattr(error, "status", None)
    return status if isinstance(status, int) else None


def _may_pass(error: BaseException) -> bool:
    """Whether another attempt may help: not if the file is missing or forbidden, or if the request is wrong."""
    if not isinstance(error, Exception) or isinstance(error, FileNotFoundError | PermissionError | TypeError):
        return False
    if isinstance(error, ValueError) or type(error).__name__ in ("NoCredentialsError", "ParamValidationError"):
        return False
    status = _status(error)
    return status is None or status >= 500 or status in (408, 429)


def _plain(error: Exception) -> str:
    """The error in one line, and what to do."""
    if "range requests" in str(error):
        return (
            "the server answers range requests with the whole file, so samples cannot be read one by one; use a server "
            "that has them, or copy the folder here"
        )
    if _status(error) is not None:
        what = f"the server answers {_status(error)}"
    elif isinstance(error, TimeoutError):
        what = "no answer in time"
    else:
        what = printable(error)[:200] or type(error).__name__
    tried = f", after {ATTEMPTS} attempts" if _may_pass(error) else ""
    return f"cannot be read or written ({what}{tried}); try again later, the same command goes on"
