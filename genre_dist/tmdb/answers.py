"""The API's answers as types: an answer of no such type counts as a failed attempt, and the request is repeated.

Unknown fields are ignored, as the API grows.
"""

from typing import Annotated, NotRequired, TypeVar

from annotated_types import Ge, Le, Len
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from genre_dist.tmdb.web import UnreachableError
from genre_dist.validation import Count

MOST_LISTED = 100
"""Longest list that is accepted: films of a page (TMDB gives 20), genres of a film or of the API (19)."""

FilmId = Annotated[int, Ge(1), Le(2**63 - 1)]
"""An id that the catalogue's column can hold."""
GenreId = Annotated[int, Ge(0), Le(2**31 - 1)]
Number = Annotated[float, Ge(-3e38), Le(3e38)]
"""A number that fits into 32 bits, so neither infinite nor NaN."""


class GenreAnswer(TypedDict):
    """A genre in the API's list."""

    id: GenreId
    name: str


class GenresAnswer(TypedDict):
    """All genres of the API."""

    genres: Annotated[list[GenreAnswer], Len(0, MOST_LISTED)]


class FilmAnswer(TypedDict):
    """A film; pages give `genre_ids`, a request by id gives `genres` and `imdb_id`. Other fields may be null."""

    id: FilmId
    imdb_id: NotRequired[str | None]
    title: NotRequired[str | None]
    original_language: NotRequired[str | None]
    overview: NotRequired[str | None]
    release_date: NotRequired[str | None]
    poster_path: NotRequired[str | None]
    genre_ids: NotRequired[Annotated[list[GenreId], Len(0, MOST_LISTED)]]
    genres: NotRequired[Annotated[list[GenreAnswer], Len(0, MOST_LISTED)]]
    popularity: NotRequired[Number | None]
    adult: NotRequired[bool | None]
    vote_count: NotRequired[Count | None]


class PageAnswer(TypedDict):
    """One page of the films of a query."""

    results: Annotated[list[FilmAnswer], Len(0, MOST_LISTED)]
    total_pages: Count
    total_results: Count


class ExportedFilm(TypedDict):
    """A line of the daily id export."""

    id: FilmId


GENRES = TypeAdapter(GenresAnswer)
FILM = TypeAdapter(FilmAnswer)
PAGE = TypeAdapter(PageAnswer)
EXPORTED = TypeAdapter(ExportedFilm)

Answer = TypeVar("Answer")


def read_answer(kind: TypeAdapter[Answer], body: bytes) -> Answer:
    """An answer's JSON as a value of a type. Raises UnreachableError without a quotation: that could reveal the key."""
    try:
        return kind.validate_json(body, strict=True)
    except ValidationError as error:
        key = ".".join(map(str, error.errors(include_url=False, include_input=False)[0]["loc"]))
    raise UnreachableError(f"wrong answer: {key}" if key else "the answer is no JSON object")
