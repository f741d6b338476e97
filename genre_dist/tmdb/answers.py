"""What the API answers, as types: an answer that is none of these is no answer, and the same is asked again.

What the API says beside them is let be: it grows.
"""

from typing import Annotated, NotRequired, TypeVar

from annotated_types import Ge, Le, Len
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from genre_dist.tmdb.web import UnreachableError
from genre_dist.validation import Count

MOST_LISTED = 100
"""Films of a page (TMDB gives 20), genres of a film or of the API (19)."""

FilmId = Annotated[int, Ge(1), Le(2**63 - 1)]
"""What the catalogue's column can hold."""
GenreId = Annotated[int, Ge(0), Le(2**31 - 1)]
Number = Annotated[float, Ge(-3e38), Le(3e38)]
"""What fits into 32 bits, so neither infinite nor NaN."""


class GenreAnswer(TypedDict):
    """A genre as the API lists it."""

    id: GenreId
    name: str


class GenresAnswer(TypedDict):
    """All genres of the API."""

    genres: Annotated[list[GenreAnswer], Len(0, MOST_LISTED)]


class FilmAnswer(TypedDict):
    """A film: on a page with `genre_ids`, by its id with `genres` and `imdb_id`. Other fields may be null."""

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
    """An answer's JSON as a value of a type. Raises UnreachableError, which quotes nothing: the key may be in it."""
    try:
        return kind.validate_json(body, strict=True)
    except ValidationError as error:
        key = ".".join(map(str, error.errors(include_url=False, include_input=False)[0]["loc"]))
    raise UnreachableError(f"wrong answer: {key}" if key else "the answer is no JSON object")
