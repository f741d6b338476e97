"""The API's answers: what is not as TMDB documents it is no answer, and nothing of it reaches a message."""

import json
from collections import Counter
from typing import Any

import pytest

from genre_dist.catalogue.tables import film_row
from genre_dist.tmdb.answers import EXPORTED, FILM, GENRES, PAGE, read_answer
from genre_dist.tmdb.web import UnreachableError

FILM_ON_PAGE = {"id": 862, "title": "Toy Story", "genre_ids": [16, 35], "popularity": 7.5, "release_date": "1995-11-22"}


def page(**changes: Any) -> bytes:
    """A page of one film, some of whose cells are changed."""
    return json.dumps({"results": [FILM_ON_PAGE | changes], "total_pages": 1, "total_results": 1}).encode()


def test_fields_that_are_new_missing_or_null_are_fine() -> None:
    of_texts = ("overview", "poster_path", "release_date")
    odd = dict.fromkeys((*of_texts, "popularity", "adult", "vote_count"))
    (film,) = read_answer(PAGE, page(new={"deep": [1]}, **odd))["results"]
    row = film_row(film["id"], film, Counter())
    assert (row["tmdb_id"], [row[name] for name in of_texts]) == (862, ["", "", ""])
    assert (row["popularity"], row["adult"]) == (None, False)
    assert film_row(5, read_answer(FILM, b'{"id": 5}'), Counter())["genre_ids"] == []


def test_control_characters_of_a_title_are_data() -> None:
    (film,) = read_answer(PAGE, page(title="A\x1b[31mB"))["results"]
    assert film_row(film["id"], film, Counter())["title"] == "A\x1b[31mB"


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        *(("id", value) for value in (0, -5, 2**63, 2**63 + 5, 10**40, 5.0, "5", True, None)),
        *(("popularity", value) for value in ("7.5", [], 1e300, float("nan"), float("inf"))),
        *(("genre_ids", value) for value in (None, "16", {"id": 16}, ["16"], [None], [16.0], [2**40], [16] * 101)),
        *((cell, value) for cell in ("title", "overview", "release_date", "poster_path") for value in (5, [], {})),
        *(("adult", value) for value in ("true", 1)),
        *(("vote_count", value) for value in ("5", -1)),
        *(("genres", value) for value in (None, [16], [{"id": 16}], [{"id": "16", "name": "Animation"}])),
    ],
)
def test_a_film_of_other_types_or_ranges_makes_a_page_no_answer(cell: str, value: Any) -> None:
    with pytest.raises(UnreachableError, match=rf"^wrong answer: results\.0\.{cell}(\.|$)"):
        read_answer(PAGE, page(**{cell: value}))


@pytest.mark.parametrize(
    "body",
    [
        '{"results": null, "total_pages": 1, "total_results": 0}',
        '{"results": {}, "total_pages": 1, "total_results": 0}',
        '{"results": [], "total_pages": "1", "total_results": 0}',
        '{"results": [], "total_pages": -1, "total_results": 0}',
        '{"results": [], "total_pages": 1e3, "total_results": 0}',
        '{"results": [], "total_pages": 1, "total_results": null}',
        '{"results": []}',
        "[]",
        "null",
        "",
        "<html>",
        "[" * 200_000,
        '{"a":' * 5_000,
        '{"results": [], "total_pages": 1' + "0" * 5_000 + ', "total_results": 0}',
        '{"results": [' + "1," * 500_000 + "1]}",
    ],
)
def test_a_page_of_another_shape_is_no_answer(body: str) -> None:
    with pytest.raises(
        UnreachableError, match=r"^(wrong answer: (results|total_pages|total_results)|the answer is no)"
    ):
        read_answer(PAGE, body.encode())


def test_genres_films_and_lines_of_the_export_are_checked_too() -> None:
    for kind, body in [(GENRES, '{"genres": null}'), (FILM, '{"id": null}'), (EXPORTED, '{"id": 9223372036854775813}')]:
        with pytest.raises(UnreachableError, match=r"wrong answer: (genres|id)"):
            read_answer(kind, body.encode())


def test_the_reason_quotes_nothing_of_the_answer() -> None:
    for body in (b'{"results": "KEY\x1b"}', b'{"results": [{"id": "KEY"}], "KEY": 1}', b"KEY", b'{"KEY'):
        with pytest.raises(UnreachableError) as raised:
            read_answer(PAGE, body)
        assert "KEY" not in str(raised.value)
        assert str(raised.value).isprintable()
        assert raised.value.__context__ is None
