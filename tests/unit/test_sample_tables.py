"""Procedural tables of other things: reproducible, imported by the printed command, neither trivial nor noise."""

import csv
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from test_importing import files_under

from genre_dist.catalogue.sample_tables import FINDINGS, PRODUCTS, SIDE, make_table
from genre_dist.catalogue.samples import load_catalogue_schema, read_samples
from genre_dist.cli import main
from genre_dist.lock import one_writer


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def pixels(folder: Path, id: str) -> NDArray[Any]:
    image = cv2.imread(str(folder / "images" / f"{id}.jpg"), cv2.IMREAD_UNCHANGED)
    assert image is not None
    return image


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("products")
    make_table("products", 200, 0, folder)
    return folder


@pytest.fixture(scope="module")
def xrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("xrays")
    make_table("xrays", 200, 0, folder)
    return folder


def test_every_second_product_has_a_photo_named_by_its_id(products: Path) -> None:
    rows = rows_of(products)
    assert [row["sku"] for row in rows] == [f"sku-{n}" for n in range(1, 201)]
    assert files_under(products) == {"table.csv", *(f"images/sku-{n}.jpg" for n in range(1, 201, 2))}
    assert set(Counter(row["category"] for row in rows)) == set(PRODUCTS)
    assert pixels(products, "sku-1").shape == (SIDE, SIDE, 3)


def test_a_products_photo_text_and_price_each_tell_some_of_its_category(products: Path) -> None:
    rows = rows_of(products)
    words = {word: name for name, profile in PRODUCTS.items() for word in profile.words}
    told = [{words[word] for word in words if word in row["description"]} for row in rows]
    right = sum(row["category"] in names for row, names in zip(rows, told, strict=True))
    assert 0.5 < right / len(rows) < 0.85
    price = {name: np.median([float(row["price"]) for row in rows if row["category"] == name]) for name in PRODUCTS}
    assert price["mugs"] < price["lamps"] < price["shelves"]
    hues = {name: [] for name in PRODUCTS}  # type: dict[str, list[float]]
    for row in rows[::2]:
        middle = pixels(products, row["sku"])[60:68, 60:68]
        hues[row["category"]].append(float(middle[..., 0].mean() - middle[..., 2].mean()))  # blue less red
    assert np.mean(hues["mugs"]) > 0 > np.mean(hues["lamps"])


def test_a_patient_has_several_scans_with_any_findings(xrays: Path) -> None:
    rows = rows_of(xrays)
    assert Counter(Counter(row["patient"] for row in rows).values()) == {3: 66, 2: 1}
    findings = [row["findings"].split("|") for row in rows if row["findings"]]
    assert 30 < len(rows) - len(findings) < 100
    assert {name for names in findings for name in names} == set(FINDINGS)
    assert pixels(xrays, "scan-200").shape == (SIDE, SIDE)


@pytest.mark.parametrize("kind", ["products", "xrays"])
def test_a_row_depends_on_the_seed_alone(tmp_path: Path, kind: str) -> None:
    for name, rows, seed in (("a", 9, 1), ("b", 9, 1), ("few", 5, 1), ("other", 9, 2)):
        make_table(kind, rows, seed, tmp_path / name)
    assert rows_of(tmp_path / "a")[:5] == rows_of(tmp_path / "few") != rows_of(tmp_path / "other")[:5]
    for file in files_under(tmp_path / "a"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize(
    ("kind", "choose", "fields"),
    [("products", "one", ["image", "text", "numbers"]), ("xrays", "many", ["image", "text"])],
)
def test_the_command_that_is_printed_imports_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str, choose: str,
    fields: list[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["sample", "--kind", kind, "--samples", "40", "--out", f"{kind}/"]) == 0
    printed = capsys.readouterr().out
    assert f"{kind}: a table of 40 {kind}, and their images\n" in printed
    command = shlex.split(printed.partition("next: ")[2])
    assert command[0] == "genre-dist"
    assert main(command[1:]) == 0
    schema = load_catalogue_schema(Path("catalogue"))
    assert (schema.labels.choose, [field.name for field in schema.fields]) == (choose, fields)
    assert len(list(read_samples(Path("catalogue"), schema))) == 40


def test_a_table_that_is_there_is_kept(tmp_path: Path) -> None:
    make_table("products", 2, 0, tmp_path)
    before = (tmp_path / "table.csv").read_bytes()
    with pytest.raises(ValueError, match="already holds a table; delete it or give another --out"):
        make_table("products", 3, 0, tmp_path)
    assert (tmp_path / "table.csv").read_bytes() == before


@pytest.mark.parametrize(("rows", "seed"), [(0, 0), (3, -1)])
def test_senseless_numbers_are_refused(tmp_path: Path, rows: int, seed: int) -> None:
    with pytest.raises(ValueError, match="give at least 1 sample and a seed from 0"):
        make_table("xrays", rows, seed, tmp_path)


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    with one_writer(tmp_path / "out"), pytest.raises(ValueError, match="out"):
        make_table("xrays", 2, 0, tmp_path / "out")


def test_films_stay_what_sample_makes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "--films", "3", "--out", str(tmp_path / "films")]) == 0
    assert "films: 3 procedural films\nnext: genre-dist pack --catalogue" in capsys.readouterr().out
