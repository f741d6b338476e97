"""What encoding films once is worth: the heads trained on cached encodings against encoders that run in every step.

    python benchmarks/frozen.py            ResNet50 and the 3-layer LSTM at 128 pixels, 600 films
    python benchmarks/frozen.py --quick    ResNet18 at 64 pixels, 120 films

Both train as a user does, alternately; a step's rate is read from the record. A whole run pays for the encodings, too.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import Row, measured, options, report

from genre_dist.catalogue.sample_films import make_sample
from genre_dist.packing.pack import pack


def main() -> None:
    arguments = options(__doc__ or "")
    films, arch, size, epochs = (120, "resnet18", 64, 2) if arguments.quick else (600, "resnet50", 128, 3)
    rates: dict[str, list[float]] = {"off": [], "on": []}
    seconds: dict[str, list[float]] = {"off": [], "on": []}
    with tempfile.TemporaryDirectory() as folder:
        make_sample(films, 0, Path(folder, "catalogue"), (120, 180))
        pack(Path(folder, "catalogue"), Path(folder, "shards"), size=size, workers=1)
        for number in range(1 if arguments.quick else 3):
            for cache in rates:
                run = Path(folder, f"{cache}{number}", "run")  # a folder of its own: encodings are made anew
                began = time.perf_counter()
                rates[cache] += train(Path(folder, "shards"), run, arch, size, epochs, cache)
                seconds[cache].append(time.perf_counter() - began)
    model = f"{arch} + LSTM, {size} px, frozen"
    slow, fast = (
        measured(f"{model}: {name}", rates[key], "samples/s")
        for name, key in (("encoded in every step", "off"), ("encoded once", "on"))
    )
    rows = [
        slow,
        fast,
        Row(
            claim=f"{model}: encoded once over in every step", value=fast.value / slow.value, unit="speed-up of a step"
        ),
    ]
    for key, name in (("off", "in every step"), ("on", "once")):
        rows.append(
            measured(f"{model}: whole run of {epochs} epochs with evaluations, encoded {name}", seconds[key], "s")
        )
    report(rows, arguments.json)


def train(shards: Path, run: Path, arch: str, size: int, epochs: int, cache: str) -> list[float]:
    """Samples per second of every step after the first."""
    settings = {
        "--data.shards": shards, "--run.dir": run, "--train.cache_encodings": cache, "--train.epochs": epochs,
        "--model.poster.arch": arch, "--model.poster.weights": "none", "--data.image_size": size,
        "--model.poster.frozen": "true", "--model.text.frozen": "true", "--data.crop_scale": "[1,1]",
        "--data.global_batch": 32, "--tracking.wandb": "off",
    }  # fmt: skip
    words = [str(word) for pair in settings.items() for word in pair]
    subprocess.run([sys.executable, "-m", "genre_dist.train", *words], check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["samples_per_second"] for row in rows if row["kind"] == "train"][1:]


if __name__ == "__main__":
    main()
