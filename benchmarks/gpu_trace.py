"""A section of gpu.py: where the time of a step goes, kernel by kernel, with the bytes and operations behind it."""

import gzip
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from common import Row
from gpu_bench import Bench
from gpu_measure import make_step
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

STEPS, LONGEST = 3, 10
Key = tuple[str, tuple[tuple[int, ...], ...]]
"""An operation: its name and the shapes of its tensors."""


class Work(NamedTuple):
    """What an operation reads and writes, in bytes, and its floating-point operations, 0 where torch knows no count."""

    bytes: float
    flops: float


class Counter(TorchDispatchMode):
    """Notes the work of every operation of a step, on average over those with the same shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[Key, list[Work]] = defaultdict(list)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = {id(value): value for value in tree_leaves((args, kwargs, result)) if isinstance(value, Tensor)}
        count = flop_registry.get(func._overloadpacket)
        flops = 0 if count is None else count(*args, **(kwargs or {}), out_val=result)
        shapes = [tuple(value.shape) for value in args if isinstance(value, Tensor)]
        work = Work(sum(value.nbytes for value in tensors.values()), flops)
        self.seen[_key(f"aten::{func._opname}", shapes)].append(work)
        return result

    def owner(self, event: Any) -> Any:
        """A profiled operation, or the one around it that was counted; None if there is none."""
        while event is not None and _key(event.name, event.input_shapes) not in self.seen:
            event = event.cpu_parent
        return event

    def work(self, owner: Any) -> Work:
        works = self.seen[_key(owner.name, owner.input_shapes)]
        return Work(*(sum(numbers) / len(works) for numbers in zip(*works, strict=True)))


def _key(name: str, shapes: Any) -> Key:
    """Shapes of plain tensors only: numbers have none, and lists of tensors are told in different ways."""
    plain = (tuple(shape) for shape in shapes or ())
    return name, tuple(shape for shape in plain if shape and all(isinstance(side, int) for side in shape))


@dataclass
class Kernel:
    """All calls of one kernel in a step."""

    microseconds: float = 0.0
    calls: int = 0
    bytes: float = 0.0
    flops: float = 0.0
    operations: set[str] = field(default_factory=set)


def trace(bench: Bench) -> Iterator[Row]:
    """A Chrome trace of three steps; the ten longest kernels of one more, whose shapes are recorded too."""
    config, micro = bench.config(), 2 if bench.quick else 128
    train, batch = make_step(config, bench.words, "none", "bf16", bench.world), bench.batch(config, micro)

    def steps(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            train([batch])
        bench.synchronise()
        return time.perf_counter() - began

    steps(1)
    with Counter() as counter:
        steps(1)
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * bench.on_gpu]
    with profile(activities=activities) as profiled:
        seconds = steps(STEPS)
    yield Row(claim=f"traced: {STEPS} steps, the profiler beside them", value=1e3 * seconds / STEPS, unit="ms a step")
    _export(profiled, Path(f"{bench.traces}.trace.json"))
    with profile(activities=activities, record_shapes=True) as profiled:
        steps(1)
    kernels = longest_kernels(profiled.events(), counter, bench.on_gpu)
    busy = sum(kernel.microseconds for kernel in kernels.values()) / 1e3
    yield Row(claim="... all kernels together", value=busy, unit="ms a step")
    for place, (name, kernel) in enumerate(list(kernels.items())[:LONGEST], 1):
        yield _row(place, name, kernel)


def _export(profiled: profile, file: Path) -> None:
    """The trace, compressed: by itself torch would compress line after line, which takes long."""
    profiled.export_chrome_trace(str(file))
    with open(file, "rb") as plain, gzip.open(f"{file}.gz", "wb", compresslevel=1) as packed:
        shutil.copyfileobj(plain, packed, 1 << 20)
    file.unlink()


def longest_kernels(events: Any, counter: Counter, on_gpu: bool) -> dict[str, Kernel]:
    """Kernels by name, the longest first; on a CPU operations are taken for kernels.

    An operation's work is shared by time among the kernels that it started.
    """
    ran = [(event, name, duration) for event in events for name, duration in _ran(event, on_gpu)]
    owners = [counter.owner(event) for event, _, _ in ran]
    whole: dict[int, float] = defaultdict(float)
    for owner, (_, _, duration) in zip(owners, ran, strict=True):
        whole[id(owner)] += duration
    kernels: dict[str, Kernel] = defaultdict(Kernel)
    for owner, (event, name, duration) in zip(owners, ran, strict=True):
        kernel = kernels[name]
        kernel.microseconds += duration
        kernel.calls += 1
        kernel.operations.add(event.name if owner is None else owner.name)
        if owner is not None and duration:
            work, share = counter.work(owner), duration / whole[id(owner)]
            kernel.bytes += share * work.bytes
            kernel.flops += share * work.flops
    return dict(sorted(kernels.items(), key=lambda item: -item[1].microseconds))


def _ran(event: Any, on_gpu: bool) -> list[tuple[str, float]]:
    """Kernels that a profiled operation started itself, each with its microseconds."""
    if event.device_type != DeviceType.CPU:
        return []
    if on_gpu:
        return [(kernel.name, kernel.duration) for kernel in event.kernels]
    return [(event.name, event.self_cpu_time_total)] if event.name.startswith("aten::") else []


def _row(place: int, name: str, kernel: Kernel) -> Row:
    known = [f"{kernel.calls} calls"]
    known += [f"{kernel.bytes / 1e9:.3g} GB"] * (kernel.bytes > 0)
    known += [f"{kernel.flops / 1e9:.4g} GFLOP"] * (kernel.flops > 0)
    short = " ".join(name.replace("|", "/").split())[:100]
    return Row(
        claim=f"kernel {place}: {short}, of {', '.join(sorted(kernel.operations)[:3])}",
        value=kernel.microseconds / 1e3,
        unit="ms a step",
        spread=", ".join(known),
    )
