"""The films and posters of a server that behaves like TMDB."""

import io
import random
from datetime import date, timedelta
from typing import Any

from PIL import Image

from genre_dist.genres import GENRES

GIF = (
    b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;"
)


def make_films(
    count: int, seed: int, poster_share: float, undated_share: float, crowded: float
) -> list[dict[str, Any]]:
    """Films as the API gives them, with dates in 1990-2009; a share `crowded` of them in 1999."""
    rng = random.Random(seed)
    films = []
    for index in range(count):
        year = 1999 if rng.random() < crowded else rng.randrange(1990, 2010)
        day = date(year, 1, 1) + timedelta(days=rng.randrange(365))
        number = 10 + index + index // 2
        has_poster = rng.random() < poster_share
        films.append(
            {
                "id": number,
                "title": f"Film {number} — Amélie",
                "original_title": f"Film {number}",
                "original_language": rng.choice(["en", "en", "fr", "de"]),
                "overview": f"Overview of film {number}: " + " ".join(rng.choices(["love", "war", "ghost"], k=30)),
                "genre_ids": rng.sample([genre.id for genre in GENRES], rng.randrange(4)),
                "release_date": "" if rng.random() < undated_share else str(day),
                "poster_path": f"/poster-{number}.jpg" if has_poster else None,
                "popularity": round(rng.random() * 50, 3),
                "adult": False,
                "video": False,
                "vote_count": rng.randrange(100),
            }
        )
    return films


def make_images(size: tuple[int, int]) -> list[bytes]:
    """A few JPEGs; a film's poster is one of them with the film's name in a comment, so that each differs."""
    images = []
    for shade in range(4):
        file = io.BytesIO()
        Image.effect_noise(size, 20 + 10 * shade).convert("RGB").save(file, "JPEG", quality=60)
        images.append(file.getvalue())
    return images


def commented(image: bytes, text: bytes) -> bytes:
    """A JPEG with a comment after its first marker."""
    return image[:2] + b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text + image[2:]
