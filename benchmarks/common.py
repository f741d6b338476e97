"""What every benchmark shares: its options, its rows, and the machine it ran on.

A benchmark is a script `benchmarks/NAME.py [--quick] [--json FILE]` that prints a Markdown table; `--quick` ends within
a minute. Machines are noisy: a row gives the median of repeated measurements and their spread, and what is compared is
measured alternately in one run.
"""

import argparse
import dataclasses
import json
import math
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured claim."""

    claim: str
    value: float
    """NaN for what could not be measured; null in JSON."""
    unit: str
    goal: str = ""
    holds: bool | None = None
    """Whether the goal is met; None where there is no goal."""
    spread: str = ""
    machine: str = ""


def options(description: str) -> argparse.Namespace:
    """The options every benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a smaller form that ends within a minute")
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    return parser.parse_args()


def measured(claim: str, values: Sequence[float], unit: str) -> Row:
    """The median of repeated measurements, with the smallest and largest as spread."""
    spread = f"{min(values):.4g} to {max(values):.4g} of {len(values)}"
    return Row(claim=claim, value=float(statistics.median(values)), unit=unit, spread=spread)


def report(rows: Sequence[Row], json_file: Path | None) -> None:
    """Print the rows as a table and write them to a file if one is named."""
    print_head(machine())
    for row in rows:
        print_row(row)
    if json_file:
        write(rows, json_file)


def print_head(here: str) -> None:
    """The machine and the head of the table of rows."""
    print(f"Machine: {here}\n")
    print("| claim | value | unit | spread | goal | holds |\n| --- | --- | --- | --- | --- | --- |", flush=True)


def print_row(row: Row) -> None:
    """One line of the table."""
    holds = {True: "yes", False: "**no**", None: ""}[row.holds]
    value = f"{row.value:.4g}" if math.isfinite(row.value) else ""
    print(f"| {row.claim} | {value} | {row.unit} | {row.spread} | {row.goal} | {holds} |", flush=True)


def write(rows: Sequence[Row], json_file: Path) -> None:
    """Write rows to a file, all that it held replaced, whole or not at all; a row without a machine is of this one."""
    objects = [dataclasses.asdict(row) | {"machine": row.machine or machine()} for row in rows]
    for row in objects:  # JSON knows no NaN
        row["value"] = row["value"] if math.isfinite(row["value"]) else None
    partial = json_file.with_name(f"{json_file.name}.tmp")
    partial.write_text(json.dumps(objects, indent=1, allow_nan=False))
    partial.replace(json_file)


@cache
def machine() -> str:
    """Processor, cores, memory, GPU and versions, in one line."""
    import torch  # here: benchmarks of memory start processes that need none of it

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    return (
        f"{_processor()}, {os.cpu_count()} cores, {memory:.0f} GiB{gpu}; "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()
