"""Training's entry point, the module torchrun runs:

    torchrun --nproc_per_node=4 -m genre_dist.train --config configs/end_to_end.yaml --data.shards shards/default

Without arguments it trains the default experiment on the default shards. Started again on the same `run.dir`, it
resumes the run. Exit codes: 0 finished, 2 something for the user to change, 70 a rank hung, 75 stopped early and can be
resumed. torchrun itself exits with 1 instead of these codes; under torchrun the run's folder has the code too.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace

from genre_dist.config import Config
from genre_dist.config.files import parse_config
from genre_dist.parallel.launcher import restarted, settle, settled, world_size
from genre_dist.parallel.one_run import joined
from genre_dist.printable import printable


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and train; a user's mistake ends with one line on stderr and exit code 2."""
    if (code := settled()) is not None:
        return code
    try:
        parsed = parse_config(sys.argv[1:] if argv is None else argv)
        config = parsed.config
        if restarted():  # a restart must not delete what its own launch has trained
            config = replace(config, run=replace(config.run, overwrite=False))
        return dry_run(config) if parsed.dry_run else train(config)
    except (ValueError, OSError, MemoryError) as error:
        print(f"error: {printable(error) or type(error).__name__}", file=sys.stderr, flush=True)
        if isinstance(error, ValueError):  # after other errors torchrun's restart may succeed
            settle(2)
        return 2


def train(config: Config) -> int:
    """Join the other ranks and train. Raises BusyError, before torch is imported, if another start writes the run."""
    with joined(config) as world:
        from genre_dist.training.trainer import Trainer

        return Trainer(config, world).fit()


def dry_run(config: Config) -> int:
    """Print the planned training and its cost."""
    from genre_dist.training.estimate import estimate

    print(estimate(config, world_size()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
