"""`genre-dist` with predictions in parts of 64 films, so that a small catalogue has several."""

import sys

from genre_dist import cli
from genre_dist.inference import predict_many

FILMS = 64

if __name__ == "__main__":
    predict_many.PART = FILMS
    sys.exit(cli.main(sys.argv[1:]))
