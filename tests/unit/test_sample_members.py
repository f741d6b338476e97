"""Reading a sample's members: the short way for what packing writes gives what the long way gives."""

import json
import tarfile

import numpy as np
import pytest
from fuzzing import within_memory
from hypothesis import given, settings
from hypothesis import strategies as st

from genre_dist.packing.shard import tar_of, tokens_member
from genre_dist.stream import sample as reading
from genre_dist.stream.sample import load_genres, load_tokens, read_members

law = settings(deadline=None, max_examples=80)
FILM = {"tmdb_id": 603, "title": "The Film", "genre_ids": [28, 878], "release_date": "1999-03-30"}


def piece(**changes: object) -> bytes:
    film, tokens = FILM | changes, tokens_member(np.arange(5, dtype=np.int32))
    about = json.dumps(film, ensure_ascii=False).encode()
    return tar_of(str(film["tmdb_id"]), {"json": about, "jpg": b"\xff\xd8 a poster", "tokens.npy": tokens})


def outcome(data: bytes, film: int) -> dict[str, bytes] | str:
    """The members, or the error."""
    try:
        return {name: bytes(view) for name, view in read_members(data, film).items()}
    except ValueError as error:
        return str(error)


def the_long_way(data: bytes, film: int) -> dict[str, bytes] | str:
    try:
        return {
            name: bytes(view) for name, view in reading._members(memoryview(data), str(film), f"film {film}").items()
        }
    except ValueError as error:
        return str(error)


def test_what_packing_writes_takes_the_short_way() -> None:
    found = reading._plain_members(memoryview(piece()), b"603.")
    assert found is not None
    assert list(found) == ["json", "jpg", "tokens.npy"]
    assert {name: bytes(view) for name, view in found.items()} == the_long_way(piece(), 603)


@law
@given(st.integers(0, len(piece()) - 1), st.integers(0, 255), st.integers(1, len(piece())))
def test_a_byte_changed_anywhere_or_an_end_missing_makes_no_difference_between_the_two(
    at: int, value: int, end: int
) -> None:
    data = bytearray(piece())
    data[at] = value
    for damaged in (bytes(data), bytes(data[:end])):
        assert outcome(damaged, 603) == the_long_way(damaged, 603)


@law
@given(st.integers(0, 2).flatmap(lambda member: st.tuples(st.just(member), st.integers(0, 511))), st.integers(0, 255))
def test_a_byte_changed_in_any_header_makes_no_difference_either(place: tuple[int, int], value: int) -> None:
    data = bytearray(piece())
    data[1024 * place[0] + place[1]] = value  # every member here has one block of content
    assert outcome(bytes(data), 603) == the_long_way(bytes(data), 603)


@pytest.mark.parametrize("format_", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_tars_of_other_writers_are_read_too(format_: int) -> None:
    info = tarfile.TarInfo("603.jpg")
    info.size, info.mtime = 3, 1.5  # a fraction makes a PAX record
    data = info.tobuf(format_) + b"abc".ljust(512, b"\0")
    assert outcome(data, 603) == {"jpg": b"abc"}


def test_another_films_piece_is_refused() -> None:
    assert "index is of another tar" in str(outcome(piece(), 60))
    assert "index is of another tar" in str(outcome(piece(), 6030))


@pytest.mark.slow
@law
@given(st.text(max_size=20), st.none() | st.text(max_size=5), st.lists(st.integers(1, 10**6), max_size=4))
def test_genres_are_those_that_a_json_parser_finds_whatever_the_title(
    title: str, date: str | None, genres: list[int]
) -> None:
    about = {"tmdb_id": 603, "title": title, "genre_ids": genres, "release_date": date}
    assert load_genres(json.dumps(about, ensure_ascii=False).encode()) == tuple(genres)


@pytest.mark.parametrize("title", ['", "genre_ids": [1], "x": "', '\\", "genre_ids": [1]', "é", "a\nb"])
def test_a_title_that_looks_like_genres_is_a_title(title: str) -> None:
    about = FILM | {"title": title}
    assert load_genres(json.dumps(about, ensure_ascii=False).encode()) == (28, 878)


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"[]", b"{}", b"null", b'{"genre_ids": 3}', b'{"genre_ids": ["a"]}', b'{"genre_ids": [1]', b"\xff"),
        *(b'{"genre_ids": [true]}', b'{"genre_ids": [28.0]}', b'{"genre_ids": [[28]]}', b'{"genre_ids": {"28": 1}}'),
        *(b"[" * 200_000, b'{"a":' * 200_000, b'{"genre_ids": [' + b"9" * 5000 + b"]}"),
    ],
)
def test_what_has_no_genres_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        load_genres(text)


@pytest.mark.parametrize(
    "shape", ["(1000000000000,)", "(9223372036854775808, 9223372036854775808)", "(-5,)", "(4, 1)", "()"]
)
def test_tokens_of_another_shape_than_their_bytes_are_refused_before_memory_is_taken(shape: str) -> None:
    text = f"{{'descr': '<i4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    data = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(16)
    with within_memory(100 << 20), pytest.raises(ValueError, match="the tokens are no"):
        load_tokens(data, 100)
