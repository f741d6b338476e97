"""How a GPU says that its memory is full."""

import torch

TEXTS = (
    "out of memory",  # of NCCL and of the driver
    "unable to find an engine to execute this computation",  # cuDNN, when none gets its workspace
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
)
"""What libraries below torch say when they get no memory: plain RuntimeErrors (texts of libtorch_cuda)."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device's memory is full, whichever library says it."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in TEXTS)
    )
