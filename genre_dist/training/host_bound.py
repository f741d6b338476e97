"""Whether a GPU would wait for the CPU: launching a step's kernels takes the same time for any number of samples.

The figures are for PyTorch in eager mode, as measured on one H100 in a virtual machine of 16 cores (2026-11-28): a step
of ResNet152 and LSTM took 88 ms for 64 and for 128 samples and 151 ms for 256. A faster host launches faster.
"""

import math

LAUNCH_SECONDS = 25e-6
"""CPU time of an operation in eager mode: Python, autograd and the launch of its kernel."""
LAUNCHES = 1.4
"""Kernels for each operation of the planner's trace, which is in fp32 and without an optimizer: autocast copies the
weights to bf16 and the gradients back. A ResNet152 with its text encoder has about 2,500 operations: 3,500 launches, 88
ms."""
USED = 0.13
"""Share of the GPU's peak that a convolutional network uses in eager mode, where it mostly waits for memory: on an H100
at 989 TFLOP/s that is 1,700 samples a second of 74.4 GFLOP each."""


def host_bound(samples: int, operations: int, flops: float, peak: float) -> str | None:
    """A message if micro-batches are too small to keep a GPU busy; None if they are large enough or nothing is known.

    `operations` of a forward and a backward pass, `flops` of one sample, `peak` of the GPU in FLOP/s (0: unknown).
    """
    if peak == 0 or flops == 0:
        return None
    launching = operations * LAUNCHES * LAUNCH_SECONDS
    computing = flops / (USED * peak)  # seconds a sample
    enough = math.ceil(launching / computing)
    if samples >= enough:
        return None
    return (
        f"{samples} samples keep the GPU busy for about {1000 * samples * computing:.0f} ms, launching their kernels "
        f"takes the CPU about {1000 * launching:.0f} ms: about {samples / launching:.0f} samples/s a GPU at best, and "
        f"it idles below {enough} samples at a time"
    )
