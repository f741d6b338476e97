"""Making the index of a shard again from its tar, where it was lost or damaged."""

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from genre_dist.atomic import atomic_file
from genre_dist.storage import Place, file_size, local_copy
from genre_dist.stream.index import FLAGS, OVERVIEW, POSTER, RECORD, index_path, save_array
from genre_dist.stream.manifest import Manifest
from genre_dist.stream.sample import MEMBER_OF, load_tokens
from genre_dist.stream.tar import Member, mapped, members, padded

_REMEDY = "fetch or pack it again"


class Indexed(NamedTuple):
    """What `index_shards` did."""

    samples: int
    unread: int
    """Samples whose text cannot be read; they are in the index all the same."""


def index_shards(manifest: Manifest) -> Indexed:
    """Write the index of every shard of a manifest, byte for byte as packing wrote it.

    Raises ValueError naming the shard and byte where a tar is damaged, or one that is not as the manifest says.
    """
    samples = unread = 0
    for shard in manifest.shards:
        path = manifest.folder / shard.file
        records, without_text = index_tar(path, shard.bytes, int(manifest.text["words"]))
        found = [int(np.sum((records["has"] & mask) == mask)) for mask in (0, POSTER, OVERVIEW, POSTER | OVERVIEW)]
        if found != [shard.samples, shard.poster, shard.overview, shard.both]:
            raise ValueError(
                f"{path}: {found[0]} samples, {found[1]} with a poster, {found[2]} with a text, where the manifest has "
                f"{shard.samples}, {shard.poster} and {shard.overview}; {_REMEDY}"
            )
        with atomic_file(index_path(path)) as file:
            save_array(records, file)
        samples, unread = samples + len(records), unread + without_text
    return Indexed(samples, unread)


def index_tar(path: Place, size: int, words: int) -> tuple[NDArray[np.void], int]:
    """The index of one tar of `size` bytes, RECORD [samples], and how many texts cannot be read.

    Only its headers and texts are looked at.
    """
    if (found := file_size(path)) != size:
        raise ValueError(f"{path}: {found:,} bytes where the manifest has {size:,}; {_REMEDY}")
    try:
        with local_copy(path) as local:
            records = list(_records(mapped(local), words))
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {_REMEDY}") from None
    unread = sum(length < 0 for *_, length, _ in records)
    return np.array([(*place, max(0, length), has) for *place, length, has in records], RECORD), unread


def _records(data: memoryview, words: int) -> Iterator[tuple[int, int, int, int, int]]:
    """A record for each run of members that share a film's id; the length of a text that cannot be read is -1."""
    for key, group in groupby(members(data), key=lambda member: member.name.partition(".")[0]):
        parts: dict[str, Member] = {member.name.partition(".")[2]: member for member in group}
        if not (key.isascii() and key.isdecimal() and len(key) <= 18):
            raise ValueError(f"the member {key[:80]!r} is not named by a film's id")
        first, last = min(part.header for part in parts.values()), max(parts.values(), key=lambda part: part.start)
        length, end = 0, last.start + padded(last.size)
        if end - first >= 1 << 32:
            raise ValueError(f"the film {key} has {end - first:,} bytes; 4 GiB is the most")
        if text := parts.get(MEMBER_OF["overview"]):
            try:
                length = min(len(load_tokens(data[text.start : text.start + text.size], words)), 65_535)
            except ValueError:  # of this film alone: whoever reads it is told
                length = -1
        has = sum(FLAGS[name] for name, extension in MEMBER_OF.items() if extension in parts)
        yield int(key), first, end - first, length, has
