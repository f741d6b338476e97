"""Whether the quickstart's answer depends on its seed: the whole script for ten seeds of films, weights and order.

    python benchmarks/quickstart_seeds.py --out runs/quickstart_seeds            seeds 0 to 9, all films
    python benchmarks/quickstart_seeds.py --out runs/quickstart_seeds --quick    one seed of few films

Each seed has its folder in `--out`, with data, runs and report. A seed that is done is skipped; one that was
interrupted continues, and its CPU minutes are those of the last start. `--json` gets a row for each seed: the
difference of micro F1 between end to end and frozen encoders.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import machine

from genre_dist.atomic import atomic_file

SCRIPT = Path(__file__).resolve().parents[1] / "launch" / "quickstart.sh"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed of 200 films")
    parser.add_argument("--seeds", type=int, default=10, help="seeds 0 to this less one")
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart_seeds"), help="folder of the seeds' folders")
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    arguments = parser.parse_args()
    seeds, settings = (1, {"FILMS": "200"}) if arguments.quick else (arguments.seeds, {})
    print(f"Machine: {machine()}\n")
    print("| seed | points of micro F1 | low | high | test films | answer | CPU minutes |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    rows = []
    for seed in range(seeds):
        row = answer(seed, arguments.out / f"{'quick' if arguments.quick else 'seed'}{seed}", settings)
        rows.append(row)
        points = " | ".join(f"{100 * row[name]:+.1f}" for name in ("value", "low", "high"))
        cells = f"{points} | {row['films']} | {row['word']} | {row['cpu_seconds'] / 60:.1f}"
        print(f"| {seed} | {cells} |", flush=True)
        if arguments.json:
            with atomic_file(arguments.json, "w") as file:
                json.dump([row | {"machine": machine()} for row in rows], file, indent=1)
    answers = [row["word"] for row in rows]
    counts = ", ".join(f"{word} {answers.count(word)}" for word in dict.fromkeys(answers))
    print(f"\n{len(rows)} seeds: {counts}")
    return 0


def answer(seed: int, folder: Path, settings: dict[str, str]) -> dict[str, Any]:
    """The answer of the script for a seed, run in `folder`; that of an earlier run if there is one."""
    done = folder / "answer.json"
    if done.is_file():
        return dict(json.loads(done.read_text()))
    folder.mkdir(parents=True, exist_ok=True)
    before = _cpu_seconds()
    programs = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with open(folder / "log", "a") as log:
        command = ["bash", str(SCRIPT)]
        subprocess.run(
            command, cwd=folder, env=programs | settings | {"SEED": str(seed)}, check=True, stdout=log, stderr=log
        )
    headline = json.loads((folder / "report" / "quickstart" / "comparison.json").read_text())["headline"]
    row = {name: headline[name] for name in ("value", "low", "high", "films", "measure", "verdict", "word")}
    row |= {"seed": seed, "cpu_seconds": _cpu_seconds() - before}
    with atomic_file(done, "w") as file:
        json.dump(row, file)
    return row


def _cpu_seconds() -> float:
    """Of all processes that this one has waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    sys.exit(main())
