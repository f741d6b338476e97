"""The journal of a fetch: an append-only file with a JSON object a line, the only record of finished requests.

A line is written before the next request's result is handled, so a killed process loses no recorded line. Lines are
synced to the disk in groups, so a power cut loses at most the last group. Each line ends in a checksum.
"""

import json
import mmap
import os
import time
import zlib
from array import array
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Le, Len, Predicate
from pydantic import StringConstraints, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from genre_dist.printable import printable
from genre_dist.tmdb.answers import MOST_LISTED, FilmId
from genre_dist.validation import Count, Sha256

LINES_PER_SYNC = 500
SECONDS_PER_SYNC = 2.0
IDS_PER_BLOCK = 256
LONGEST_LINE = 16 << 20
_SUM = b',"crc":"'


def is_time(text: str) -> bool:
    """Whether a text is a time with its zone, in the years that a catalogue can hold."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC) >= datetime(1970, 1, 1, tzinfo=UTC)
    except (ValueError, TypeError, OverflowError):
        return False


WindowKey = Annotated[str, StringConstraints(pattern=r"^\S+ [0-9]{4}-[0-9]{2}-[0-9]{2}\.\.[0-9]{4}-[0-9]{2}-[0-9]{2}$")]
Int32 = Annotated[int, Ge(-(2**31)), Le(2**31 - 1)]


class FilmRow(TypedDict):
    """A row of the catalogue without its poster's columns."""

    tmdb_id: FilmId
    imdb_id: str | None
    title: str | None
    original_language: str | None
    overview: str | None
    genre_ids: list[Int32] | None
    release_date: str | None
    poster_path: str | None
    popularity: float | None
    adult: bool | None
    fetched_at: Annotated[str, Predicate(is_time)] | None


class Line(TypedDict, total=False):
    """The keys of all kinds of lines. A line's first key names its kind; `State` knows which keys belong to it."""

    film: FilmRow
    poster: FilmId
    path: str
    status: str
    bytes: Count
    sha256: Sha256 | Literal[""]
    page: Count
    of: WindowKey
    pages: Count
    results: Count
    ids: Annotated[list[FilmId], Len(0, MOST_LISTED)]
    again: WindowKey
    split: WindowKey
    window: WindowKey
    passed_over: FilmId
    query: str
    refresh: Annotated[list[int], Len(0, 10_000)]
    refreshed: str
    failed: str


_LINE = TypeAdapter(Line)
_KEYS = {*Line.__annotations__, "films", "reason", "at"}
"""Keys of older versions' lines, which have no checksum; any other key may be a damaged `crc`."""


def _written(line: dict[str, Any]) -> bytes:
    body = json.dumps(line, separators=(",", ":")).encode()[:-1]
    return b'%s%s%08x"}\n' % (body, _SUM, zlib.crc32(body))


def _read(text: bytes, is_old: bool = False) -> Line | None:
    """A line's content; None if it is damaged. Only lines of older versions, which come first, lack a checksum."""
    body, mark, rest = text.rpartition(_SUM)
    if (mark or not is_old) and rest != b'%08x"}\n' % zlib.crc32(body):
        return None
    try:
        line = _LINE.validate_json(text, strict=True)
    except ValidationError:
        return None
    return None if is_old and not mark and not json.loads(text).keys() <= _KEYS else line


class Journal:
    """An append-only file of JSON lines, guarded by the catalogue's lock. Use it in a `with` block."""

    def __init__(self, path: Path) -> None:
        """Open or create it; a torn last line, left by a kill, is cut off."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.writer = path.open("ab", buffering=0)
        self.reader = path.open("rb")
        self.end = 0
        if os.fstat(self.reader.fileno()).st_size:
            with mmap.mmap(self.reader.fileno(), 0, access=mmap.ACCESS_READ) as whole:
                self.end = whole.rfind(b"\n") + 1
        self.writer.truncate(self.end)
        self.unsynced, self.synced_at = 0, time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.unsynced:
            os.fsync(self.writer.fileno())
        self.reader.close()
        self.writer.close()

    def append(self, *lines: dict[str, Any]) -> list[tuple[int, Line]]:
        """Write lines together; returns each as it will be read, with its byte offset.

        Raises OSError when the disk is full, and ValueError for a line that could not be read again.
        """
        encoded = [_written(line) for line in lines]
        appended = []
        end = self.end
        for text in encoded:
            if (line := _read(text)) is None:
                raise ValueError(f"{self.path} cannot hold {printable(text.decode())[:300]}; mend or delete that film")
            appended.append((end, line))
            end += len(text)
        left = memoryview(b"".join(encoded))
        while left:  # on a nearly full disk a write may be partial
            left = left[self.writer.write(left) :]
        self.end = end
        self.unsynced += len(lines)
        if self.unsynced >= LINES_PER_SYNC or time.monotonic() - self.synced_at > SECONDS_PER_SYNC:
            os.fsync(self.writer.fileno())
            self.unsynced, self.synced_at = 0, time.monotonic()
        return appended

    def read(self, offset: int) -> Line:
        """The line at an offset from `append` or `lines`. Raises ValueError if the line has changed since."""
        self.reader.seek(offset)
        line = _read(self.reader.readline(LONGEST_LINE), is_old=True)  # `lines` has checked where old lines end
        if line is None:
            raise ValueError(f"{self.path}, byte {offset}: damaged while it was in use; run the same command again")
        return line

    def lines(self) -> Iterator[tuple[int, Line | None]]:
        """Every line with its offset, from the first; None for a damaged line."""
        offset, is_old = 0, True
        with self.path.open("rb") as file:
            for text in iter(partial(file.readline, LONGEST_LINE), b""):
                is_old = is_old and _SUM not in text
                yield offset, _read(text, is_old)
                offset += len(text)


class Offsets:
    """Film id -> byte offset in the journal, in about 8 bytes a film: TMDB numbers its films nearly without gaps."""

    def __init__(self) -> None:
        self._blocks: dict[int, array[int]] = {}  # -1 where there is no film
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, film: int) -> bool:
        return self.get(film) is not None

    def __setitem__(self, film: int, offset: int) -> None:
        number, index = divmod(film, IDS_PER_BLOCK)
        block = self._blocks.get(number) or self._blocks.setdefault(number, array("q", [-1]) * IDS_PER_BLOCK)
        self._count += (offset >= 0) - (block[index] >= 0)
        block[index] = offset

    def discard(self, film: int) -> None:
        """Remove a film, if it has an offset."""
        self[film] = -1

    def get(self, film: int) -> int | None:
        """The film's offset, or None."""
        number, index = divmod(film, IDS_PER_BLOCK)
        offset = self._blocks[number][index] if number in self._blocks else -1
        return None if offset < 0 else offset

    def __iter__(self) -> Iterator[int]:
        """The films, ascending."""
        for number in sorted(self._blocks):
            yield from (number * IDS_PER_BLOCK + index for index, n in enumerate(self._blocks[number]) if n >= 0)
