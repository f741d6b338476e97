"""How training scales over ranks: measured over those at hand, and reckoned for 1 to 256 GPUs.

    python benchmarks/scaling.py [--quick]

Measured: weak scaling (the same batch a rank) and strong scaling (the same batch in all) with real ranks, over gloo on
CPUs. On fewer cores than ranks this shows the cost of sharing them, not of communicating. Computed: a step of so many
samples a GPU takes its computing time plus what of the ring all-reduce is not hidden behind the backward pass, which
takes two thirds of it. A ring moves 2 (N - 1) / N times the gradients' bytes through each rank's slowest link
(Patarasuk and Yuan 2009, https://doi.org/10.1016/j.jpdc.2008.09.002). Rows say which is which.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from common import Row, measured, options, report

from genre_dist.catalogue.sample_films import make_sample
from genre_dist.packing.pack import pack

GRADIENT_BYTES = 4 * 143_846_483
FLOPS = 74.4e9  # a sample: ResNet152 at 224 pixels, LSTM over 55 tokens, heads
GPU_FLOPS, MFU = 989e12, 0.4  # H100, bf16; the share is an assumption
BATCH = 32  # measured: samples a rank, or in all
SAMPLES = 128  # a GPU and step
WITHIN, BETWEEN = 450e9, 50e9  # bytes a second a GPU: NVLink 4 one way; a 400 Gb/s network card
NODE = 8
OVERLAP = 2 / 3


def main() -> None:
    arguments = options(__doc__ or "")
    films = 120 if arguments.quick else 200
    with tempfile.TemporaryDirectory() as folder:
        make_sample(films, 0, Path(folder, "catalogue"), (72, 72))
        pack(Path(folder, "catalogue"), Path(folder, "shards"), size=72, workers=1)
        rows = scaling(Path(folder), 2, 6 if arguments.quick else 16)
    report(rows + computed(), arguments.json)


def scaling(folder: Path, ranks: int, steps: int) -> list[Row]:
    """Samples per second on one rank and on several, with as many samples a rank and with as many in all."""
    one = measured("measured, 1 rank", train(folder, 1, BATCH, steps), "samples/s")
    rows = [one]
    for kind, batch in (("weak", BATCH * ranks), ("strong", BATCH)):
        claim = f"measured, {kind} scaling, {ranks} ranks (gloo)"
        row = measured(claim, train(folder, ranks, batch, steps), "samples/s")
        where = f"{ranks} ranks on {len(os.sched_getaffinity(0))} cores"
        share = Row(claim=f"{kind} scaling efficiency, {where}", value=row.value / one.value / ranks, unit="share")
        rows += [row, share]
    return rows


def train(folder: Path, world: int, batch: int, steps: int) -> list[float]:
    """Samples per second of every step after two."""
    run = Path(tempfile.mkdtemp(dir=folder))
    settings = {
        "--data.shards": folder / "shards", "--run.dir": run, "--data.global_batch": batch, "--train.steps": steps,
        "--model.poster.arch": "resnet18", "--model.poster.weights": "none", "--data.image_size": 64,
        "--model.text.hidden": 64, "--model.text.layers": 1, "--model.heads.hidden": "[128]",
        "--tracking.wandb": "off", "--data.workers": 0, "--checkpoint.every_steps": "null",
        "--train.eval_every_steps": 1000,
    }  # fmt: skip
    launcher = [sys.executable]
    if world > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world}"]
    words = [str(word) for pair in settings.items() for word in pair]
    environment = os.environ | ({} if torch.cuda.is_available() else {"OMP_NUM_THREADS": "1"})
    subprocess.run(
        [*launcher, "-m", "genre_dist.train", *words], check=True, stdout=subprocess.DEVNULL, env=environment
    )
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["samples_per_second"] for row in rows if row["kind"] == "train"][2:]


def step_seconds(gpus: int, compressed: bool = False) -> float:
    """Computed: a step's time on so many GPUs."""
    compute = SAMPLES * FLOPS / (GPU_FLOPS * MFU)
    size = GRADIENT_BYTES / (2 if compressed else 1)
    exchange = 2 * (gpus - 1) / gpus * size / (WITHIN if gpus <= NODE else BETWEEN)
    return compute + max(0.0, exchange - OVERLAP * compute)


def computed() -> list[Row]:
    """Speed and efficiency for 1 to 256 GPUs."""
    rows = []
    for gpus in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        rate = gpus * SAMPLES / step_seconds(gpus)
        share = step_seconds(1) / step_seconds(gpus)
        told = f"efficiency {share:.2f}, with gradients in bf16 {step_seconds(1) / step_seconds(gpus, True):.2f}"
        rows.append(
            Row(claim=f"computed, {gpus} GPUs, {SAMPLES} samples each", value=rate, unit="samples/s", spread=told)
        )
    return rows


if __name__ == "__main__":
    main()
