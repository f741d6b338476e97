"""How the memory of `genre-dist fetch`, `pack` and `inspect --verify` grows with the films: hardly, or it is a fault.

    python benchmarks/memory.py            1,000, 10,000 and 100,000 films (about ten minutes)
    python benchmarks/memory.py --quick

Each is the command users run, in a process of its own that tells its own peak. Posters are tiny and repeat, as what
they take does not depend on how many there are; fetch gets 500 from a server on loopback that behaves like TMDB.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common import Row, options, report
from pack import repeated

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from acquire_server import KEY, serve

# The verb, and then the process's peak: getrusage would count the process it was forked from as well.
VERB = """
import sys
from pathlib import Path
from genre_dist.cli import main
code = main(sys.argv[1:])
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
sys.exit(code)
"""
POSTERS = 500


def main() -> None:
    arguments = options(__doc__ or "")
    sizes = [1_000, 10_000] if arguments.quick else [1_000, 10_000, 100_000]
    peaks: dict[str, list[float]] = {"fetch": [], "pack": [], "inspect --verify": []}
    with tempfile.TemporaryDirectory() as folder:
        for films in sizes:
            peaks["fetch"].append(fetching(films, Path(folder, f"fetched-{films}")))
            catalogue = repeated(Path(folder, f"films-{films}"), films, (32, 48))
            shards = str(Path(folder, f"shards-{films}"))
            command = ["pack", "--catalogue", str(catalogue), "--out", shards, "--size", "16", "--workers", "1"]
            peaks["pack"].append(peak(command))
            peaks["inspect --verify"].append(peak(["inspect", shards, "--verify"]))
    report([row for verb, values in peaks.items() for row in growth(verb, sizes, values)], arguments.json)


def peak(command: list[str]) -> float:
    """Run the verb in a process of its own; its peak resident memory in MiB."""
    done = subprocess.run(
        [sys.executable, "-c", VERB, *command],
        stdout=subprocess.PIPE,
        env=os.environ | {"TMDB_API_KEY": KEY},
        text=True,
        check=True,
    )
    return int(done.stdout.split()[-1]) / 1024


def fetching(films: int, out: Path) -> float:
    """The peak of a whole fetch in MiB."""
    with serve(films=films, max_posters=POSTERS) as server:
        return peak([*server.arguments(out), "--years", "1985-2012", "--rate", "0"])


def growth(verb: str, sizes: list[int], peaks: list[float]) -> list[Row]:
    """A row for each number of films, and how far apart they are."""
    rows = [
        Row(claim=f"{verb}: peak memory, {films:,} films", value=value, unit="MiB")
        for films, value in zip(sizes, peaks, strict=True)
    ]
    ratio = max(peaks) / peaks[0]
    claim = f"{verb}: peak memory, up to {sizes[-1]:,} films over {sizes[0]:,}"
    return [*rows, Row(claim=claim, value=ratio, unit="ratio", goal="<= 1.1", holds=ratio <= 1.1)]


if __name__ == "__main__":
    main()
