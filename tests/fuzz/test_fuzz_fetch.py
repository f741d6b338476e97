"""Fuzzing what fetch reads: answers of the API, Retry-After, images, and the journal."""

import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from fuzzing import damaged, odd_json, within_memory
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from genre_dist.catalogue.catalogue import read_rows
from genre_dist.catalogue.tables import film_row
from genre_dist.tmdb.answers import EXPORTED, FILM, GENRES, PAGE, read_answer
from genre_dist.tmdb.api import genre_differences
from genre_dist.tmdb.fetch_posters import check_image
from genre_dist.tmdb.fetch_state import FetchOptions, State
from genre_dist.tmdb.fetching import NOT_YET, write_catalogue
from genre_dist.tmdb.journal import Journal
from genre_dist.tmdb.limiter import MOST_SECONDS, retry_after_seconds
from genre_dist.tmdb.web import FetchError, unpacked

Result = TypeVar("Result")
TOY_STORY = {
    "id": 862,
    "imdb_id": "tt0114709",
    "title": "Toy Story",
    "original_language": "en",
    "overview": "Led by Woody, Andy's toys live happily",
    "release_date": "1995-11-22",
    "poster_path": "/poster.jpg",
    "genre_ids": [16, 35, 10751],
    "popularity": 7.5,
    "adult": False,
    "vote_count": 10,
}
GENRE_LIST = {"genres": [{"id": 28, "name": "Action"}, {"id": 12, "name": "Adventure"}]}
DETAILS = {name: value for name, value in TOY_STORY.items() if name != "genre_ids"} | GENRE_LIST
PAGE_OF_TWO = {"page": 1, "results": [TOY_STORY, TOY_STORY | {"id": 863}], "total_pages": 1, "total_results": 2}
KEY = "all,votes>=0 1995-01-01..1995-12-31"
LINES: list[dict[str, Any]] = [
    *({"film": film_row(film["id"], film, Counter()) | {"fetched_at": None}} for film in PAGE_OF_TWO["results"]),  # type: ignore
    {"page": 1, "of": KEY, "pages": 1, "results": 2, "ids": [862, 863]},
    {"window": KEY, "films": 2, "results": 2},
    {"poster": 862, "path": "/poster.jpg", "status": "ok", "bytes": 5, "sha256": "0" * 64},
    {"passed_over": 5, "query": "all,votes>=0", "reason": "404"},
    {"refresh": [1995], "query": "all,votes>=0", "at": "2026-01-01T00:00:00+00:00"},
    {"refreshed": "2026-01-01T00:00:00+00:00"},
    {"split": KEY},
    {"again": KEY},
    {"failed": "film 7", "reason": "timeout"},
]


def told_or_done(work: Callable[[], Result]) -> Result | None:
    """What `work` returns; None where it raised FetchError with a text that a terminal may see."""
    try:
        return work()
    except FetchError as failure:
        told = str(failure)
    assert told.isprintable()
    return None


def catalogue_of(folder: Path, text: bytes) -> tuple[State, list[dict[str, Any]]]:
    """What a fetch makes of a journal: its state, and the rows of the catalogue that it writes."""
    path = folder / ".fetch" / "journal.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text)
    with Journal(path) as journal:
        state = State(journal)
        write_catalogue(state, FetchOptions(out=folder, key="key", years=[1995]))
    return state, list(read_rows(folder))


def written(folder: Path, *lines: dict[str, Any]) -> bytes:
    path = folder / "written.jsonl"
    path.unlink(missing_ok=True)
    with Journal(path) as journal:
        journal.append(*lines)
    return path.read_bytes()


@given(body=st.one_of(odd_json(PAGE_OF_TWO), damaged(json.dumps(PAGE_OF_TWO).encode()), st.binary()))
def test_fuzz_of_pages_a_page_is_none_or_its_films_fit_into_the_catalogue(body: bytes, tmp_path: Path) -> None:
    page = told_or_done(lambda: read_answer(PAGE, body))
    rows = [film_row(film["id"], film, Counter()) for film in page["results"]] if page else []
    text = written(tmp_path, *({"film": row | {"fetched_at": None}} for row in rows))
    state, in_catalogue = catalogue_of(tmp_path, text)
    assert not state.damaged.counts
    assert [row["tmdb_id"] for row in in_catalogue] == sorted({row["tmdb_id"] for row in rows})


@given(film=odd_json(DETAILS), genres=odd_json(GENRE_LIST), line=odd_json({"id": 5, "original_title": "A"}))
def test_fuzz_of_other_answers_they_are_none_or_of_their_types(film: bytes, genres: bytes, line: bytes) -> None:
    with within_memory(200 << 20):
        if answer := told_or_done(lambda: read_answer(FILM, film)):
            film_row(answer["id"], answer, Counter())
        if answer := told_or_done(lambda: read_answer(GENRES, genres)):
            genre_differences({genre["id"]: genre["name"] for genre in answer["genres"]})
        if answer := told_or_done(lambda: read_answer(EXPORTED, line)):
            assert 0 < answer["id"] < 2**63


@given(lines=st.lists(st.one_of(*map(odd_json, LINES)), max_size=6))
def test_fuzz_of_the_journal_odd_lines_are_counted_and_the_others_are_read(lines: list[bytes], tmp_path: Path) -> None:
    good = written(tmp_path, *LINES)
    state, rows = catalogue_of(tmp_path, good + b"".join(line.replace(b"\n", b" ") + b"\n" for line in lines) + good)
    assert {862, 863} <= {row["tmdb_id"] for row in rows}
    assert state.damaged.counts.total() <= len(lines)


@given(data=st.data())
def test_fuzz_of_the_journal_damaged_bytes_change_no_film_unnoticed(data: st.DataObject, tmp_path: Path) -> None:
    good = written(tmp_path, *LINES)
    _, whole = catalogue_of(tmp_path, good)
    text = data.draw(damaged(good))
    with within_memory(200 << 20):
        state, rows = catalogue_of(tmp_path, text)
    untried = [row | {"poster_status": NOT_YET, "poster_bytes": 0, "poster_sha256": ""} for row in whole]
    assert all(row in whole + untried for row in rows)
    if len(rows) < len(whole):
        assert KEY not in state.done


@given(
    header=st.text()
    | st.from_regex(r"[A-Z][a-z]{2}, \d{1,3} [A-Z][a-z]{2} \d{1,11} \d\d:\d\d:\d\d ([A-Z]{3}|[-+]\d{4,6})")
)
@example("9" * 5000)
@example("Fri, 31 Dec 9999 23:59:59 -2359")
def test_fuzz_of_retry_after_it_is_seconds_or_nothing(header: str) -> None:
    seconds = retry_after_seconds(header)
    assert seconds is None or 0 <= seconds <= MOST_SECONDS


def images() -> list[bytes]:
    files = []
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF"):
        file = io.BytesIO()
        Image.effect_noise((40, 60), 30).convert("RGB").save(file, kind)
        files.append(file.getvalue())
    return files


@given(body=st.one_of(*map(damaged, images())))
def test_fuzz_of_images_they_are_taken_or_refused(body: bytes) -> None:
    told_or_done(lambda: check_image(body))


@given(
    body=st.binary() | st.binary().map(lambda tail: b"\x1f\x8b\x08" + tail),
    encoding=st.sampled_from(["", "gzip", "deflate", "br"]),
)
def test_fuzz_of_packed_answers_they_are_unpacked_or_none(body: bytes, encoding: str) -> None:
    plain = told_or_done(lambda: unpacked(body, {"Content-Encoding": encoding}, 1 << 20))
    assert plain is None or len(plain) <= 1 << 20
