"""How fast `genre-dist fetch` is, how closely it keeps its rate, and how much memory it takes: the command users run,
against a server on loopback that behaves like TMDB (tests/acquire_server.py, a Python process on the same cores).

python benchmarks/fetch.py            up to 100,000 films (several minutes)
python benchmarks/fetch.py --quick
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common import Row, measured, options, report

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from acquire_server import KEY, Handle, most_in_a_second, serve

# The verb, and then its own peak: getrusage would give this process's, of which it is a fork.
VERB = """
import sys
from pathlib import Path
from genre_dist.cli import main
code = main(sys.argv[1:])
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
sys.exit(code)
"""
RATE = 40
POSTER = {"width": 342, "height": 513}


def main() -> None:
    arguments = options(__doc__ or "")
    films = 5_000 if arguments.quick else 20_000
    rows = speed(films, posters=1_000 if arguments.quick else 4_000, repeats=2 if arguments.quick else 3)
    rows += politeness(posters=400 if arguments.quick else 2_400)
    rows += memory([1_000, 20_000] if arguments.quick else [1_000, 10_000, 20_000, 100_000])
    report(rows, arguments.json)


def fetch(server: Handle, out: Path, *extra: str) -> int:
    """Run the verb in a process of its own; its peak resident memory in bytes."""
    command = [sys.executable, "-c", VERB, *server.arguments(out), "--years", "1985-2012", *extra]
    environment = os.environ | {"TMDB_API_KEY": KEY}
    done = subprocess.run(command, stdout=subprocess.PIPE, env=environment, text=True, check=True)
    return int(done.stdout.split()[-1]) * 1024


def asked_at(server: Handle) -> list[float]:
    """When the server was asked, in seconds, since this was last called."""
    times: list[float] = server.control(forget=True)["times"]
    return times


def speed(films: int, posters: int, repeats: int) -> list[Row]:
    """Limiter off: from the first request to the last, as the server sees them."""
    rates: dict[str, list[float]] = {"films": [], "posters": []}
    with serve(films=films, max_posters=posters, poster_share=1.0, **POSTER) as server:
        for _ in range(repeats):
            with tempfile.TemporaryDirectory() as folder:
                for name, count, extra in (("films", films, ["--size", "none"]), ("posters", posters, [])):
                    fetch(server, Path(folder), "--rate", "0", *extra)
                    times = asked_at(server)
                    rates[name].append(count / (times[-1] - times[0]))
    return [
        measured("fetch: films, 20 a page, limiter off", rates["films"], "films/s"),
        measured("fetch: posters of 342x513, limiter off", rates["posters"], "posters/s"),
    ]


def politeness(posters: int) -> list[Row]:
    """Limiter on: requests a second over the whole run, and in the busiest second, as the server sees them."""
    with (
        serve(films=posters, poster_share=1.0, crowded=1.0, **POSTER) as server,
        tempfile.TemporaryDirectory() as folder,
    ):
        fetch(server, Path(folder), "--rate", str(RATE))
        times = asked_at(server)
    mean = (len(times) - 1) / (times[-1] - times[0])
    most = most_in_a_second(times)
    within = 0.97 * RATE <= mean <= RATE
    seconds = f"{len(times)} requests in {times[-1] - times[0]:.1f} s"
    return [
        Row(
            claim=f"fetch: rate at --rate {RATE}",
            value=mean,
            unit="requests/s",
            goal=f"{0.97 * RATE:.1f} to {RATE}",
            holds=within,
            spread=seconds,
        ),
        Row(
            claim=f"fetch: busiest second at --rate {RATE}",
            value=most,
            unit="requests",
            goal=f"{RATE} or less",
            holds=most <= RATE,
            spread="any one-second window",
        ),
    ]


def memory(sizes: list[int]) -> list[Row]:
    """Peak resident memory of a whole fetch, 500 posters among it, by number of films."""
    peaks = []
    for films in sizes:
        with serve(films=films, max_posters=500, **POSTER) as server, tempfile.TemporaryDirectory() as folder:
            peaks.append(fetch(server, Path(folder), "--rate", "0") / 2**20)
    return [
        Row(
            claim=f"fetch: peak memory at {films:,} films",
            value=peak,
            unit="MiB",
            goal=f"within 10 % of {peaks[0]:.0f}",
            holds=abs(peak / peaks[0] - 1) <= 0.1,
        )
        for films, peak in zip(sizes, peaks, strict=True)
    ]


if __name__ == "__main__":
    main()
