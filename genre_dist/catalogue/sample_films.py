"""A catalogue of procedural films, to try everything out without a network: composed overviews, drawn posters.

Overview and poster each show only part of a film's genres, independently, and sometimes a wrong genre: so a model of
both does better than a model of one, and none can be perfect. Film i does not depend on the number of films.
"""

from datetime import date, timedelta
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from genre_dist.catalogue.catalogue import CatalogueWriter, holds_catalogue, remove_partial_files, write_poster
from genre_dist.genres import GENRES, ID_OF_NAME
from genre_dist.lock import one_writer
from genre_dist.progress import progress_bar

_ROWS = """\
Action, 21, Adventure Thriller, explosion mercenary bullets chase commando fight assassin convoy rampage ambush
Adventure, 13, Action Fantasy, treasure expedition jungle voyage compass island map quest ruins explorer
Animation, 9, Family Fantasy, cartoon toys squirrel robot penguin doodle critters mouse balloon puppet
Comedy, 33, Romance Family, hilarious prank awkward slacker mishaps roommate goofy clumsy nanny bachelor
Crime, 12, Thriller Drama, heist mafia gangster detective robbery cartel loot smuggler informant corrupt
Documentary, 4, History Music, footage interviews archive activists filmmaker climate portrait testimony glacier camera
Drama, 45, Romance History, grief estranged marriage illness widow struggles forgiveness loss divorce regret
Family, 11, Animation Adventure, puppy christmas grandmother school pony birthday kids holiday backyard siblings
Fantasy, 9, Adventure Family, wizard dragon kingdom sorcerer spell elf prophecy enchanted throne unicorn
History, 4, Drama War, emperor revolution treaty century dynasty parliament colonial monarch reign independence
Horror, 13, Thriller Mystery, haunted demon zombie cemetery possessed slaughter vampire blood curse scream
Music, 4, Romance Drama, singer band concert guitar jazz piano rehearsal melody album orchestra
Mystery, 7, Thriller Crime, clue vanished secret puzzle riddle disappearance suspect unexplained inspector diary
Romance, 18, Drama Comedy, love wedding kiss soulmate bride flirtation sweetheart proposal affair passion
Science Fiction, 10, Action Adventure, spaceship alien planet android galaxy laboratory mutant clone orbit cyborg
TV Movie, 2, Family Drama, network broadcast episode anchor sitcom reunion channel audition studio commercial
Thriller, 22, Crime Action, hostage blackmail conspiracy stalker kidnapped ransom killer deadline terrorist pursuit
War, 3, Drama History, soldier trench battalion sergeant invasion regiment artillery occupied bunker platoon
Western, 1.5, Action Drama, sheriff cowboy saloon ranch outlaw frontier gunslinger horse stagecoach rustlers
"""
PROFILES = {
    name: (float(share), likes, words.split())
    for name, share, likes, words in (row.split(", ") for row in _ROWS.splitlines())
}
"""Genre -> its share of films in per cent (of 17,834 real films), the genres it often occurs with, its words."""
CUE_CHANCE = 0.65  # chance that a genre of the film shows in an overview or poster
FALSE_CUE_CHANCE = 0.13  # chance that an overview or poster shows one wrong genre
RELATED_FACTOR = 6.0  # factor on the chance of a genre that often occurs with one already drawn
GENRE_COUNTS = (0.25, 0.40, 0.35)  # chances of one, two and three genres

