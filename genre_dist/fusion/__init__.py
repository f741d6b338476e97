"""Late fusion: the predictions of several evaluated runs as those of one model."""
