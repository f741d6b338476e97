"""Everything worth knowing about a GPU, in one command: speed, use, memory, and where the time goes.

    python benchmarks/gpu.py                     under 8 minutes on one GPU, no network
    python benchmarks/gpu.py --quick             tiny sizes, also on a CPU
    python benchmarks/gpu.py --minutes 3         what does not fit the time is skipped, and said to be

A section that fails gives a row that says why, and the others go on. Samples are noise in the shape of real ones; the
loader's are procedural films.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from common import Row, report
from gpu_sections import Bench, decoding, feeding, heads, one_rank, spread

from genre_dist.config import Config
from genre_dist.models.classifier import GenreClassifier
from genre_dist.planner.measure import make_step
from genre_dist.planner.memory import Setting, peak_bytes
from genre_dist.training.throughput import peak_flops

GOAL_RATE, GOAL_PLAN = 1800, 0.10


@dataclass(frozen=True)
class Case:
    """One way to train."""

    what: str  # end to end, frozen, frozen-cached
    precision: str = "bf16"
    channels_last: bool = True
    compile: bool = False
    checkpointing: str = "none"
    micro: int = 128

    def __str__(self) -> str:
        parts = [self.what, self.precision, "NHWC" if self.channels_last else "NCHW"]
        parts += ["compiled"] * self.compile + [f"checkpointing {self.checkpointing}"] * (self.checkpointing != "none")
        return f"{', '.join(parts)}, batch {self.micro}"


CASES = [
    *(Case("end to end", micro=micro) for micro in (64, 128, 256)),
    Case("frozen"),
    Case("frozen-cached", micro=1024),
    *(Case("end to end", precision=precision, micro=64) for precision in ("tf32", "fp32")),
    Case("end to end", channels_last=False),
    *(Case("end to end", checkpointing=kind, micro=256) for kind in ("blocks", "stages", "selective")),
    Case("frozen", precision="fp32", micro=64),
    Case("end to end", compile=True),
]


def run_case(bench: Bench, case: Case, config: Config, precision: str, micro: int) -> tuple[float, int]:
    """Samples per second and peak memory; the model is gone afterwards."""
    step = make_step(config, bench.words, case.checkpointing, precision, bench.world)  # type: ignore[arg-type]
    batch = bench.batch(config, micro)
    if case.what == "frozen-cached":
        encodings = np.random.default_rng(0).random((micro, _encoding_size(config)), np.float32)
        batch = replace(batch, images=None, tokens=None, lengths=None, encodings=encodings)
    return bench.rate(lambda: step([batch]), micro)


def training(bench: Bench, case: Case) -> Iterator[Row]:
    """Samples per second, MFU, peak memory, and the planner's peak."""
    micro = 4 if bench.quick else case.micro
    tf32 = case.precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    frozen = case.what != "end to end"
    config = bench.config(frozen, channels_last=case.channels_last, compile=case.compile)
    precision = "bf16" if case.precision == "bf16" else "fp32"
    rate, peak = run_case(bench, case, config, precision, micro)
    bench.free()
    goal = bench.device.type == "cuda" and case.what == "end to end" and case.precision == "bf16" and micro >= 128
    plain = goal and not case.compile and case.checkpointing == "none" and case.channels_last
    yield Row(
        claim=str(replace(case, micro=micro)),
        value=rate,
        unit="samples/s",
        goal=f">= {GOAL_RATE} on one H100" if plain else "",
        holds=rate >= GOAL_RATE if plain and "H100" in torch.cuda.get_device_name() else None,
    )
    limit = peak_flops(bench.device, case.precision)
    if limit and case.what != "frozen-cached":
        yield Row(claim="... MFU", value=rate * bench.flops(config) / limit, unit="share of the peak")
    if not peak:
        return
    yield Row(claim="... peak memory", value=peak / 2**30, unit="GiB allocated")
    if case.what != "frozen-cached" and not case.compile:
        setting = Setting(strategy="single", ranks=1, precision=precision, checkpointing=case.checkpointing)  # type: ignore[arg-type]
        planned = bench.planned(config, frozen, case.checkpointing)
        off = peak_bytes(planned.traces, planned.sizes, setting, micro) / peak - 1
        yield Row(
            claim="... planned over measured peak, less 1",
            value=off,
            unit="share",
            goal=f"within {GOAL_PLAN:.0%}",
            holds=abs(off) <= GOAL_PLAN,
        )


def _encoding_size(config: Config) -> int:
    with torch.device("meta"):
        model = GenreClassifier(config.model, 19, config.data.image_size, 100, None, load_weights=False)
    assert model.text is not None
    assert model.poster is not None
    return model.text.encoding_size + model.poster.encoding_size


def guarded(bench: Bench, name: str, section: Callable[[], Iterator[Row]]) -> list[Row]:
    """A section's rows; one that says why where it fails or time is up."""
    if time.monotonic() > bench.deadline:
        return [Row(claim=f"{name}: skipped, time is up", value=float("nan"), unit="")]
    rows: list[Row] = []
    began = time.monotonic()
    try:
        rows.extend(section())
    except Exception as error:  # whatever it is, the other sections are worth having
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        rows.append(Row(claim=f"{name}: failed: {type(error).__name__}: {reason}", value=float("nan"), unit=""))
    print(f"{name}: {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
    bench.free()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, within a minute")
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    parser.add_argument("--minutes", type=float, default=7.0, help="start no section after this long")
    parser.add_argument("--rank_of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank_of:
        one_rank(arguments.rank_of, arguments.quick)
        return
    bench = Bench(arguments.quick, time.monotonic() + 60 * arguments.minutes)
    cases = CASES[3:6] if arguments.quick else CASES
    rows: list[Row] = []
    for case in cases[:5]:
        rows += guarded(bench, str(case), lambda case=case: training(bench, case))  # type: ignore[misc]
    rows += guarded(bench, "feeding", lambda: feeding(bench))
    rows += guarded(bench, "heads", lambda: heads(bench))
    rows += guarded(bench, "decoding", lambda: decoding(bench))
    for case in cases[5:]:
        rows += guarded(bench, str(case), lambda case=case: training(bench, case))  # type: ignore[misc]
    for strategy in ("fsdp",) if arguments.quick else ("ddp", "fsdp", "zero1", "zero2", "zero3"):
        rows += guarded(bench, strategy, lambda strategy=strategy: spread(bench, strategy))  # type: ignore[misc]
    report(rows, arguments.json)


if __name__ == "__main__":
    main()
