"""Fuzzing: FUZZ_EXAMPLES inputs for each kind of file, few by default; 10,000 take minutes."""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "fuzz",
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "60")),
    deadline=None,
    database=None,
    derandomize="FUZZ_EXAMPLES" not in os.environ,  # the same inputs in every run of the tests
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("fuzz")
