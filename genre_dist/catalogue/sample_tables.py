"""Tables with a folder of drawn images, to try out a data set of one's own: products in a shop, X-rays in a hospital.

A product's photo, text and numbers, a scan's picture and report each show only part of the labels: a model of all does
better than a model of one, and none can be perfect. Row i does not depend on the number of rows.
"""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from genre_dist.atomic import atomic_file, remove_leftovers
from genre_dist.catalogue.catalogue import write_image
from genre_dist.lock import one_writer
from genre_dist.progress import progress_bar

TABLE, IMAGES = "table.csv", "images"
SIDE = 128
"""Of the images, in pixels."""
CUE_CHANCE = 0.8  # that a picture or a text shows what it could
JPEG_QUALITY = 85

Picture = NDArray[np.uint8]
Row = dict[str, str]


class Profile(NamedTuple):
    """What the products of a category are like."""

    corners: int
    colour: tuple[int, int, int]
    """In BGR."""
    words: tuple[str, ...]
    price: float
    """Median, as of the weight."""
    weight: float


PRODUCTS = {
    "lamps": Profile(3, (60, 190, 235), ("bulb", "dimmer", "glow", "shade", "socket"), 45.0, 1.2),
    "mugs": Profile(24, (190, 90, 50), ("tea", "coffee", "handle", "glaze", "dishwasher"), 11.0, 0.4),
    "shelves": Profile(4, (70, 110, 140), ("oak", "wall", "screws", "books", "board"), 80.0, 9.0),
}
MAKERS = ("Alder", "Birke", "Corvo", "Dune", "Elm", "Fjord")
PRODUCT_TEXTS = (
    "A favourite for many years, by {maker}.",
    "Designed by {maker}, made to last.",
    "New in our shop this season.",
    "Comes in a box of recycled paper.",
)
FINDINGS = {
    "effusion": "Fluid along the lower margin on one side.",
    "enlarged heart": "The cardiac silhouette is wider than expected.",
    "fracture": "A rib shows a step in its contour.",
    "nodule": "A round opacity in the middle field.",
}
REPORT_TEXTS = ("Frontal view, inspiration adequate.", "No comparison available.", "Lines and tubes: none.")
SCANS_OF_A_PATIENT = 3


def make_table(kind: str, rows: int, seed: int, out: Path) -> None:
    """Write `out`/table.csv with drawn products or xrays, and their images into `out`/images.

    The same seed gives the same bytes. Raises ValueError if `out` holds a table already or is being written, or for an
    impossible number.
    """
    if rows < 1 or seed < 0:
        raise ValueError(f"--samples {rows} --seed {seed}: give at least 1 sample and a seed from 0")
    make = KINDS[kind]
    with one_writer(out), progress_bar() as progress:
        if (out / TABLE).exists():
            raise ValueError(f"{out} already holds a table; delete it or give another --out")
        for folder in (out, out / IMAGES):
            remove_leftovers(folder)
        with atomic_file(out / TABLE, "w") as file:
            writer: csv.DictWriter[str] | None = None
            for number in progress.track(range(1, rows + 1), description=kind):
                row, picture = make(number, seed)
                if writer is None:
                    writer = csv.DictWriter(file, list(row), lineterminator="\n")
                    writer.writeheader()
                writer.writerow(row)
                if picture is not None:
                    write_image(out / IMAGES / f"{next(iter(row.values()))}.jpg", _jpeg(picture))


def next_command(kind: str, out: Path) -> str:
    """The command that imports a table made here."""
    options = {
        "products": "--id sku --labels category --choose one --text title description --numbers price weight",
        "xrays": "--id scan --labels findings --unlabelled keep --split_by patient --text report",
    }
    return f"genre-dist import --table {out / TABLE} --posters {out / IMAGES} {options[kind]} --out catalogue"


def _jpeg(picture: Picture) -> bytes:
    return bytes(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1])


def _noisy(picture: Picture, rng: np.random.Generator) -> Picture:
    noise = rng.integers(-14, 15, (SIDE, SIDE, 1), dtype=np.int16)
    return np.clip(picture.reshape(SIDE, SIDE, -1) + noise, 0, 255).astype(np.uint8)


def _pick(rng: np.random.Generator, options: Any) -> Any:
    return options[int(rng.integers(len(options)))]


def _shown(rng: np.random.Generator, category: str) -> str:
    """The category that a picture or a text shows: mostly the right one."""
    return category if rng.random() < CUE_CHANCE else str(_pick(rng, list(PRODUCTS)))


# ---- products -------------------------------------------------------------------------------------------------------


