"""genre_dist: train multimodal classifiers across many GPUs from plain tar shards."""

__version__ = "0.1.0"
