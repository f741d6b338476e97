"""The TMDB API: genres, films by release date, one film."""

import os
import re
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from genre_dist.genres import GENRES as KNOWN_GENRES
from genre_dist.tmdb.answers import FILM, GENRES, PAGE, Answer, FilmAnswer, PageAnswer, read_answer
from genre_dist.tmdb.web import FetchError, Web
from genre_dist.tmdb.windows import Window

MOST_PAGES = 500  # pages of a query; the API refuses page 501
FILMS_PER_PAGE = 20
MOST_FILMS = MOST_PAGES * FILMS_PER_PAGE
LARGEST_ANSWER_BYTES = 4 << 20
# Popularity changes while pages are read, so films would move between pages; dates do not.
SORTED_BY = "primary_release_date.asc"


def read_key(key_file: Path | None) -> str:
    """The API key or bearer token, from a file or the variable TMDB_API_KEY. Raises ValueError without one."""
    source = f"--key_file {key_file}" if key_file else "TMDB_API_KEY"
    key = (key_file.read_text(errors="replace") if key_file else os.environ.get("TMDB_API_KEY", "")).strip()
    if not key:
        raise ValueError(
            f"no TMDB key in {source}: get one, free, at https://www.themoviedb.org/settings/api, then "
            "`export TMDB_API_KEY=...` or give a file that holds it with --key_file FILE"
        )
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise ValueError(f"{source} holds more than a key; it must be the key alone, one word")
    return key


def is_bearer_token(key: str) -> bool:
    """Whether a key is a v4 read access token (a JWT: three long parts between dots), not a v3 key (32 hex digits)."""
    return len(key) > 60 and key.count(".") == 2


class KeyRefusedError(ValueError):
    """TMDB refused the key."""


class Tmdb:
    """The metadata API. Its methods may run in any thread; they raise FetchError or KeyRefusedError."""

    def __init__(self, shared: Web, key: str, api_url: str) -> None:
        """`api_url` may end in the API's version, /3, or omit it."""
        self.web = shared
        self.address = api_url.rstrip("/").removesuffix("/3") + "/3"
        self._headers = {"Accept": "application/json", "Accept-Encoding": "gzip"}
        self._key = {} if is_bearer_token(key) else {"api_key": key}
        if not self._key:
            self._headers["Authorization"] = f"Bearer {key}"

    def genres(self) -> dict[int, str]:
        """The API's genres: id -> name."""
        return {genre["id"]: genre["name"] for genre in self._ask("genre/movie/list", GENRES)["genres"]}

    def discover(self, window: Window, page: int, filters: dict[str, Any]) -> PageAnswer:
        """One page of the films of a window."""
        query = filters | {
            "primary_release_date.gte": str(window.first),
            "primary_release_date.lte": str(window.last),
            "sort_by": SORTED_BY,
            "page": page,
        }
        return self._ask("discover/movie", PAGE, **query)

    def movie(self, film: int) -> FilmAnswer:
        """One film, with its imdb_id, which the answers of `discover` lack."""
        answer = self._ask(f"movie/{film}", FILM)
        if answer["id"] != film:
            raise FetchError("the answer is another film")
        return answer

    def _ask(self, path: str, kind: TypeAdapter[Answer], **query: Any) -> Answer:
        request = {"params": query | self._key, "headers": self._headers}

        def once() -> Answer:
            # no redirects: they would send the key to another host, or to one without TLS
            return read_answer(kind, self.web.body(f"{self.address}/{path}", LARGEST_ANSWER_BYTES, 0, **request))

        try:
            return self.web.retried(once)
        except FetchError as error:
            if str(error) == "401":
                raise KeyRefusedError("TMDB refused the key (401); check TMDB_API_KEY or --key_file") from None
            raise


def genre_differences(listed: dict[int, str]) -> list[str]:
    """A line for each genre that differs between the API's list and this package's."""
    known = {genre.id: genre.name for genre in KNOWN_GENRES}
    return [
        f"genre {number}: {known.get(number, 'none')!r} here, {listed.get(number, 'none')!r} in the API"
        for number in sorted(known.keys() | listed.keys())
        if known.get(number) != listed.get(number)
    ]
