"""`genre-dist` whose rank 1 predicts slowly, under a watchdog that has little patience."""

import sys
import time
from functools import partial
from typing import Any

from genre_dist import cli
from genre_dist.inference import predict_many
from genre_dist.parallel import world

TIMEOUT_SECONDS = 3
SECONDS_A_BATCH = 1.2

if __name__ == "__main__":
    predict_batch = predict_many._predict_batch

    def slowly(films: Any, predictor: predict_many.Predictor) -> Any:
        time.sleep(SECONDS_A_BATCH * predictor.world.rank)
        return predict_batch(films, predictor)

    predict_many.PART, predict_many._predict_batch = 64, slowly
    world.all_ranks = partial(world.all_ranks, TIMEOUT_SECONDS)
    sys.exit(cli.main(sys.argv[1:]))
