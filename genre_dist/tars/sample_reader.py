"""The reader of a split, whatever its samples lie in: packed shards, shards of encodings, or anyone's tars."""

from genre_dist.stream.cache import BlockCache
from genre_dist.stream.manifest import Manifest, TarManifest
from genre_dist.stream.reader import ShardReader


def reader_of(
    manifest: Manifest,
    split: str,
    wanted: tuple[str, ...],
    max_tokens: int,
    decode: bool = True,
    cache: BlockCache | None = None,
    any_of: bool = False,
) -> ShardReader:
    """A reader of the samples of a split, see `ShardReader`. Images of tars are always decoded by the reader."""
    if isinstance(manifest, TarManifest):
        # packed shards need none of the packages that read images of any kind
        from genre_dist.tars.tar_sample_reader import TarSampleReader

        return TarSampleReader(manifest, split, wanted, max_tokens, True, cache, any_of)
    return ShardReader(manifest, split, wanted, max_tokens, decode, cache, any_of)
