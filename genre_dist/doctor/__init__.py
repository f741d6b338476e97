"""Checks of a machine or a job: each finding names a problem and its remedy."""
