"""TMDB's film genres: the labels of this project, in one fixed order.

The order is TMDB's alphabetical order by name, the one the 2018 study numbered 0 to 18. A manifest stores the list it
was packed with, so shards stay readable if TMDB ever adds a genre.
"""

from typing import NamedTuple


class Genre(NamedTuple):
    """One genre: TMDB's id for it and its English name."""

    id: int
    name: str


GENRES: tuple[Genre, ...] = (
    Genre(28, "Action"),
    Genre(12, "Adventure"),
    Genre(16, "Animation"),
    Genre(35, "Comedy"),
    Genre(80, "Crime"),
    Genre(99, "Documentary"),
    Genre(18, "Drama"),
    Genre(10751, "Family"),
    Genre(14, "Fantasy"),
    Genre(36, "History"),
    Genre(27, "Horror"),
    Genre(10402, "Music"),
    Genre(9648, "Mystery"),
    Genre(10749, "Romance"),
    Genre(878, "Science Fiction"),
    Genre(10770, "TV Movie"),
    Genre(53, "Thriller"),
    Genre(10752, "War"),
    Genre(37, "Western"),
)

GENRE_NAMES: tuple[str, ...] = tuple(genre.name for genre in GENRES)
INDEX_OF_ID: dict[int, int] = {genre.id: index for index, genre in enumerate(GENRES)}
ID_OF_NAME: dict[str, int] = {genre.name.lower(): genre.id for genre in GENRES}
