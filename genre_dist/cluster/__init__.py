"""The machines a run is to live on: whether they are fit for it."""
