"""How fast end-to-end training runs here, and how much memory it takes: the command users run, on procedural films.

python benchmarks/train.py            ResNet152 at 224 pixels as well (about ten minutes on two CPU cores)
python benchmarks/train.py --quick    ResNet18 at 64 pixels only
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from common import Row, measured, options, report

from genre_dist.catalogue.sample_films import make_sample
from genre_dist.packing.pack import pack

SMALL = {"--model.poster.arch": "resnet18", "--data.image_size": 64, "--data.global_batch": 32, "--train.steps": 14}
LARGE = {"--model.poster.arch": "resnet152", "--data.image_size": 224, "--data.global_batch": 16, "--train.steps": 8}


def main() -> None:
    arguments = options(__doc__ or "")
    with tempfile.TemporaryDirectory() as folder:
        make_sample(300, 0, Path(folder, "catalogue"))
        pack(Path(folder, "catalogue"), Path(folder, "shards"), workers=2)
        rows = training("ResNet18 + LSTM, 64 px, fp32, 1 rank", folder, 1, SMALL)
        if not arguments.quick:
            for precision in ("fp32", "bf16"):
                name = f"ResNet152 + LSTM, 224 px, {precision}, 2 ranks"
                rows += training(name, folder, 2, LARGE | {"--train.precision": precision, "--data.micro_batch": 8})
    report(rows, arguments.json)


def training(name: str, folder: str, ranks: int, settings: dict[str, object]) -> list[Row]:
    """Train as a user would and read the record, leaving out two steps of warm-up."""
    run = Path(tempfile.mkdtemp(dir=folder))
    extra = {
        "--data.shards": f"{folder}/shards",
        "--run.dir": run,
        "--model.poster.weights": "none",
        "--tracking.wandb": "off",
        "--checkpoint.every_steps": "null",
    }
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    command = [
        *launcher,
        "-m",
        "genre_dist.train",
        *(str(part) for pair in (settings | extra).items() for part in pair),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in steps if row["kind"] == "train"][2:]
    memory = "allocated on the GPU" if torch.cuda.is_available() else "resident, rank 0"
    return [
        measured(f"{name}: training speed", [row["samples_per_second"] for row in steps], "samples/s"),
        measured(f"{name}: waiting for data", [row["data_wait"] for row in steps], "share of the step"),
        measured(f"{name}: peak memory ({memory})", [row["memory_bytes"] / 2**30 for row in steps[-1:]], "GiB"),
    ]


if __name__ == "__main__":
    main()
