"""The journal of a fetch: one JSON object a line, only ever appended to; what is done is what it says.

A line is handed to the system before the next request's result is looked at, so a killed process loses nothing it had
recorded. It is forced to the disk in groups, so a power cut loses at most the last group.
"""

import fcntl
import json
import os
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

LINES_PER_SYNC = 500
SECONDS_PER_SYNC = 2.0
IDS_PER_BLOCK = 256


class Journal:
    """An append-only file of JSON lines, locked against a second writer. Use it in a `with` block."""

    def __init__(self, path: Path) -> None:
        """Open or create it; a torn last line, left by a kill, is cut off. ValueError if another fetch has it open."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.writer = path.open("ab", buffering=0)
        try:
            fcntl.flock(self.writer, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.writer.close()
            raise ValueError(f"another fetch is writing {path}; wait for it, or give another --out") from None
        self.reader = path.open("rb")
        self.end = self._cut_torn_line()
        self.unsynced, self.synced_at = 0, time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.fsync(self.writer.fileno())
        self.reader.close()
        self.writer.close()

    def _cut_torn_line(self) -> int:
        end = self.reader.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - (1 << 16))
            self.reader.seek(start)
            newline = self.reader.read(end - start).rfind(b"\n")
            end = start + newline + 1
            if newline >= 0:
                break
        self.writer.truncate(end)
        return end

    def append(self, *lines: dict[str, Any]) -> list[int]:
        """Write lines in one go; their byte offsets. OSError when the disk is full."""
        encoded = [json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in lines]
        offsets = []
        for line in encoded:
            offsets.append(self.end)
            self.end += len(line)
        left = memoryview(b"".join(encoded))
        while left:  # a write may take only a part, on a disk that is nearly full
            left = left[self.writer.write(left) :]
        self.unsynced += len(lines)
        if self.unsynced >= LINES_PER_SYNC or time.monotonic() - self.synced_at > SECONDS_PER_SYNC:
            os.fsync(self.writer.fileno())
            self.unsynced, self.synced_at = 0, time.monotonic()
        return offsets

    def read(self, offset: int) -> dict[str, Any]:
        """The line at an offset that `append` or `lines` gave."""
        self.reader.seek(offset)
        line: dict[str, Any] = json.loads(self.reader.readline())
        return line

    def lines(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Every line with its offset, from the first. ValueError, with the line's number, if one is no JSON object."""
        offset = 0
        with self.path.open("rb") as file:
            for number, text in enumerate(file, start=1):
                try:
                    line = json.loads(text)
                except ValueError:
                    line = None
                if not isinstance(line, dict):
                    raise ValueError(
                        f"{self.path}, line {number}: damaged. Delete the file and run again: films in movies.parquet "
                        "and their posters are kept, the others are fetched again"
                    )
                yield offset, line
                offset += len(text)


class Offsets:
    """Film id -> byte offset in the journal, in about 8 bytes a film: TMDB numbers its films nearly without gaps."""

    def __init__(self) -> None:
        self.blocks: dict[int, array[int]] = {}
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def __contains__(self, film: int) -> bool:
        return self.get(film) is not None

    def __setitem__(self, film: int, offset: int) -> None:
        number, place = divmod(film, IDS_PER_BLOCK)
        block = self.blocks.get(number)
        if block is None:
            block = self.blocks[number] = array("q", [-1]) * IDS_PER_BLOCK
        self.count += block[place] < 0
        block[place] = offset

    def get(self, film: int) -> int | None:
        """The film's offset, or None."""
        number, place = divmod(film, IDS_PER_BLOCK)
        block = self.blocks.get(number)
        return None if block is None or block[place] < 0 else block[place]

    def __iter__(self) -> Iterator[int]:
        """The films, ascending."""
        for number in sorted(self.blocks):
            for place, offset in enumerate(self.blocks[number]):
                if offset >= 0:
                    yield number * IDS_PER_BLOCK + place
