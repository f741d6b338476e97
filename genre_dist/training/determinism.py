"""Only algorithms that give the same bits every time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Within it, torch takes deterministic algorithms, and raises RuntimeError where it has none.

    cuBLAS needs its workspace set before it is first used, cuDNN must not try out which algorithm is fastest; see
    https://docs.pytorch.org/docs/stable/notes/randomness.html.
    """
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]
