"""Everything worth knowing about a GPU, in one command: whether it computes right, how fast, and where the time goes.

    python benchmarks/gpu.py --prepare gpu-prepared    beforehand, anywhere: shards (40 MB) and what takes long to count
    python benchmarks/gpu.py --json gpu.json           under 10 minutes on one GPU, no network
    python benchmarks/gpu.py --sections loop,trace     these only
    python benchmarks/gpu.py --minutes 4               no section is started that does not fit the time
    python benchmarks/gpu.py --quick                   tiny sizes, also on a CPU

Sections run in order of their value. Each row is printed and written as it comes, so what was measured outlives a kill;
a section that fails gives a row that says why, and the others go on. Beside the JSON lie `.trace.json.gz`, a Chrome
trace (ui.perfetto.dev opens it), and `.log`, what the sections printed. Samples are noise in the shape of real ones, or
procedural films.
"""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from common import Row, print_head, print_row, write
from gpu_prepare import prepare, prepared_folder
from gpu_sections import SECTIONS, Section
from gpu_worker import Hello, Options, Worker, die_with_parent, serve

MINUTES = 9.6
"""A little under ten: what a lent machine may give a command."""
LAST_SECONDS = 15
"""How long a section may go on after the time is up."""
START_SECONDS = 120
NAN = float("nan")


class Runner:
    """Runs sections in processes, keeps their rows, and writes them as they come."""

    def __init__(self, arguments: argparse.Namespace, work: Path) -> None:
        self.quick, self.json = arguments.quick, arguments.json
        self.ends = time.monotonic() + 60 * arguments.minutes
        beside = work / "gpu" if self.json is None else self.json.with_suffix("")
        beside.parent.mkdir(parents=True, exist_ok=True)
        self.options = Options(self.quick, work, arguments.shards or prepared_folder(), beside)
        self.log = open(f"{beside}.log", "wb")  # noqa: SIM115 (closed in close)
        self.rows: list[Row] = []
        self.worker = Worker(self.options, self.log)
        try:
            self.hello = self.worker.hello(START_SECONDS)
        except RuntimeError as error:
            self.hello = Hello(f"unknown: {error}", on_gpu=False)
        print_head(self.hello.machine)

    def run(self, section: Section) -> None:
        """Run a section, or say why not."""
        left, needed = self.ends - time.monotonic(), section.estimate(self.quick)
        if section.needs_cuda and not self.hello.on_gpu:
            self._tell(Row(claim=f"{section.name}: not measured", value=NAN, unit="needs CUDA"))
            return
        if needed > left:
            why = f"skipped, it takes {needed:.0f} s and {max(0.0, left):.0f} s are left"
            self._tell(Row(claim=f"{section.name}: {why}", value=NAN, unit=""))
            return
        began = time.monotonic()
        problem = self._measure(section, min(section.limit(self.quick), left + LAST_SECONDS))
        if problem is not None:
            self._tell(Row(claim=f"{section.name}: failed: {problem}", value=NAN, unit=""))
        expected = "" if self.quick else f"{needed:g} s expected"
        took = time.monotonic() - began
        self._tell(Row(claim=f"{section.name}: the whole section", value=took, unit="s", spread=expected))

    def _measure(self, section: Section, limit: float) -> str | None:
        if section.alone and self.hello.on_gpu:
            alone = Worker(self.options, self.log)
            try:
                return alone.run(section.function, limit, self._tell)
            finally:
                alone.close()
        if not self.worker.is_open:
            self.worker = Worker(self.options, self.log)
        return self.worker.run(section.function, limit, self._tell)

    def _tell(self, row: Row) -> None:
        self.rows.append(replace(row, machine=self.hello.machine))
        print_row(row)
        if self.json is not None:
            write(self.rows, self.json)

    def close(self) -> None:
        self.worker.close()
        self.log.close()


def main() -> int:
    arguments = _arguments()
    if arguments.parent is not None:
        die_with_parent(arguments.parent)
    if arguments.worker is not None:
        serve(arguments.worker)
    elif arguments.rank is not None:
        from gpu_bench import stand_in_for_missing

        stand_in_for_missing()
        from gpu_ranks import one_rank

        one_rank(arguments.rank)
    elif arguments.prepare is not None:
        print(prepare(arguments.prepare, arguments.quick))
    else:
        known = {section.name: section for section in SECTIONS}
        named = list(known) if arguments.sections is None else arguments.sections.split(",")
        if unknown := [name for name in named if name not in known]:
            print(f"no section {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
            return 2
        _run([section for name, section in known.items() if name in named], arguments)
    return 0


def _run(sections: Sequence[Section], arguments: argparse.Namespace) -> None:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that all is tidied up
    if not arguments.quick:
        print("\n".join(_plan(sections)) + "\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="genre_dist-gpu-", ignore_cleanup_errors=True) as work:
        runner = Runner(arguments, Path(work))
        try:
            for section in sections:
                runner.run(section)
        finally:
            runner.close()


def _plan(sections: Sequence[Section]) -> list[str]:
    """The sections with their seconds, and when each should be through."""
    lines, total = ["| section | seconds expected | through after | process |", "| --- | --- | --- | --- |"], 0.0
    for section in sections:
        total += section.seconds
        process = "its own" if section.alone else ""
        lines.append(f"| {section.name} | {section.seconds:g} | {total:g} | {process} |")
    return lines


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, within a minute")
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    parser.add_argument("--prepare", type=Path, metavar="DIR", help="make what is used later, and measure nothing")
    parser.add_argument("--shards", type=Path, metavar="DIR", help="what --prepare made (default: gpu-prepared)")
    parser.add_argument("--sections", metavar="A,B", help="only these")
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help="start no section that takes longer than is left"
    )
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