FILLER = (
    "It all begins when {name} comes back to {place} after many years.",
    "Nobody in {place} is ready for what happens next.",
    "With only a few days left, {name} has to make a choice.",
    "Nothing will be as it was before.",
    "Then {name} meets somebody who knows more than he tells.",
    "Meanwhile the people of {place} have plans of their own.",
    "{name} and an old friend find themselves on the road to {place}.",
    "A story about {name}, told over one long summer.",
    "What looks simple at first turns out to be a long way from home.",
)
TELLING = (
    "Soon there is {a}, {b} and {c}.",
    "Everything turns on {a} and the matter of {b}.",
    "Between {a} and {b}, {name} learns the truth.",
    "It takes {a}, {b} and a good deal of {c} to go on.",
)
SYLLABLES = ("ka", "lo", "mi", "ren", "tor", "va", "sel", "du", "brin", "os", "wen", "ja", "pel", "quo", "ith", "nar")
FOREIGN = (
    ("ru", "Молодая женщина возвращается в родной город и узнаёт старую тайну своей семьи."),
    ("el", "Ένας άντρας επιστρέφει στο νησί του και βρίσκει τα πάντα αλλαγμένα."),
    ("ja", "ある夏の日、少年は海辺の町で不思議な手紙を見つける。"),
)
FIRST_DATE, LAST_DATE = date(1950, 1, 1), date(2023, 12, 31)
JPEG_QUALITY = 85


def make_sample(films: int, seed: int, out: Path, size: tuple[int, int] = (228, 342)) -> None:
    """Write a catalogue of `films` procedural films, ids 1 to `films`, with posters of `size` (width, height) pixels.

    The same seed gives the same films. Raises ValueError if `out` holds a catalogue already or is being written, or for
    an impossible number.
    """
    if films < 1 or seed < 0 or min(size) < 32:
        raise ValueError(
            f"--films {films} --seed {seed}, posters of {size[0]} x {size[1]}: "
            "give at least 1 film, a seed from 0 and at least 32 pixels"
        )
    with one_writer(out), progress_bar() as progress:
        if holds_catalogue(out):
            raise ValueError(f"{out} already holds a catalogue; delete it or give another --out")
        remove_partial_files(out)
        with CatalogueWriter(out) as writer:
            for tmdb_id in progress.track(range(1, films + 1), description="films"):
                row, poster = _film(np.random.default_rng([seed, tmdb_id]), tmdb_id, size)
                if poster:
                    row["poster_bytes"], row["poster_sha256"] = write_poster(out, tmdb_id, poster)
                writer.add(row)


def _film(rng: np.random.Generator, tmdb_id: int, size: tuple[int, int]) -> tuple[dict[str, Any], bytes]:
    """One film's row, and its poster as JPEG (empty if it has none)."""
    genres = _draw_genres(rng)
    title = f"The {_name(rng)} {_pick(rng, ('Affair', 'Letter', 'Road', 'Night', 'Garden', 'Return', 'Hour'))}"
    language, overview = "en", _overview(rng, _cues(rng, genres))
    poster = _poster(rng, _cues(rng, genres), title, size)
    released = (FIRST_DATE + timedelta(days=int(rng.integers((LAST_DATE - FIRST_DATE).days + 1)))).isoformat()
    oddity = rng.random()  # one film in a hundred has each of the oddities of real catalogues
    if oddity < 0.01:
        language, overview = _pick(rng, FOREIGN)
    elif oddity < 0.02:
        overview = ""
    elif oddity < 0.03:
        poster = b""
    elif oddity < 0.04:
        released = released[:4]
    row = {
        "tmdb_id": tmdb_id,
        "imdb_id": "",
        "title": title,
        "original_language": language,
        "overview": overview,
        "genre_ids": [ID_OF_NAME[genre.lower()] for genre in genres],
        "release_date": released,
        "poster_path": f"/{tmdb_id}.jpg" if poster else "",
        "popularity": float(rng.exponential(10.0)),
        "adult": False,
        "poster_status": "ok" if poster else "none",
        "poster_bytes": 0,
        "poster_sha256": "",
        "fetched_at": None,
    }
    return row, poster


def _pick(rng: np.random.Generator, options: Any) -> Any:
    return options[int(rng.integers(len(options)))]


def _draw_genres(rng: np.random.Generator) -> list[str]:
    """One to three genres, drawn by their shares, with related genres together more often."""
    names = list(PROFILES)
    weights = np.array([share for share, _, _ in PROFILES.values()])
    chosen: list[str] = []
    for _ in range(1 + int(rng.choice(len(GENRE_COUNTS), p=GENRE_COUNTS))):
        genre = names[int(rng.choice(len(names), p=weights / weights.sum()))]
        chosen.append(genre)
        for index, name in enumerate(names):
            if name in PROFILES[genre][1]:
                weights[index] *= RELATED_FACTOR
        weights[names.index(genre)] = 0.0
    return chosen


