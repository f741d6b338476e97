"""What is counted while films pass by: arrays and bounded counters, whatever the number of films."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from genre_dist.packing.films import Film
from genre_dist.packing.posters import load_rgb
from genre_dist.packing.splits import order_key
from genre_dist.packing.vocabulary import SPECIAL, forget_rare
from genre_dist.stream.manifest import SPLITS

LONGEST = 65_535
"""Words of a text that are told apart; longer ones count as so long."""
WIDEST = 8_192
"""Pixels of a poster's shorter side that are told apart."""
MOST_WORDS = 100_000
"""Different words counted for a genre: 20 counters of about 10 MB."""


class PosterLook(NamedTuple):
    """What is looked at in a poster."""

    short_side: int
    """Pixels, as it lies there."""
    brightness: float
    """Mean luma, 0 black to 255 white (Rec. 601)."""


class Counts:
    """Everything counted. `genres` are the names that films' places refer to."""

    def __init__(self, genres: Sequence[str], poster_share: float = 1.0) -> None:
        self.genres = list(genres)
        self.poster_share = poster_share
        n = len(self.genres)
        self.films = np.zeros(len(SPLITS), np.int64)  # [splits]
        self.by_genre = np.zeros((n, len(SPLITS)), np.int64)  # [genres, splits]
        self.labels = np.zeros(n + 1, np.int64)  # [genres + 1] films with so many genres
        self.together = np.zeros((n, n), np.int64)  # [genres, genres] films with both; on the diagonal, with the genre
        self.lengths = np.zeros(LONGEST + 1, np.int64)  # [words] texts of so many words
        self.months = np.zeros(12, np.int64)  # [months] films
        self.genre_months = np.zeros((n, 12), np.int64)  # [genres, months]
        self.words: list[Counter[str]] = [Counter() for _ in self.genres]
        self.all_words: Counter[str] = Counter()
        self.short_sides = np.zeros((n, WIDEST + 1), np.int64)  # [genres, pixels] posters
        self.brightness = np.zeros((n, 256), np.int64)  # [genres, levels] posters
        self.told: Counter[str] = Counter()
        """Films by what they lack."""
        self.faults: list[str] = []
        """The first ten."""

    def add(self, film: Film) -> None:
        """Count one film. One that cannot be read, or has no known genre, is counted as such and nowhere else."""
        if film.fault is not None:
            self.told["unreadable"] += 1
            self.faults += [film.fault] * (len(self.faults) < 10)
            return
        if not film.genres:
            self.told["without a known genre"] += 1
            return
        places = np.unique(film.genres)
        split = SPLITS.index(film.split)
        self.films[split] += 1
        self.by_genre[places, split] += 1
        self.labels[len(places)] += 1
        self.together[np.ix_(places, places)] += 1
        self._add_text(film.words, places)
        self._add_month(film.release_date, places)
        self._add_poster(film, places)

    def _add_text(self, words: list[str] | None, places: NDArray[np.int64]) -> None:
        if words is None:
            self.told["without a text"] += 1
            return
        self.lengths[min(len(words), LONGEST)] += 1
        known = [word for word in words if word not in SPECIAL]
        for counter in (self.all_words, *(self.words[place] for place in places)):
            counter.update(known)
            forget_rare(counter, MOST_WORDS)

    def _add_month(self, date: str, places: NDArray[np.int64]) -> None:
        month = date[5:7]
        if not (month.isdecimal() and 1 <= int(month) <= 12):
            self.told["without a month"] += 1
            return
        self.months[int(month) - 1] += 1
        self.genre_months[places, int(month) - 1] += 1

    def _add_poster(self, film: Film, places: NDArray[np.int64]) -> None:
        if film.poster is None:
            self.told["without a poster"] += 1
            return
        if order_key(film.id) >= self.poster_share * 2**64:
            self.told["posters not looked at"] += 1
            return
        try:
            look = look_at(film.poster)
        except ValueError as error:
            self.told["with an unreadable poster"] += 1
            self.faults += [f"film {film.id}: its poster: {error}"] * (len(self.faults) < 10)
            return
        self.short_sides[places, min(look.short_side, WIDEST)] += 1
        self.brightness[places, min(int(look.brightness), 255)] += 1


def look_at(poster: bytes) -> PosterLook:
    """Size and brightness of an image file. Raises ValueError if it is none, or damaged."""
    pixels, _ = load_rgb(poster)
    return PosterLook(min(pixels.shape[:2]), float(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).mean()))
