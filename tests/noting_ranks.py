"""Ranks that train nothing but note which films every step took. Started by tests/distributed/test_elastic.py.

    python -m noting_ranks SHARDS FOLDER GLOBAL_BATCH STEPS HANG_AFTER

Rank 0 writes `step<TAB>ids` lines, the ids in the order of the ranks, and every second step the stream's state. After
step HANG_AFTER all ranks wait, their readers at work, to be killed.
"""

import json
import signal
import sys
from itertools import chain
from pathlib import Path

import torch.distributed as dist

from genre_dist.atomic import atomic_file
from genre_dist.stream import ShardReader, TrainStream, load_manifest


def main() -> None:
    shards, folder = sys.argv[1], Path(sys.argv[2])
    global_batch, steps, hang_after = map(int, sys.argv[3:])
    dist.init_process_group("gloo")
    world, rank = dist.get_world_size(), dist.get_rank()
    reader = ShardReader(load_manifest(shards), "train", ("poster", "overview"), 64)
    stream = TrainStream(reader, global_batch=global_batch, micro_batch=2, seed=5, world=world, rank=rank, workers=1)
    saved = folder / "state.json"
    if saved.exists():
        stream.load_state_dict(json.loads(saved.read_text()))
    while stream.position < steps:
        for micro_batches in stream:
            own = [film for batch in micro_batches for film in batch.ids.tolist()]
            everybodys: list[list[int]] = [[]] * world
            dist.all_gather_object(everybodys, own)
            if rank == 0:
                with open(folder / "noted.tsv", "a") as file:
                    file.write(f"{stream.position - 1}\t{' '.join(map(str, chain(*everybodys)))}\n")
                if stream.position % 2 == 0:
                    with atomic_file(saved, "w") as file:
                        json.dump(stream.state_dict(), file)
            dist.barrier()
            if stream.position == hang_after:
                (folder / f"waiting-{world}-{rank}").touch()
                signal.pause()
            if stream.position == steps:
                break
    stream.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
