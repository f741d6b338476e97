"""The TMDB API through tmdbsimple: genres, films by release date, one film; and how a film becomes a catalogue row.

tmdbsimple sets its address and a `Connection: close` of its own on every object; both are replaced here, so that a
mirror can be asked and connections are kept.
"""

import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tmdbsimple

from genre_dist.acquire import web
from genre_dist.acquire.tables import TEXT_COLUMNS, genre_ids, number_of, release_date, text_of
from genre_dist.acquire.web import FetchError, TransientError, Web
from genre_dist.acquire.windows import Window
from genre_dist.genres import GENRES

MOST_PAGES = 500  # of a query; the API refuses page 501
FILMS_PER_PAGE = 20
MOST_FILMS = MOST_PAGES * FILMS_PER_PAGE
# By date, not popularity: that changes while pages are read, and films would move between them.
SORTED_BY = "primary_release_date.asc"


def read_key(key_file: Path | None) -> str:
    """The API key or bearer token, from a file or the variable TMDB_API_KEY. ValueError if there is none."""
    source = f"--key_file {key_file}" if key_file else "TMDB_API_KEY"
    key = (key_file.read_text() if key_file else os.environ.get("TMDB_API_KEY", "")).strip()
    if not key:
        raise ValueError(
            f"no TMDB key in {source}: get one, free, at https://www.themoviedb.org/settings/api, then "
            "`export TMDB_API_KEY=...` or give a file that holds it with --key_file FILE"
        )
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise ValueError(f"{source} holds more than a key; it must be the key alone, one word")
    return key


def is_bearer_token(key: str) -> bool:
    """Whether it is a v4 read access token (a JWT: three long parts between dots) and no v3 key (32 hex digits)."""
    return len(key) > 60 and key.count(".") == 2


class KeyRefusedError(ValueError):
    """TMDB does not know the key."""


class Tmdb:
    """The metadata API. Its methods may run in any thread; they raise FetchError, KeyRefusedError or StoppedError."""

    def __init__(self, shared: Web, key: str, api_url: str) -> None:
        """`api_url` may end in the API's version, /3, or leave it out."""
        self.web = shared
        self.address = api_url.rstrip("/").removesuffix("/3") + "/3"
        tmdbsimple.API_KEY = key  # the library keeps it there and nowhere else
        tmdbsimple.USE_BEARER_AUTH = is_bearer_token(key)

    def genres(self) -> dict[int, str]:
        """The API's own list: id -> name."""
        answer = self._ask(tmdbsimple.Genres, lambda api: api.movie_list(), "genres")
        return {genre["id"]: genre["name"] for genre in answer["genres"]}

    def discover(self, window: Window, page: int, filters: dict[str, Any]) -> dict[str, Any]:
        """One page of the films of a window: `results`, `total_pages`, `total_results`."""
        query = filters | {
            "primary_release_date.gte": str(window.first),
            "primary_release_date.lte": str(window.last),
            "sort_by": SORTED_BY,
            "page": page,
        }
        return self._ask(tmdbsimple.Discover, lambda api: api.movie(**query), "results")

    def movie(self, film: int) -> dict[str, Any]:
        """One film, with its imdb_id, which `discover` does not give."""
        return self._ask(lambda: tmdbsimple.Movies(film), lambda api: api.info(), "id")

    def _ask(self, make: Callable[[], Any], call: Callable[[Any], Any], needed: str) -> dict[str, Any]:
        def once() -> dict[str, Any]:
            api = make()
            api.base_uri, api.session, api.timeout = self.address, self.web.session, web.TIMEOUT_SECONDS
            del api.headers["Connection"]
            answer = call(api)
            if not isinstance(answer, dict) or needed not in answer:
                raise TransientError(f"the answer has no {needed}")
            return answer

        try:
            return self.web.patiently(once)
        except FetchError as error:
            if str(error) == "401":
                raise KeyRefusedError("TMDB refused the key (401); check TMDB_API_KEY or --key_file") from None
            raise


def genre_differences(listed: dict[int, str]) -> list[str]:
    """How the API's genres differ from ours, in words; empty if they do not."""
    ours = {genre.id: genre.name for genre in GENRES}
    return [
        f"genre {number}: {ours.get(number, 'none')!r} here, {listed.get(number, 'none')!r} in the API"
        for number in sorted(ours.keys() | listed.keys())
        if ours.get(number) != listed.get(number)
    ]


def film_row(film: Any, unknown_genres: Counter[str]) -> dict[str, Any] | None:
    """A film of the API as a row of the catalogue, less what concerns its poster and time; None if it has no id.

    `discover` gives no imdb_id: it stays empty but for films fetched one by one. Unknown genres are counted, and
    dropped.
    """
    number = film.get("id") if isinstance(film, dict) else None
    if not isinstance(number, int) or number <= 0:
        return None
    return {
        "tmdb_id": number,
        **{name: text_of(film.get(name)) for name in TEXT_COLUMNS},
        "genre_ids": genre_ids(film.get("genre_ids", film.get("genres")), unknown_genres),
        "release_date": release_date(film.get("release_date")),
        "popularity": number_of(film.get("popularity")),
        "adult": film.get("adult") is True,
    }