def _cues(rng: np.random.Generator, genres: list[str]) -> list[str]:
    """The genres that an overview or poster shows: some of the film's own, and sometimes a wrong one."""
    cues = [genre for genre in genres if rng.random() < CUE_CHANCE]
    if rng.random() < FALSE_CUE_CHANCE:
        cues.append(_pick(rng, [name for name in PROFILES if name not in genres]))
    return cues


# ---- text -----------------------------------------------------------------------------------------------------------


def _name(rng: np.random.Generator) -> str:
    return "".join(_pick(rng, SYLLABLES) for _ in range(int(rng.integers(2, 4)))).capitalize()


def _overview(rng: np.random.Generator, cues: list[str]) -> str:
    """15 to about 60 words: neutral sentences, and one with words of each genre in `cues`."""
    sentences = rng.choice(FILLER, int(rng.integers(2, 4)) if len(cues) < 3 else 1, replace=False)
    names = {"name": _name(rng), "place": _name(rng)}
    text = [str(sentence).format(**names) for sentence in sentences]
    for genre in cues:
        a, b, c = rng.choice(PROFILES[genre][2], 3, replace=False)
        text.append(_pick(rng, TELLING).format(a=a, b=b, c=c, **names))
    rng.shuffle(text)
    return " ".join(text)


# ---- posters --------------------------------------------------------------------------------------------------------


def _colour(genre: str, value: float) -> np.ndarray:
    """A genre's colour as float32 [3] in BGR; `value` (0 to 1) is its lightness, the hue depends on the genre."""
    index = list(PROFILES).index(genre)
    hue = index * 7 % len(GENRES) * 360.0 / len(GENRES)  # times 7: neighbours in the alphabet get distant hues
    hsv = np.array([[[hue, 0.85, value]]], dtype=np.float32)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0] * 255, dtype=np.float32)


def _outline(genre: str, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A genre's shape, int32 [corners, 2]: a star of the genre's points and depth, at a random position and size."""
    index = list(PROFILES).index(genre)
    points, depth = 3 + index // 3, (1.0, 0.7, 0.4)[index % 3]
    width, height = size
    angle = np.linspace(0, 2 * np.pi, 2 * points, endpoint=False) + rng.uniform(0, 2 * np.pi)
    radius = rng.uniform(0.12, 0.26) * width * np.where(np.arange(2 * points) % 2, depth, 1.0)
    centre = rng.uniform((0, 0), (width, height))
    return np.rint(centre + np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius[:, None]).astype(np.int32)


def _poster(rng: np.random.Generator, cues: list[str], title: str, size: tuple[int, int]) -> bytes:
    """A JPEG: a gradient in the colour of one of `cues` (grey without), shapes of each of them, a title, noise."""
    width, height = size
    grey = np.full(3, 150.0, dtype=np.float32)
    hue = _colour(_pick(rng, cues), 0.9) if cues else grey
    top, bottom = (0.35, 1.0) if rng.random() < 0.5 else (1.0, 0.35)
    shade = np.linspace(top, bottom, height)
    image = np.broadcast_to((shade[:, None] * hue)[:, None], (height, width, 3)).astype(np.uint8, order="C")
    for genre in cues:
        for _ in range(int(rng.integers(2, 6))):
            colour = _colour(genre, rng.uniform(0.7, 1.0))
            cv2.fillPoly(image, [_outline(genre, rng, size)], colour.tolist(), lineType=cv2.LINE_AA)
    scale = width / 20 / len(title)
    cv2.putText(image, title, (width // 20, height - height // 12), cv2.FONT_HERSHEY_SIMPLEX, scale, (245, 245, 245), 1)
    noise = rng.integers(-18, 19, (height, width, 1), dtype=np.int16)
    noisy = np.clip(image + noise, 0, 255).astype(np.uint8)
    return bytes(cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1])
