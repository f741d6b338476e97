"""Indexes made from tar headers: for packed shards whose index was lost, and for any WebDataset tars."""

import hashlib
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from genre_dist.atomic import atomic_file
from genre_dist.sample_ids import id_of_key, number_of_id
from genre_dist.schema import TMDB, Schema
from genre_dist.storage import AnyPath, file_size, local_copy
from genre_dist.stream.index import RECORD, index_path, save_array
from genre_dist.stream.manifest import Manifest
from genre_dist.stream.sample import load_tokens
from genre_dist.stream.tar import (
    BLOCK,
    FILE,
    HARD_LINK,
    SYMBOLIC_LINK,
    Member,
    behind_zeros,
    entries,
    mapped,
    members,
    padded,
)

MOST_EXTENSIONS = 16  # bits of the index's `has`
MOST_HOPS = 40
"""Links in a chain of links to links."""
LONGEST_QUOTE = 200
PADDING_BYTES = 10_240 + 2 * BLOCK
"""Zeros at the end of a tar: its end mark, padded to a whole record of tar."""
_REMEDY = "fetch or pack it again"
_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")  # WebDataset's rule: the key ends at the first dot of the name


_Sample = tuple[str, dict[str, Member], int, int]
"""Key, members by extension, offset of the first header, and padded bytes from there to the last member's end."""


def _samples(data: memoryview, named: Iterable[tuple[str, str, Member]]) -> Iterator[_Sample]:
    """The samples of a tar (neighbours with the same key) from the (key, extension, member) of its members."""
    for key, group in groupby(named, key=itemgetter(0)):
        parts = dict[str, Member]()
        for _, extension, member in group:
            if extension in parts:
                raise ValueError(f"two members {member.name!r} in one sample, the second at byte {member.header}")
            parts[extension] = member
        first, last = next(iter(parts.values())), member
        end = min(last.start + padded(last.size), len(data))  # the tar's last member may lack its padding
        if end - first.header >= 1 << 32:
            raise ValueError(f"the sample {key[:80]!r} has {end - first.header:,} bytes; 4 GiB is the most")
        yield key, parts, first.header, end - first.header


class Indexed(NamedTuple):
    """The result of `index_shards`."""

    samples: int
    unread: int
    """Samples whose text cannot be read; the index has them nevertheless."""


def index_shards(manifest: Manifest) -> Indexed:
    """Write the index of every shard of a manifest, byte for byte as packing wrote it.

    Raises ValueError with the shard, and the byte of damage, if a tar is damaged or differs from the manifest.
    """
    samples = unread = 0
    for shard in manifest.shards:
        path = manifest.folder / shard.file
        records, without_text = index_tar(path, shard.bytes, int(manifest.text["words"]), manifest.declared)
        names = ((), *((name,) for name in manifest.declared.by_name), tuple(manifest.declared.by_name))
        for fields in names:
            mask, wanted = manifest.mask(shard, fields), manifest.count(shard, fields)
            if (count := int(np.sum((records["has"] & mask) == mask))) != wanted:
                which = f" with {' and '.join(fields)}" if fields else ""
                raise ValueError(f"{path}: {count} samples{which} where the manifest has {wanted}; {_REMEDY}")
        with atomic_file(index_path(path)) as file:
            save_array(records, file)
        samples, unread = samples + len(records), unread + without_text
    return Indexed(samples, unread)


def index_tar(path: AnyPath, size: int, words: int, schema: Schema = TMDB) -> tuple[NDArray[np.void], int]:
    """The index of one tar of `size` bytes, RECORD [samples], and the number of unreadable texts.

    Only headers and texts are read.
    """
    if (actual := file_size(path)) != size:
        raise ValueError(f"{path}: {actual:,} bytes where the manifest has {size:,}; {_REMEDY}")
    try:
        with local_copy(path) as local:
            records = list(_packed_records(mapped(local), words, schema))
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {_REMEDY}") from None
    unread = sum(length < 0 for *_, length, _ in records)
    return np.array([(*start, max(0, length), has) for *start, length, has in records], RECORD), unread


