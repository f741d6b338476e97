"""Reading shards: the manifest and index, the order of samples (pure), the reader, and the image transforms."""
