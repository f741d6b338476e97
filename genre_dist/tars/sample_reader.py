"""The reader of a split, whatever its samples lie in: packed shards, shards of encodings, or anyone's tars."""

from genre_dist.stream.manifest import Manifest, TarManifest
from genre_dist.stream.reader import ShardReader


def reader_type(manifest: Manifest) -> type[ShardReader]:
    """The type of the readers of a manifest's samples, all made as a `ShardReader` is."""
    if not isinstance(manifest, TarManifest):
        return ShardReader  # packed shards need none of the packages that read images of any kind
    from genre_dist.tars.tar_sample_reader import TarSampleReader

    return TarSampleReader
