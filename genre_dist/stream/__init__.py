"""Reading shards: the manifest and index, the order of samples (pure), the reader, and the image transforms.

Usable by itself, with any trainer:

    from genre_dist.stream import ShardReader, TrainStream, load_manifest

    reader = ShardReader(load_manifest("shards/default"), "train", ("poster", "overview"), max_tokens=256)
    stream = TrainStream(reader, global_batch=64, micro_batch=16, seed=0, world=world, rank=rank)
    for micro_batches in stream:          # one epoch, a list of batches a step
        ...
    state = stream.state_dict()           # continues at any world size that divides the global batch

The bytes of any WebDataset tars' members, once `genre-dist index TARS --out FOLDER` has listed them:

    reader = TarReader(load_tars("listing"), ("jpg", "txt"))
    stream = TrainStream(reader, global_batch=64, micro_batch=16, seed=0, world=world, rank=rank)
    for micro_batches in stream:
        micro_batches[0].samples[0]["jpg"]
"""

from genre_dist.stream.batch import Batch
from genre_dist.stream.cache import block_cache
from genre_dist.stream.foreign import index_tars, load_tars
from genre_dist.stream.loader import TrainStream, evaluation_stream
from genre_dist.stream.manifest import load_manifest
from genre_dist.stream.order import EpochOrder
from genre_dist.stream.reader import ShardReader
from genre_dist.stream.tar_reader import TarReader

__all__ = [
    "Batch",
    "EpochOrder",
    "ShardReader",
    "TarReader",
    "TrainStream",
    "block_cache",
    "evaluation_stream",
    "index_tars",
    "load_manifest",
    "load_tars",
]
