"""The world changes while an epoch runs, and every step takes the films it would have taken anyway."""

from functools import partial
from pathlib import Path

from helpers import Processes, until

from genre_dist.stream import ShardReader, TrainStream, load_manifest

GLOBAL_BATCH = 12


def noted(folder: Path) -> list[tuple[int, list[int]]]:
    """Steps and their films as the ranks wrote them, in the order of writing."""
    lines = [line.split("\t") for line in (folder / "noted.tsv").read_text().splitlines()]
    return [(int(step), [int(film) for film in films.split()]) for step, films in lines]


def all_wait_or_one_ended(folder: Path, ranks: Processes) -> bool:
    world = len(ranks.children)
    waiting = all((folder / f"waiting-{world}-{rank}").exists() for rank in range(world))
    return waiting or any(child.poll() is not None for child in ranks.children)


def test_two_ranks_killed_in_mid_epoch_go_on_as_three_then_four_then_one_with_the_films_of_every_step_unchanged(
    sample_shards: Path, tmp_path: Path
) -> None:
    reader = ShardReader(load_manifest(sample_shards), "train", ("poster", "overview"), 64)
    uninterrupted = TrainStream(reader, global_batch=GLOBAL_BATCH, micro_batch=GLOBAL_BATCH, seed=5, workers=0)
    epoch = len(uninterrupted)
    steps = 2 * epoch
    kills = {2: epoch // 2, 3: epoch + 3, 4: epoch + epoch // 2 + 2}  # ranks -> after which step
    for world, last in (*kills.items(), (1, 0)):
        with Processes(tmp_path / f"log-{world}") as ranks:
            arguments = [str(sample_shards), str(tmp_path), *map(str, (GLOBAL_BATCH, steps, last))]
            ranks.start_ranks(world, arguments, module="noting_ranks")
            if last:
                until(partial(all_wait_or_one_ended, tmp_path, ranks), 90, f"step {last} on {world} ranks")
                assert all(child.poll() is None for child in ranks.children), ranks.output()
                ranks.kill()  # SIGKILL, with the readers
            else:
                ranks.succeed()
    wanted = [[film for batch in step for film in batch.ids.tolist()] for _ in range(2) for step in uninterrupted]
    told = noted(tmp_path)
    assert all(films == wanted[step] for step, films in told)
    assert [step for step in range(steps) if step not in {step for step, _ in told}] == []
    assert 0 < len(told) - steps <= len(kills)  # done again: the steps since the last state
