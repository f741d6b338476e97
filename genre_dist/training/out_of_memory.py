"""Recognising a GPU's out-of-memory errors."""

import torch

TEXTS = (
    "out of memory",  # of NCCL and of the driver
    "unable to find an engine to execute this computation",  # cuDNN, when none gets its workspace
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
)
"""Messages of libraries below torch that get no memory: plain RuntimeErrors (texts of libtorch_cuda)."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device's memory is full, whichever library says it."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in TEXTS)
    )
