"""Making the index of a shard again from its tar, where it was lost or damaged."""

from collections.abc import Iterator
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from genre_dist.atomic import atomic_file
from genre_dist.storage import Place, local_copy
from genre_dist.stream.index import FLAGS, RECORD, index_path, save_array
from genre_dist.stream.manifest import Manifest
from genre_dist.stream.sample import MEMBER_OF, load_tokens
from genre_dist.stream.tar import Member, mapped, members, padded


def index_shards(manifest: Manifest) -> int:
    """Write the index of every shard of a manifest, byte for byte as packing wrote it; returns the number of samples.

    Raises ValueError naming the shard and byte where a tar is damaged, or one that has not the manifest's samples.
    """
    samples = 0
    for shard in manifest.shards:
        path = manifest.folder / shard.file
        records = index_tar(path, int(manifest.text["words"]))
        if len(records) != shard.samples:
            raise ValueError(f"{path}: {len(records)} samples where the manifest has {shard.samples}; pack it again")
        with atomic_file(index_path(path)) as file:
            save_array(records, file)
        samples += len(records)
    return samples


def index_tar(path: Place, words: int) -> NDArray[np.void]:
    """The index of one tar, RECORD [samples]; only its headers and texts are read."""
    try:
        with local_copy(path) as local:
            return np.array(list(_records(mapped(local), words)), RECORD)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; fetch or pack it again") from None


def _records(data: memoryview, words: int) -> Iterator[tuple[int, int, int, int, int]]:
    """A record for each run of members that share a film's id."""
    for key, group in groupby(members(data), key=lambda member: member.name.partition(".")[0]):
        parts: dict[str, Member] = {member.name.partition(".")[2]: member for member in group}
        if not key.isdecimal():
            raise ValueError(f"the member {key} is not named by a film's id")
        first, last = min(part.header for part in parts.values()), max(parts.values(), key=lambda part: part.start)
        length = 0
        if text := parts.get(MEMBER_OF["overview"]):
            length = len(load_tokens(data[text.start : text.start + text.size], words))
        has = sum(FLAGS[name] for name, extension in MEMBER_OF.items() if extension in parts)
        yield int(key), first, last.start + padded(last.size) - first, min(length, 65_535), has
