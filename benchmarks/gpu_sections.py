"""The sections of gpu.py in order of their value, each with what it takes: a session may be cut anywhere."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """A part of the benchmark that stands for itself."""

    name: str
    seconds: float
    """As measured on one H100 on a host of 16 cores, with setting up; of checkpoint, graphed, compiled,
    fp32, ranks and compiled-whole an estimate."""
    function: str
    """Module and name of the generator of its rows: imported by the process that runs it, the first to need torch."""
    alone: bool = False
    """On a GPU it has a process of its own: it may hang, crash, or change the process for good."""
    needs_cuda: bool = False

    def estimate(self, quick: bool) -> float:
        return 3.0 if quick else self.seconds

    def limit(self, quick: bool) -> float:
        """Seconds after which it is given up."""
        return 60.0 if quick else 2 * self.seconds + 30


SECTIONS = (
    Section("precision", 6, "gpu_checks:precision"),
    Section("agreement", 9, "gpu_checks:agreement"),
    Section("decoding", 18, "gpu_checks:decoding", alone=True),
    Section("bf16", 7, "gpu_speed:bf16"),
    Section("loop", 22, "gpu_loop:loop"),
    Section("trace", 7, "gpu_trace:trace"),
    Section("batches", 12, "gpu_speed:batches"),
    Section("feeding", 15, "gpu_loop:feeding"),
    Section("graphed", 45, "gpu_speed:graphed", alone=True, needs_cuda=True),
    Section("compiled", 110, "gpu_speed:compiled", alone=True, needs_cuda=True),
    Section("checkpoint", 28, "gpu_loop:checkpoint", alone=True),
    Section("recompute", 25, "gpu_speed:recompute"),
    Section("frozen", 12, "gpu_speed:frozen"),
    Section("heads", 19, "gpu_speed:heads"),
    Section("fp32", 20, "gpu_speed:fp32"),
    Section("ranks", 55, "gpu_ranks:ranks", alone=True),
    Section("compiled-whole", 150, "gpu_speed:compiled_whole", alone=True, needs_cuda=True),
)
