"""The journal: what was appended is read back, wherever the process was killed."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genre_dist.acquire.journal import Journal, Offsets


def lines_of(path: Path) -> list[dict[str, object]]:
    with Journal(path) as journal:
        return [line for _, line in journal.lines()]


def test_lines_come_back_with_the_offsets_they_were_written_at(tmp_path: Path) -> None:
    with Journal(tmp_path / "deep" / "journal.jsonl") as journal:
        offsets = journal.append({"a": 1}, {"b": "Amélie\nnew line"}) + journal.append({"c": []})
        assert [journal.read(offset) for offset in reversed(offsets)] == [
            {"c": []},
            {"b": "Amélie\nnew line"},
            {"a": 1},
        ]
        assert [offset for offset, _ in journal.lines()] == offsets


@pytest.mark.parametrize("length", [1, 5, 100, 200_000])
def test_a_torn_last_line_is_cut_off_wherever_it_ends(tmp_path: Path, length: int) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.append({"a": 1}, {"b": 2})
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"c":"' + b"x" * length)
    assert lines_of(path) == [{"a": 1}, {"b": 2}]
    with Journal(path) as journal:
        journal.append({"d": 4})
    assert lines_of(path) == [{"a": 1}, {"b": 2}, {"d": 4}]


def test_a_journal_killed_within_its_first_line_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"a"')
    assert lines_of(path) == []
    assert path.read_bytes() == b""


def test_every_cut_of_the_file_leaves_the_lines_before_it(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        offsets = journal.append(*({"n": n, "text": "x" * n} for n in range(5)))
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        ends = [*offsets[1:], len(whole)]
        assert len(lines_of(path)) == sum(end <= cut for end in ends)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"a":1}\n\0\0\0\n{"b":2}\n')
    with pytest.raises(ValueError, match=r"journal\.jsonl, line 2: damaged\. Delete"):
        lines_of(path)


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    with Journal(tmp_path / "j"), pytest.raises(ValueError, match="another fetch is writing"), Journal(tmp_path / "j"):
        pass


@given(st.lists(st.tuples(st.integers(1, 2000) | st.integers(1, 10**18), st.integers(0, 2**40))))
def test_offsets_are_a_map_that_goes_through_films_in_order(pairs: list[tuple[int, int]]) -> None:
    offsets, expected = Offsets(), dict(pairs)
    for film, offset in pairs:
        offsets[film] = offset
    assert list(offsets) == sorted(expected)
    assert len(offsets) == len(expected)
    assert all(offsets.get(film) == offset for film, offset in expected.items())
    assert 3000 in offsets or offsets.get(3000) is None
