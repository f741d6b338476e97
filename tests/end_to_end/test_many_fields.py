"""Data of two images, two texts and numbers, declared by a schema: one sample predicted, explained, shown."""

import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers import options
from PIL import Image

from genre_dist import cli
from genre_dist.catalogue.sample_tables import make_table
from genre_dist.catalogue.samples import load_catalogue_schema, read_samples
from genre_dist.explain.attribution import Explainer
from genre_dist.inference.trained_model import load_run
from genre_dist.stream.device_feed import FieldInput
from genre_dist.train import main as train_main
from genre_dist.training.wandb_files import history

SCHEMA = """
id: sku
labels: {column: category, choose: one}
sample: product
label: category
fields:
  title: {kind: text, column: title}
  about: {kind: text, column: description}
  front: {kind: image}
  back: {kind: image}
  details: {kind: numbers, columns: [price, weight]}
"""
SHORT = ("--data.global_batch", 32, "--train.steps", 2, "--tracking.tensorboard", "true", "--tracking.films", 2)


def command(*words: object) -> int:
    return cli.main([str(word) for word in words])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`catalogue`, `shards`, and the runs `run` (fields may be missing) and `whole` (none may)."""
    folder = tmp_path_factory.mktemp("fields")
    make_table("products", 120, 0, folder)
    (folder / "schema.yaml").write_text(SCHEMA)
    images = [f"{field}={folder / 'images'}" for field in ("front", "back")]
    table = ("--table", folder / "table.csv", "--schema", folder / "schema.yaml", "--out", folder / "catalogue")
    assert command("import", *table, "--posters", *images) == 0
    pack = ("pack", "--catalogue", folder / "catalogue", "--out", folder / "shards", "--size", 40, "--workers", 1)
    assert command(*pack) == 0
    assert train_main(options(folder / "shards", folder / "run", *SHORT, "--tracking.wandb", "offline")) == 0
    assert train_main(options(folder / "shards", folder / "whole", *SHORT, "--model.missing", "leave_out")) == 0
    return folder


@pytest.fixture(scope="module")
def predicted(folder: Path) -> list[dict]:
    assert command("predict", folder / "run", "--catalogue", folder / "catalogue", "--out", folder / "predicted") == 0
    return pq.read_table(folder / "predicted" / "part-000000.parquet").to_pylist()


def said(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> list[str]:
    capsys.readouterr()
    assert command(*words) == code
    printed = capsys.readouterr()
    return (printed.err if code else printed.out).splitlines()


def surest(lines: list[str]) -> float:
    return float(lines[0].split("%")[0]) / 100


# ---- prediction of one sample


@pytest.mark.parametrize("name", ["run", "whole"])
def test_an_exported_model_that_is_moved_predicts_the_same_bits_without_its_run_and_shards(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    into = ("--catalogue", folder / "catalogue", "--out")
    assert command("predict", folder / name, *into, tmp_path / "before") == 0
    assert command("export", folder / name, "--out", tmp_path / "out") == 0
    moved = (tmp_path / "out").rename(tmp_path / "another place")
    assert "--field details=0.0,0.0" in (moved / "README.md").read_text()
    monkeypatch.chdir(tmp_path)
    hidden = [(folder / gone).rename(folder / f"{gone} hidden") for gone in ("shards", name)]
    try:
        assert command("predict", moved.name, *into, tmp_path / "after") == 0
    finally:
        for path in hidden:
            path.rename(folder / path.name.removesuffix(" hidden"))
    before, after = (pq.read_table(tmp_path / out / "part-000000.parquet") for out in ("before", "after"))
    assert before.equals(after)
    assert before["logits"].null_count < len(before)


def test_one_sample_by_its_fields_gets_the_prediction_of_its_table(
    folder: Path, predicted: list[dict], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = list(read_samples(folder / "catalogue", load_catalogue_schema(folder / "catalogue")))
    lacking = {name: next(n for n, row in enumerate(rows) if (row["front:status"] == "ok") == name) for name in (0, 1)}
    for number in lacking.values():
        row = rows[number]
        price, weight = ("" if value != value else value for value in row["details"])
        given = {"title": row["title"], "about": row["about"]}
        if row["front:status"] == "ok":
            given |= dict.fromkeys(("front", "back"), str(folder / "images" / f"{row['id']}.jpg"))
        fields = [word for name, value in given.items() if value for word in ("--field", f"{name}={value}")]
        by_field = said(capsys, "predict", folder / "run", *fields, "--field", f"details={price},{weight}")
        columns = [w for name, v in (("price", price), ("weight", weight)) if v for w in ("--field", f"{name}={v}")]
        assert said(capsys, "predict", folder / "run", *fields, *columns) == by_field
        assert surest(by_field) == pytest.approx(max(predicted[number]["probabilities"]), abs=1e-3)


def test_a_model_that_needs_every_field_names_those_that_are_missing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = next((folder / "images").glob("*.jpg"))
    most = ["title=A lamp", "about=It glows", f"front={picture}", f"back={picture}"]
    fields = [word for field in most for word in ("--field", field)]
    assert len(said(capsys, "predict", folder / "whole", *fields, "--field", "details=3,")) > 2
    (line,) = said(capsys, "predict", folder / "whole", *fields, code=2)
    trained = "this model was trained on title and about and front and back and details"
    assert line == f"error: {trained}; pass --field details=... as well"
    (line,) = said(capsys, "predict", folder / "whole", *fields, "--field", "details=,", code=2)
    assert line == "error: the product has no details, which this model was trained on"
    (line,) = said(capsys, "predict", folder / "run", code=2)
    assert line.endswith(
        "pass --field title=... or --field about=... or --field front=... or --field back=... or "
        "--field details=... as well"
    )


@pytest.mark.parametrize(
    ("field", "told"),
    [
        ("colour=red", "--field colour: a product has title, about, front, back, details, price, weight"),
        ("details=3", "--field details=3: 1 numbers, where price, weight are needed between commas; leave a"),
        ("details=3,x", "--field details: 'x' in the column 'weight' is no number"),
        ("weight=inf", "--field details: inf in the column 'weight' is no finite number of 32 bits"),
        ("front=nowhere.jpg", "nowhere.jpg: no such front"),
        ("title", "--field takes pairs such as title=Heat, not `title`"),
    ],
)
def test_what_no_field_can_be_is_told_in_one_line(
    field: str, told: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = said(capsys, "predict", folder / "run", "--field", field, code=2)
    assert line.startswith(f"error: {told}")


def test_options_of_films_and_of_many_samples_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = said(capsys, "predict", folder / "run", "--field", "title=a", "--out", folder / "x", code=2)
    assert line == "error: --field is for one sample; the fields of many come from a --table or a --catalogue"
    (folder / "key").write_text("k" * 32)
    (line,) = said(capsys, "predict", folder / "run", "--tmdb_id", 5, "--key_file", folder / "key", code=2)
    assert line == "error: --tmdb_id is for models of films; give a product by its --field"


# ---- explanation


def test_every_image_and_every_text_is_explained(folder: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path, "--count", 3, "--split", "val", "--no_ablation")
    assert command("explain", folder / "whole", *out) == 0
    page = (tmp_path / "index.html").read_text()
    told = json.loads((tmp_path / "explanation.json").read_text())["films"]
    pictures = list(tmp_path.glob("product-*.png"))
    assert len(told) == len(pictures)
    for product in told:
        for one in product["explained"]:
            assert set(one["on_images"]) == {"front", "back"}
            assert set(one["words"]) == set(one["unexplained"]) == {"title", "about"}
            assert all(one["words"].values())
            for image in ("front", "back"):
                assert page.count(f'alt="{image.capitalize()} of {product["title"]}"') == len(product["explained"])
                assert f'alt="Where the {image} speaks for {one["genre"]}"' in page
    shown = len([one for product in told for one in product["explained"]])
    for field in ("front", "back", "title", "about"):
        assert page.count(f'<p class="caption">{field}</p>') == shown
    with Image.open(pictures[0]) as picture:
        width, height = picture.size
        assert width / height > 2.5  # four panels of images and two of texts in a row


def test_the_words_of_each_text_add_up_to_what_that_text_changes(folder: Path) -> None:
    run = load_run(folder / "whole", torch.device("cpu"))
    pixels, tokens, lengths = torch.randn(1, 3, 32, 32), torch.tensor([[3, 4, 5]]), np.array([3])
    fields = {
        **{name: FieldInput(tokens + n, lengths) for n, name in enumerate(("title", "about"))},
        **{name: FieldInput(pixels) for name in ("front", "back")},
        "details": FieldInput(torch.zeros(1, 2)),
    }
    told = Explainer(run.model, 32)(fields, 1)
    assert set(told.heats) == {"front", "back"}
    for name in ("title", "about"):
        with torch.no_grad():
            padding = fields | {name: FieldInput(torch.zeros_like(tokens), lengths)}
            effect = (run.model(fields) - run.model(padding))[0, 1].item()
        values = told.words[name]
        assert values.sum() == pytest.approx(effect, abs=0.1 * float(abs(values).sum()) + 1e-5)


# ---- views


def test_tensorboard_and_wandb_show_samples_by_their_own_ids(folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    ids = {row["id"] for row in pq.read_table(folder / "run" / "predictions-val.parquet").to_pylist()}
    tags = EventAccumulator(str(folder / "run" / "tensorboard")).Reload().Tags()["tensors"]
    shown = {tag.split("/")[1] for tag in tags if tag.startswith("val_products/")}
    assert len(shown) == 2
    assert shown < ids
    row = next(row for row in history(folder / "run") if "val/products/path" in row)
    table = json.loads(next((folder / "run").glob(f"wandb/*/files/{row['val/products/path']}")).read_text())
    assert {cells[0] for cells in table["data"]} == shown


# ---- words


def test_messages_and_help_speak_of_samples_images_and_labels(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert any("products" in line for line in said(capsys, "doctor", "--shards", folder / "shards"))
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        link = tarfile.TarInfo("unknown.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "sku-1.jpg"
        tar.addfile(link)
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "unknown.jpg").write_bytes(b"x")
    images = ("--posters", f"front={tmp_path / 'images.tar'}", f"back={tmp_path / 'others'}")
    table = ("--table", folder / "table.csv", *images, "--out", tmp_path / "out")
    printed = "\n".join(said(capsys, "predict", folder / "run", *table))
    assert "1 links that no product is named after" in printed
    assert "1 images without a row, left out" in printed
    monkeypatch.setenv("COLUMNS", "500")
    for verb in ("explain", "explore", "baseline", "order", "compare", "pack"):
        with pytest.raises(SystemExit):
            command(verb, "--help")
        shown = re.sub("genre.dist|--(films|genres|poster_share)|of films|FILMS|GENRES", "", capsys.readouterr().out)
        assert not re.search("film|poster|genre", shown.replace("Of films poster,overview", "")), shown
