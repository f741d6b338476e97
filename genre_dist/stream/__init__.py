"""Reading shards: the manifest and index, the order of samples (pure), the reader, and the image transforms.

Usable by itself, with any trainer:

    from genre_dist.stream import ShardReader, TrainStream, load_manifest

    reader = ShardReader(load_manifest("shards/default"), "train", ("poster", "overview"), max_tokens=256)
    stream = TrainStream(reader, global_batch=64, micro_batch=16, seed=0, world=world, rank=rank)
    for micro_batches in stream:          # one epoch, a list of batches a step
        ...
    state = stream.state_dict()           # continues at any world size that divides the global batch
"""

from genre_dist.stream.loader import TrainStream, evaluation_stream
from genre_dist.stream.manifest import load_manifest
from genre_dist.stream.order import EpochOrder
from genre_dist.stream.reader import Batch, ShardReader

__all__ = ["Batch", "EpochOrder", "ShardReader", "TrainStream", "evaluation_stream", "load_manifest"]
