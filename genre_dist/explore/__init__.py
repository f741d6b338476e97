"""A look at the data before training: `genre-dist explore`."""
