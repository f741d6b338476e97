"""Training's entry point, the module torchrun runs:

    torchrun --nproc_per_node=4 -m genre_dist.train --config configs/end_to_end.yaml --data.shards shards/default

Without arguments it trains the default experiment on the default shards. Started again on the same `run.dir`, it
continues. Exit codes: 0 finished, 2 something for the user to change, 70 a rank hung, 75 stopped early and to be
continued. torchrun itself ends with 1 instead of any of these; under it the code is in the run's folder too.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from genre_dist.config import Config, derive_batches
from genre_dist.configfile import parse_config
from genre_dist.lock import BusyError
from genre_dist.parallel.launcher import PREEMPTED, note_exit_code, restarted, settle, settled, world_size
from genre_dist.parallel.one_run import one_run
from genre_dist.printable import printable


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, train, and turn the user's mistakes into one line and exit code 2."""
    if (code := settled()) is not None:
        return code
    try:
        parsed = parse_config(sys.argv[1:] if argv is None else argv)
        config = parsed.config
        if restarted():  # what this launch has trained so far is not the earlier run that was to go
            config = replace(config, run=replace(config.run, overwrite=False))
        return dry_run(config) if parsed.dry_run else train(config)
    except (ValueError, OSError, MemoryError) as error:
        print(f"error: {printable(error) or type(error).__name__}", file=sys.stderr, flush=True)
        if isinstance(error, ValueError):  # after other errors another attempt may go further
            settle(2)
        return 2


def train(config: Config) -> int:
    """Join the other ranks and train. Raises BusyError, before torch is imported, if another start is at it."""
    folder = Path(config.run.dir)
    with one_run(folder) as held:
        from genre_dist.parallel.strategy import check_strategy, strategy_name
        from genre_dist.parallel.world import all_ranks
        from genre_dist.training.determinism import before_cuda_is_used
        from genre_dist.training.loop import run_training

        try:
            check_strategy(config, world_size())  # what is wrong whoever joins is told before anybody waits
            derive_batches(config.data, world_size())
            before_cuda_is_used(config.train.deterministic)
            group = strategy_name(config, world_size()) not in ("single", "ddp")
            with all_ranks(config.parallel.timeout_seconds, group) as world:
                held.share(world)
                note_exit_code(folder, None)
                code = run_training(config, world, _evaluate)
                _note(folder, code)  # before any rank goes: torchrun ends the others when one has ended early
        except BusyError:
            raise
        except (ValueError, SystemExit) as error:
            _note(folder, error.code if isinstance(error, SystemExit) else 2)
            raise
        return code


def _note(folder: Path, code: object) -> None:
    """Note how the run ended, where that is not for another attempt to change."""
    if code in (0, 2, PREEMPTED):
        note_exit_code(folder, int(code))
    if code in (2, PREEMPTED):
        settle(int(code))


def dry_run(config: Config) -> int:
    """Print what would be trained and at what cost."""
    from genre_dist.training.estimate import estimate

    print(estimate(config, world_size()))
    return 0


def _evaluate(experiment: Any, split: str, stop: Any, final: bool) -> dict[str, Any] | None:
    from genre_dist.stream.reader import ShardReader
    from genre_dist.study.evaluation import evaluate, print_evaluation, save_evaluation
    from genre_dist.study.examples import example_films

    config = experiment.config
    evaluation = evaluate(
        experiment.model,
        experiment.encodings or experiment.manifest,
        split,
        config.model.members,
        config.data,
        experiment.micro_batch,
        experiment.world,
        experiment.autocast,
        stop.interrupted,
        experiment.evaluation_size,
    )
    if evaluation is None:
        return None
    if final:
        print_evaluation(save_evaluation(evaluation, Path(config.run.dir)))
    tracking, members = config.tracking, config.model.members
    if tracking.films == 0 or (tracking.wandb == "off" and not tracking.tensorboard):
        return evaluation.metrics
    reader = ShardReader(experiment.manifest, split, members, config.data.max_tokens)
    return evaluation.metrics | {"films_shown": example_films(evaluation, reader, tracking.films)}


if __name__ == "__main__":
    sys.exit(main())
