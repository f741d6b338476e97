"""The journal: what was appended is read back, wherever the process was killed; what is damaged is known to be."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genre_dist.tmdb.fetch_state import State
from genre_dist.tmdb.journal import Journal, Offsets

ROW = {
    **dict.fromkeys(("imdb_id", "title", "original_language", "overview", "release_date", "poster_path"), ""),
    **{"tmdb_id": 1, "genre_ids": [18], "popularity": 0.5, "adult": False, "fetched_at": "2026-01-01T00:00:00+00:00"},
}
KEY = "all,votes>=0 1999-01-01..1999-12-31"


def film(number: int, **changes: Any) -> dict[str, Any]:
    return {"film": ROW | {"tmdb_id": number} | changes}


def page(number: int, *films: int, pages: int = 2) -> dict[str, Any]:
    return {"page": number, "of": KEY, "pages": pages, "results": 4, "ids": list(films)}


def lines_of(path: Path) -> list[Any]:
    with Journal(path) as journal:
        return [line for _, line in journal.lines()]


def write(path: Path, *lines: Any) -> list[bytes]:
    """Append lines to the journal; all lines of the file."""
    with Journal(path) as journal:
        journal.append(*lines)
    return path.read_bytes().splitlines(keepends=True)


def test_lines_come_back_with_the_offsets_they_were_written_at(tmp_path: Path) -> None:
    with Journal(tmp_path / "deep" / "journal.jsonl") as journal:
        appended = journal.append({"failed": "a"}, {"failed": "Amélie\nnew line"}) + journal.append(film(3))
        assert [journal.read(offset) for offset, _ in reversed(appended)] == [
            film(3),
            {"failed": "Amélie\nnew line"},
            {"failed": "a"},
        ]
        assert list(journal.lines()) == appended


@pytest.mark.parametrize("length", [1, 5, 100, 200_000])
def test_a_torn_last_line_is_cut_off_wherever_it_ends(tmp_path: Path, length: int) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, {"failed": "1"}, {"failed": "2"})
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"c":"' + b"x" * length)
    assert lines_of(path) == [{"failed": "1"}, {"failed": "2"}]
    write(path, {"failed": "4"})
    assert lines_of(path) == [{"failed": "1"}, {"failed": "2"}, {"failed": "4"}]


def test_a_journal_killed_within_its_first_line_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"a"')
    assert lines_of(path) == []
    assert path.read_bytes() == b""


def test_every_cut_of_the_file_leaves_the_lines_before_it(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    lines = write(path, *({"failed": "x" * n} for n in range(5)))
    ends = [len(b"".join(lines[: n + 1])) for n in range(5)]
    for cut in range(ends[-1]):
        path.write_bytes(b"".join(lines)[:cut])
        assert len(lines_of(path)) == sum(end <= cut for end in ends)


def test_no_flipped_bit_goes_unnoticed(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    lines = write(path, film(5, overview="a story"), {"failed": "x"})
    for place in range(len(lines[0]) - 1):
        for bit in range(8):
            flipped = bytearray(lines[0])
            flipped[place] ^= 1 << bit
            path.write_bytes(bytes(flipped) + lines[1])
            read = lines_of(path)
            assert read[-1] == {"failed": "x"}
            assert all(line in (None, film(5, overview="a story")) for line in read[:-1])


@pytest.mark.parametrize(
    "damaged",
    [
        b"\0\0\0\n",
        b"[" * 200_000 + b"\n",
        b"null\n",
        b"{}\n",
        b'{"new":1}\n',
        b'{"film":{"tmdb_id":5}}\n',
        b'{"poster":5}\n',
        b'{"window":5}\n',
        b'{"window":"no dates"}\n',
        json.dumps(film(2**63 + 5)).encode() + b"\n",
        json.dumps(film(5, fetched_at="yesterday")).encode() + b"\n",
        json.dumps(film(5, genre_ids=[2**31])).encode() + b"\n",
        json.dumps(film(5, overview=5)).encode() + b"\n",
    ],
)
def test_a_line_that_says_nothing_is_numbered_and_passed_over(tmp_path: Path, damaged: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(json.dumps(film(1)).encode() + b"\n" + damaged + json.dumps(film(3)).encode() + b"\n")
    with Journal(path) as journal:
        state = State(journal)
        assert list(state.films) == [1, 3]
        assert state.damaged.lines() == ["1 damaged lines, such as line 2"]


def test_lines_of_older_versions_have_no_checksum_and_come_first(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    old, new = json.dumps(film(1)).encode() + b"\n", write(path, film(2))
    without = json.dumps(film(3)).encode() + b"\n"  # or one whose checksum was lost with other bytes
    path.write_bytes(b"".join([old, *new, without]))
    with Journal(path) as journal:
        state = State(journal)
        assert (list(state.films), state.damaged.lines()) == ([1, 2], ["1 damaged lines, such as line 3"])
        assert [journal.read(state.films.get(number))["film"]["tmdb_id"] for number in (1, 2)] == [1, 2]
    path.write_bytes(new[0].replace(b'"crc"', b'"brc"'))
    with Journal(path) as journal:
        assert State(journal).damaged.lines() == ["1 damaged lines, such as line 1"]


def test_what_a_damaged_line_said_is_not_taken_for_done(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    window = {"window": KEY, "films": 4, "results": 4}
    whole = write(path, film(1), film(2), page(1, 1, 2), film(3), film(4), page(2, 3, 4), window)

    def done(lines: list[bytes]) -> tuple[bool, set[int]]:
        """Whether the window is done, and the pages that are there if it is not."""
        path.write_bytes(b"".join(lines))
        with Journal(path) as journal:
            state = State(journal)
            return KEY in state.done, set(state.pages.get(KEY, {}))

    assert done(whole) == (True, set())
    for number, pages in enumerate([{2}, {2}, set(), {1}, {1}, {1}, {1, 2}]):
        damaged = [*whole[:number], whole[number].replace(b'"crc":"', b'"crc":"0'), *whole[number + 1 :]]
        assert done(damaged) == (False, pages), number
        lost = whole[:number] + whole[number + 1 :]
        assert done(lost) == (False, pages | {2} if number == 2 else pages), number


@pytest.mark.parametrize("refreshed", [False, True])
def test_where_the_line_of_a_refresh_is_damaged_the_older_one_does_not_count(tmp_path: Path, refreshed: bool) -> None:
    path = tmp_path / "journal.jsonl"
    refresh = [{"refresh": [1999], "query": "all,votes>=0"}] if refreshed else []
    write(path, film(1, title="Old"), page(1, 1, pages=1), *refresh)
    with path.open("ab") as file:
        file.write(b"damaged\n")
    write(path, page(1, 1, pages=1))
    with Journal(path) as journal:
        assert list(State(journal).films) == ([] if refreshed else [1])


def test_a_page_after_damage_may_be_recorded_in_the_same_process(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b"damaged\n")
    with Journal(path) as journal:
        state = State(journal)
        state.record(film(1), page(1, 1, pages=1))
        assert set(state.pages[KEY]) == {1}


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal, pytest.raises(ValueError, match=r'journal\.jsonl cannot hold {"film":.*9223372036'):
        journal.append(film(1), film(2**63 + 5))
    assert path.read_bytes() == b""


@given(st.lists(st.tuples(st.integers(1, 2000) | st.integers(1, 10**18), st.integers(0, 2**40))))
def test_offsets_are_a_map_that_goes_through_films_in_order(pairs: list[tuple[int, int]]) -> None:
    offsets, expected = Offsets(), dict(pairs)
    for film, offset in pairs:
        offsets[film] = offset
    for film, _ in pairs[:2]:
        offsets.discard(film)
        expected.pop(film, None)
    assert list(offsets) == sorted(expected)
    assert len(offsets) == len(expected)
    assert all(offsets.get(film) == offset for film, offset in expected.items())
    assert 3000 in offsets or offsets.get(3000) is None
