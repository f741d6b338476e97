"""How fast `genre-dist fetch` is, and how closely it keeps its rate: the command users run, against a server on
loopback that behaves like TMDB (tests/acquire_server.py, a Python process on the same cores).

python benchmarks/fetch.py            (several minutes)
python benchmarks/fetch.py --quick
"""

import sys
import tempfile
from pathlib import Path

from common import Row, measured, options, report
from memory import peak

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from acquire_server import Handle, most_in_a_second, serve

RATE = 40
POSTER = {"width": 342, "height": 513}


def main() -> None:
    arguments = options(__doc__ or "")
    films = 5_000 if arguments.quick else 20_000
    rows = speed(films, posters=1_000 if arguments.quick else 4_000, repeats=2 if arguments.quick else 3)
    rows += politeness(posters=400 if arguments.quick else 2_400)
    report(rows, arguments.json)


def fetch(server: Handle, out: Path, *extra: str) -> None:
    """Run the verb in a process of its own."""
    peak([*server.arguments(out), "--years", "1985-2012", *extra])


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


if __name__ == "__main__":
    main()
