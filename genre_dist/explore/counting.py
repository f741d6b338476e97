"""Counting in one pass over the films: arrays and bounded counters, whose size does not grow with the films."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from genre_dist.packing.posters import load_rgb
from genre_dist.packing.vocabulary import SPECIAL, forget_rare
from genre_dist.schema import TMDB, Schema, plural, with_article
from genre_dist.splits import order_key
from genre_dist.stream.manifest import SPLITS
from genre_dist.tars.films import Film

LONGEST = 65_535
"""The largest text length in words that the histogram has; longer texts count as this long."""
WIDEST = 8_192
"""The largest shorter side of a poster, in pixels, that the histogram has."""
MOST_WORDS = 100_000
"""The most distinct words in a genre's counter: 20 counters of about 10 MB."""


class PosterLook(NamedTuple):
    """The measured properties of a poster."""

    short_side: int
    """Pixels of the stored image."""
    brightness: float
    """Mean luma, 0 black to 255 white (Rec. 601)."""


class Counts:
    """All counters. `Film.genres` are indices into `genres`."""

    def __init__(self, genres: Sequence[str], poster_share: float = 1.0, declared: Schema = TMDB) -> None:
        self.genres, self.declared = list(genres), declared
        self.image = declared.first("image")
        self.unlabelled = f"without a known {declared.label}"
        self.poster_share = poster_share
        n = len(self.genres)
        self.films = np.zeros(len(SPLITS), np.int64)  # [splits]
        self.by_genre = np.zeros((n, len(SPLITS)), np.int64)  # [genres, splits]
        self.labels = np.zeros(n + 1, np.int64)  # [genres + 1] films by number of genres
        self.together = np.zeros((n, n), np.int64)  # [genres, genres] films with both; on the diagonal, with the genre
        self.lengths = np.zeros(LONGEST + 1, np.int64)  # [words] texts by number of words
        self.months = np.zeros(12, np.int64)  # [months] films
        self.genre_months = np.zeros((n, 12), np.int64)  # [genres, months]
        self.words: list[Counter[str]] = [Counter() for _ in self.genres]
        self.all_words: Counter[str] = Counter()
        self.short_sides = np.zeros((n, WIDEST + 1), np.int64)  # [genres, pixels] posters
        self.brightness = np.zeros((n, 256), np.int64)  # [genres, levels] posters
        self.lacking: Counter[str] = Counter()
        """Films by what they lack; also unreadable films and posters that were not looked at."""
        self.faults: list[str] = []
        """The first ten faults."""

    def add(self, film: Film) -> None:
        """Count one film. An unreadable film, or one without a known genre, is counted in `lacking` only."""
        if film.fault is not None:
            self.lacking["unreadable"] += 1
            self.faults += [film.fault] * (len(self.faults) < 10)
            return
        if not film.genres:
            self.lacking[self.unlabelled] += 1
            return
        indices = np.unique(film.genres)
        split = SPLITS.index(film.split)
        self.films[split] += 1
        self.by_genre[indices, split] += 1
        self.labels[len(indices)] += 1
        self.together[np.ix_(indices, indices)] += 1
        self._add_text(film.words, indices)
        self._add_month(film.release_date, indices)
        self._add_poster(film, indices)

    def _add_text(self, words: list[str] | None, indices: NDArray[np.int64]) -> None:
        if words is None:
            self.lacking["without a text"] += 1
            return
        self.lengths[min(len(words), LONGEST)] += 1
        known = [word for word in words if word not in SPECIAL]
        for counter in (self.all_words, *(self.words[index] for index in indices)):
            counter.update(known)
            forget_rare(counter, MOST_WORDS)

    def _add_month(self, date: str, indices: NDArray[np.int64]) -> None:
        month = date[5:7]
        if not (month.isdecimal() and 1 <= int(month) <= 12):
            self.lacking["without a month"] += 1
            return
        self.months[int(month) - 1] += 1
        self.genre_months[indices, int(month) - 1] += 1

    def _add_poster(self, film: Film, indices: NDArray[np.int64]) -> None:
        if film.poster is None:
            self.lacking[f"without {with_article(self.image)}"] += 1
            return
        if order_key(film.id) >= self.poster_share * 2**64:
            self.lacking[f"{plural(self.image)} not looked at"] += 1
            return
        try:
            look = look_at(film.poster)
        except ValueError as error:
            self.lacking[f"with an unreadable {self.image}"] += 1
            fault = f"{self.declared.sample} {film.id}: its {self.image}: {error}"
            self.faults += [fault] * (len(self.faults) < 10)
            return
        self.short_sides[indices, min(look.short_side, WIDEST)] += 1
        self.brightness[indices, min(int(look.brightness), 255)] += 1


def look_at(poster: bytes) -> PosterLook:
    """Size and brightness of an image file. Raises ValueError if it is damaged or no image."""
    pixels, _ = load_rgb(poster)
    return PosterLook(min(pixels.shape[:2]), float(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).mean()))
