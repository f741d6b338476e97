"""The ranks of a run and how they share the work: one small interface, one strategy a file."""
