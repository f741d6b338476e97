"""The index of one WebDataset tar: where its samples lie, where its links lead, and what in it is not read."""

import posixpath
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from genre_dist.stream.index import RECORD
from genre_dist.stream.keys import sample_id, split_name
from genre_dist.stream.tar import BLOCK, FILE, HARD_LINK, SYMBOLIC_LINK, Member, behind_zeros, entries, mapped, padded

MOST_EXTENSIONS = 16  # bits of the index's `has`
MOST_HOPS = 40
"""Links that lead to links, one after the other."""
LONGEST_TOLD = 200
PADDING_BYTES = 10_240 + 2 * BLOCK
"""Zeros at the end of a tar: its end mark, filled up to a whole record of tar's."""


class TarIndex(NamedTuple):
    """What `read_index` found."""

    records: NDArray[np.void]
    """RECORD [samples]; `has` has a bit for every extension."""
    extensions: tuple[str, ...]
    """In the order of their bits."""
    links: NDArray[np.int64]
    """[n, 3] for each link that leads to a file of the tar: where its header begins, where the file does, its size."""
    notes: tuple[str, ...]
    """A line for whatever is not read, or odd."""


def read_index(path: Path) -> TarIndex:
    """Index a local tar by its headers.

    Raises ValueError, where it can with the byte, for what is no tar, compressed, damaged, or no samples.
    """
    reading = _Reading(mapped(path))
    records = np.array(list(reading.records()), RECORD)
    if not len(records):
        raise ValueError("no samples in it: members are named KEY.EXTENSION")
    reading.check_keys(records)
    links = np.array(reading.links, np.int64).reshape(-1, 3)
    return TarIndex(records, tuple(reading.bits), links, tuple(reading.notes()))


class _Reading:
    """One pass over a tar."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self.bits: dict[str, int] = {}
        """Extension -> number of its bit."""
        self.links: list[tuple[int, int, int]] = []
        self._passed_over: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        self._end = 0

    def records(self) -> Iterator[tuple[int, int, int, int, int]]:
        """A record for each run of members that share a key."""
        for key, group in groupby(self._members(), key=lambda pair: pair[0][0]):
            has, first, end = 0, -1, 0
            for (_, extension), member in group:
                bit = 1 << self.bits.setdefault(extension, len(self.bits))
                if has & bit:
                    raise ValueError(f"two members {member.name!r} in one sample, the second at byte {member.header}")
                has |= bit
                first = member.header if first < 0 else first
                end = min(member.start + padded(member.size), len(self._data))  # the last one may lack its padding
            if len(self.bits) > MOST_EXTENSIONS:
                raise ValueError(f"more than {MOST_EXTENSIONS} kinds of members: {', '.join(self.bits)[:1000]}")
            if end - first >= 1 << 32:
                raise ValueError(f"the sample {key!r} has {end - first:,} bytes; 4 GiB is the most")
            yield sample_id(key), first, end - first, 0, has

    def _members(self) -> Iterator[tuple[tuple[str, str], Member]]:
        """The members of samples, links to files included; what is passed over is noted."""
        for entry in entries(self._data):
            self._end = entry.start + padded(entry.size)
            named = split_name(entry.name)
            if entry.kind != FILE and not self._leads_to_a_file(entry):
                continue
            if named is None or not named[1].isprintable():
                self._pass_over("of no sample (KEY.EXTENSION)", entry)
                continue
            yield named, entry

    def _leads_to_a_file(self, entry: Member) -> bool:
        """Note where a link leads, or that an entry is none."""
        if entry.kind in (HARD_LINK, SYMBOLIC_LINK):
            target: Member | None = entry
            for _ in range(MOST_HOPS):
                target = target and self._target(target)
            if target is not None and target.kind == FILE:
                self.links.append((entry.header, target.start, target.size))
                return True
            self._pass_over(f"a {entry.kind} to no file of this tar", entry)
        elif entry.kind != "folder":
            self._pass_over(f"a {entry.kind}", entry)
        return False

    def _target(self, entry: Member) -> Member | None:
        if entry.kind not in (HARD_LINK, SYMBOLIC_LINK):
            return entry
        folder = posixpath.dirname(entry.name) if entry.kind == SYMBOLIC_LINK else ""
        return self._by_name.get(posixpath.normpath(posixpath.join(folder, entry.target)))

    @cached_property
    def _by_name(self) -> dict[str, Member]:
        """All that links could lead to, looked up once there is a link."""
        return {posixpath.normpath(entry.name): entry for entry in entries(self._data)}

    def _pass_over(self, reason: str, entry: Member) -> None:
        self._passed_over[reason] += 1
        target = f" -> {entry.target[:LONGEST_TOLD]!r}" if entry.target else ""
        self._examples.setdefault(reason, f"{entry.name[:LONGEST_TOLD]!r}{target}")

    def check_keys(self, records: NDArray[np.void]) -> None:
        """Raises ValueError for a key that comes twice. (`1` and `01` are two keys, though both have the id 1.)"""
        values, counts = np.unique(records["id"], return_counts=True)
        if not (again := values[counts > 1]).size:
            return
        seen: set[str] = set()
        for key, _ in groupby(named[0] for named, _ in _Reading(self._data)._members()):
            if key in seen:
                raise ValueError(
                    f"the sample {key!r} is there twice, or its members lie apart; they must follow each other"
                )
            if sample_id(key) in again:
                seen.add(key)

    def notes(self) -> Iterator[str]:
        """What is not read, and what is odd about the end: a tar that was cut looks like one with fewer members."""
        if self.links:
            yield f"{len(self.links):,} members are links to other members of the tar, which are read in their place"
        for reason, count in self._passed_over.items():
            yield f"{count:,} not read: {reason}, such as {self._examples[reason]}"
        zeros = min(behind_zeros(self._data, self._end), len(self._data)) - self._end
        left_over = len(self._data) - self._end - zeros
        if zeros < 2 * BLOCK:
            yield "no end mark: samples are missing if the tar was cut"
        if zeros > PADDING_BYTES:
            yield f"{zeros:,} zeros at its end, more than tar writes: samples are missing if it was not copied whole"
        if left_over:
            yield f"{left_over:,} bytes behind its end mark are no tar and not read"
