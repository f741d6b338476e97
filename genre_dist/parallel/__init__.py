"""Ranks and strategies: how the processes of a run share the work, one strategy a file."""