def _product(number: int, seed: int) -> tuple[Row, Picture | None]:
    """A product's row, and its photo: every second one has one."""
    rng = np.random.default_rng([seed, 1, number])
    category = str(_pick(rng, list(PRODUCTS)))
    maker = str(_pick(rng, MAKERS))
    a, b = rng.choice(PRODUCTS[_shown(rng, category)].words, 2, replace=False)
    texts = [_pick(rng, PRODUCT_TEXTS).format(maker=maker), f"With {a} and {b}." if rng.random() < CUE_CHANCE else ""]
    spread = np.exp(rng.normal(0.0, 0.5, 2))
    weight = "" if rng.random() < 0.03 else f"{PRODUCTS[category].weight * spread[1]:.2f}"
    row = {
        "sku": f"sku-{number}",
        "title": f"{maker} no. {int(rng.integers(1, 400))}",
        "description": " ".join(filter(None, texts)),
        "price": f"{PRODUCTS[category].price * spread[0]:.2f}",
        "weight": weight,
        "category": category,
    }
    return row, _photo(rng, _shown(rng, category)) if number % 2 else None


def _photo(rng: np.random.Generator, category: str) -> Picture:
    """A shape with the category's corners in about its colour: uint8 [SIDE, SIDE, 3]."""
    profile = PRODUCTS[category]
    picture = np.full((SIDE, SIDE, 3), rng.integers(205, 246), np.uint8)
    angles = np.linspace(0, 2 * np.pi, profile.corners, endpoint=False) + rng.uniform(0, 2 * np.pi)
    radius, centre = rng.uniform(0.2, 0.38) * SIDE, rng.uniform(0.4, 0.6, 2) * SIDE
    outline = np.rint(centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)).astype(np.int32)
    colour = np.clip(np.array(profile.colour) + rng.integers(-40, 41, 3), 0, 255).tolist()
    cv2.fillPoly(picture, [outline + 4], (170, 170, 170), lineType=cv2.LINE_AA)  # its shadow
    cv2.fillPoly(picture, [outline], colour, lineType=cv2.LINE_AA)
    return _noisy(picture, rng)


# ---- X-rays ---------------------------------------------------------------------------------------------------------


def _xray(number: int, seed: int) -> tuple[Row, Picture | None]:
    """A scan's row and picture; scans of one patient look alike, so that they must lie in one split."""
    rng = np.random.default_rng([seed, 2, number])
    patient = (number - 1) // SCANS_OF_A_PATIENT + 1
    findings = [name for name in FINDINGS if rng.random() < 0.25]
    told = [FINDINGS[name] for name in findings if rng.random() < CUE_CHANCE]
    row = {
        "scan": f"scan-{number}",
        "patient": f"patient-{patient}",
        "report": " ".join([_pick(rng, REPORT_TEXTS), *told]),
        "findings": "|".join(findings),
    }
    shown = [name for name in findings if rng.random() < CUE_CHANCE]
    return row, _chest(rng, np.random.default_rng([seed, 3, patient]), shown)


def _chest(rng: np.random.Generator, patient: np.random.Generator, findings: list[str]) -> Picture:
    """Lungs, ribs and a heart, and the findings: uint8 [SIDE, SIDE, 1]."""
    body, lungs = int(patient.integers(120, 170)), int(patient.integers(30, 70))
    width, height = int(patient.integers(20, 27)), int(patient.integers(40, 50))
    picture = np.full((SIDE, SIDE), body, np.uint8)
    middle, side = SIDE // 2, int(rng.choice([-1, 1]))
    for x in (middle - 29, middle + 29):
        cv2.ellipse(picture, (x, middle), (width, height), 0, 0, 360, lungs, -1, cv2.LINE_AA)
    for y in range(middle - 36, middle + 37, 12):
        broken = "fracture" in findings and y == middle - 12
        for x in (-1, 1):
            step = 5 if broken and x == side else 0
            start, end = (middle + 12 * x, y + 4), (middle + 32 * x, y)
            cv2.line(picture, start, end, lungs + 28, 2, cv2.LINE_AA)
            cv2.line(picture, (end[0], end[1] + step), (middle + 50 * x, y + 5 + step), lungs + 28, 2, cv2.LINE_AA)
    heart = 25 if "enlarged heart" in findings else 15
    cv2.ellipse(picture, (middle + 5, middle + 18), (heart, 20), 20, 0, 360, body + 20, -1, cv2.LINE_AA)
    if "nodule" in findings:
        at = (middle + side * int(rng.integers(26, 36)), middle + int(rng.integers(-28, -6)))
        cv2.circle(picture, at, int(rng.integers(5, 8)), body + 40, -1, cv2.LINE_AA)
    if "effusion" in findings:
        x = middle + side * 29
        cv2.rectangle(picture, (x - width, middle + 26), (x + width, middle + 52), body + 10, -1)
    return _noisy(cv2.GaussianBlur(picture, (0, 0), 1.0).astype(np.uint8), rng)


KINDS: dict[str, Callable[[int, int], tuple[Row, Picture | None]]] = {"products": _product, "xrays": _xray}