def _packed_records(data: memoryview, words: int, schema: Schema) -> Iterator[tuple[int, int, int, int, int]]:
    """A record for each sample; an unreadable text has the length -1."""
    named = ((key, extension, member) for member in members(data) for key, _, extension in [member.name.partition(".")])
    for key, parts, start, size in _samples(data, named):
        number = _packed_id(key) if schema == TMDB else number_of_id(id_of_key(key))
        there = [field for field in schema.fields if field.extension in parts]
        texts = [parts[field.extension] for field in there if field.kind == "text"]
        try:
            lengths = [len(load_tokens(data[text.start : text.start + text.size], words)) for text in texts]
            length = min(max(lengths, default=0), 65_535)
        except ValueError:  # this sample alone; readers report it
            length = -1
        yield number, start, size, length, sum(schema.bit(field.name) for field in there)


def _packed_id(key: str) -> int:
    if not (key.isascii() and key.isdecimal() and len(key) <= 18):
        raise ValueError(f"the member {key[:80]!r} is not named by a film's id")
    return int(key)


def split_name(name: str) -> tuple[str, str] | None:
    """Key and extension of a member; None for a file that belongs to no sample."""
    match = _NAME.fullmatch(name.removeprefix("./"))
    return (match[1], match[2].lower()) if match else None


def sample_id(key: str) -> int:
    """A sample's id: its key as a number (`000000012` is 12), or a hash of the key. Two keys may share an id."""
    base = key.rpartition("/")[2]
    if base == key and base.isascii() and base.isdecimal() and len(base) <= 18:
        return int(base)
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big") >> 1


class TarIndex(NamedTuple):
    """The result of `read_index`."""

    records: NDArray[np.void]
    """RECORD [samples]; `has` has a bit for every extension."""
    extensions: tuple[str, ...]
    """Extensions in the order of their bits."""
    links: NDArray[np.int64]
    """[n, 3] for each link to a file of the tar: offset of its header, offset and size of the file."""
    notes: tuple[str, ...]
    """A line for each kind of skipped entry and each oddity."""


def read_index(path: Path) -> TarIndex:
    """Index a local tar by its headers.

    Raises ValueError, with the byte if known, if it is no tar, compressed, damaged, or without samples.
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
        """Extension -> its bit."""
        self.links: list[tuple[int, int, int]] = []
        self._passed_over: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        self._end = 0

    def records(self) -> Iterator[tuple[int, int, int, int, int]]:
        """A record for each sample."""
        for key, parts, start, size in _samples(self._data, self._members()):
            has = sum(1 << self.bits.setdefault(extension, len(self.bits)) for extension in parts)
            if len(self.bits) > MOST_EXTENSIONS:
                raise ValueError(f"more than {MOST_EXTENSIONS} kinds of members: {', '.join(self.bits)[:1000]}")
            yield sample_id(key), start, size, 0, has

    def _members(self) -> Iterator[tuple[str, str, Member]]:
        """Key, extension and member of each file or link that belongs to a sample; other entries become notes."""
        for entry in entries(self._data):
            self._end = entry.start + padded(entry.size)
            named = split_name(entry.name)
            if entry.kind != FILE and not self._leads_to_a_file(entry):
                continue
            if named is None or not named[1].isprintable():
                self._pass_over("of no sample (KEY.EXTENSION)", entry)
                continue
            yield *named, entry

    def _leads_to_a_file(self, entry: Member) -> bool:
        """Whether an entry is a link to a file of this tar, whose target is noted; other entries become notes."""
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
        """Possible targets of links; built once a link appears."""
        return {posixpath.normpath(entry.name): entry for entry in entries(self._data)}

    def _pass_over(self, reason: str, entry: Member) -> None:
        self._passed_over[reason] += 1
        target = f" -> {entry.target[:LONGEST_QUOTE]!r}" if entry.target else ""
        self._examples.setdefault(reason, f"{entry.name[:LONGEST_QUOTE]!r}{target}")

    def check_keys(self, records: NDArray[np.void]) -> None:
        """Raises ValueError for a repeated key. (`1` and `01` are two keys, though both have the id 1.)"""
        values, counts = np.unique(records["id"], return_counts=True)
        if not (again := values[counts > 1]).size:
            return
        seen: set[str] = set()
        for key, _ in groupby(map(itemgetter(0), _Reading(self._data)._members())):
            if key in seen:
                raise ValueError(
                    f"the sample {key!r} is there twice, or its members lie apart; they must follow each other"
                )
            if sample_id(key) in again:
                seen.add(key)

    def notes(self) -> Iterator[str]:
        """Lines on skipped entries and on an odd end: a truncated tar looks like one with fewer members."""
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
