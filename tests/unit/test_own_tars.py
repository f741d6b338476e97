"""Anyone's tars to train on without packing: what a schema says of their samples, and what a trainer reads of them."""

import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from range_server import serve_folder
from tiny_text import write_tokenizer

from genre_dist.catalogue.importing_samples import import_samples
from genre_dist.cli import main
from genre_dist.compare.differences import read_film_info
from genre_dist.config import Config, DataConfig
from genre_dist.packing.pack import pack
from genre_dist.packing.posters import load_rgb, square
from genre_dist.sample_ids import number_of_id
from genre_dist.schema import Field, Labels, Schema
from genre_dist.splits import split_of
from genre_dist.stream.batch import Batch
from genre_dist.stream.loader import evaluation_stream
from genre_dist.stream.manifest import SPLITS, Manifest, load_manifest
from genre_dist.stream.words import load_vectors
from genre_dist.tars.films import shard_films
from genre_dist.tars.sample_reader import reader_type
from genre_dist.tars.tar_verification import verify_tars
from genre_dist.training.experiment import open_split

SIZE = 32
CATEGORIES = ("mugs", "lamps", "shelves")
OPTIONS = (
    *("--labels", "json.category", "--choose", "one", "--text", "txt", "--numbers", "json.price", "json.more.weight"),
    *("--image", "jpg|png", "--size", str(SIZE)),
)
FIELDS = ("image", "text", "numbers")


def image(number: int) -> tuple[str, bytes]:
    """Extension and file: JPEGs and PNGs of several sizes, greyscale, transparent, turned by EXIF, much too large."""
    rng = np.random.default_rng(number)
    mode = ("RGB", "L", "RGBA", "turned", "large")[number % 5]
    shape = (400, 420) if mode == "large" else tuple(rng.integers(20, 90, 2).tolist())
    channels = {"L": (), "RGBA": (4,)}.get(mode, (3,))
    made = Image.fromarray(rng.integers(0, 256, (*shape, *channels), dtype=np.uint8))
    file = io.BytesIO()
    exif = Image.Exif()
    if mode == "turned":
        exif[0x0112] = 6
    kind = "PNG" if mode == "RGBA" else "JPEG"
    made.save(file, kind, **({} if kind == "PNG" else {"exif": exif}))
    return ("png" if kind == "PNG" else "jpg"), file.getvalue()


def sample(number: int) -> dict[str, bytes]:
    """Members as img2dataset writes them; some samples lack the caption, a number or the image."""
    about: dict[str, Any] = {"category": CATEGORIES[number % 3], "price": number * 1.5, "more": {"weight": number % 7}}
    if number % 11 == 0:
        del about["price"]
    members = {"json": json.dumps(about).encode()}
    if number % 4:
        members["txt"] = f"{'A fine thing, ' * (number % 5)}no. {number % 9}: {CATEGORIES[number % 3]}!".encode()
    if number % 6:
        extension, data = image(number)
        members = {extension: data} | members
    return members


def write(path: Path, samples: Mapping[str, Mapping[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, members in samples.items():
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def samples(first: int, last: int) -> dict[str, dict[str, bytes]]:
    return {f"{number:06d}": sample(number) for number in range(first, last)}


class Place:
    """A folder of tars and the listing that is made of them."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.tars, self.out, self.capsys = folder / "tars", folder / "listing", capsys

    def write(self, name: str, samples: Mapping[str, Mapping[str, bytes]]) -> Path:
        return write(self.tars / name, samples)

    def lists(self, *options: object) -> Manifest:
        self.said = self._run(0, *(options or OPTIONS))
        return load_manifest(self.out)

    def refuses(self, *options: object) -> str:
        """The one line of a listing that fails and leaves no manifest."""
        said = self._run(2, *(options or OPTIONS))
        assert said.startswith("error: ")
        assert said.count("\n") == 1
        assert not (self.out / "manifest.json").exists()
        return said

    def _run(self, code: int, *options: object) -> str:
        arguments = ["index", self.tars, "--out", self.out, "--workers", 1, *options]
        assert main([str(argument) for argument in arguments]) == code
        said = self.capsys.readouterr()
        return said.out + said.err

    def verifies(self) -> str:
        main(["inspect", str(self.out), "--verify"])
        return self.capsys.readouterr().out


@pytest.fixture
def place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Place:
    return Place(tmp_path, capsys)


@pytest.fixture(scope="module")
def listing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 samples in three tars, and their listing. Read only."""
    folder = tmp_path_factory.mktemp("own")
    for number in range(3):
        write(folder / "tars" / f"{number:05d}.tar", samples(40 * number, 40 * number + 40))
    arguments = ["index", str(folder / "tars"), "--out", str(folder / "listing"), "--workers", "1", *OPTIONS]
    assert main(arguments) == 0
    return folder / "listing"


def batch_of(
    manifest: Manifest, split: str, fields: tuple[str, ...] = FIELDS, max_tokens: int = 64, workers: int = 0
) -> Batch:
    """All samples of a split in one batch, which may lack fields."""
    reader = reader_type(manifest)(manifest, split, fields, max_tokens, any_of=True)
    with closing(evaluation_stream(reader, batch=500, workers=workers)) as batches:
        return next(batches).each(np.copy)


def by_id(batch: Batch) -> dict[str, dict[str, np.ndarray]]:
    """Each sample's arrays by its id, its tokens without padding."""
    found = {}
    for number, id in enumerate(batch.samples):
        one = {name: array[number] for name, array in batch.arrays.items()} | {"labels": batch.labels[number]}
        if "text.tokens" in one:
            one["text.tokens"] = one["text.tokens"][: one["text.lengths"]]
        found[id] = one
    return found


# ---- what is read ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The same samples, imported as a table with images, and packed."""
    folder = tmp_path_factory.mktemp("packed")
    (folder / "images").mkdir()
    rows = []
    for key, members in samples(0, 120).items():
        about = json.loads(members["json"])
        text = members.get("txt", b"").decode()
        row = {"key": key, "txt": text, "category": about["category"], "price": about.get("price", "")}
        rows.append(row | {"weight": about["more"]["weight"]})
        for extension in {"jpg", "png"} & set(members):
            (folder / "images" / f"{key}.{extension}").write_bytes(members[extension])
    (folder / "table.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    schema = Schema(
        id="key",
        split_by="key",
        labels=Labels(column="category", choose="one"),
        fields=(
            Field(name="image", kind="image"),
            Field(name="text", kind="text", columns=("txt",)),
            Field(name="numbers", kind="numbers", columns=("price", "weight")),
        ),
    )
    import_samples(folder / "table.jsonl", schema, {"image": [folder / "images"]}, folder / "catalogue")
    pack(folder / "catalogue", folder / "shards", size=SIZE, workers=1)
    return load_manifest(folder / "shards")


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("split", SPLITS)
def test_batches_are_those_of_the_same_rows_packed(listing: Path, packed: Manifest, split: str, workers: int) -> None:
    found, wanted = by_id(batch_of(load_manifest(listing), split, workers=workers)), by_id(batch_of(packed, split))
    assert set(found) == set(wanted)
    for id, one in found.items():
        for name in ("labels", "image.has", "text.has", "numbers.has", "text.lengths", "text.tokens"):
            np.testing.assert_array_equal(one[name], wanted[id][name], name)
        np.testing.assert_allclose(one["numbers.numbers"], wanted[id]["numbers.numbers"], rtol=1e-6)


def test_the_manifest_counts_what_packing_counts(listing: Path, packed: Manifest) -> None:
    manifest = load_manifest(listing)
    assert manifest.genre_counts == packed.genre_counts
    assert manifest.text["vocabulary_sha256"] == packed.text["vocabulary_sha256"]
    for split in SPLITS:
        assert manifest.patterns(split, FIELDS) == packed.patterns(split, FIELDS)


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
def test_images_of_any_size_and_kind_are_made_square_as_packing_makes_them(place: Place, fit: str) -> None:
    made = samples(1, 6) | samples(13, 18)
    place.write("a.tar", made)
    manifest = place.lists(*OPTIONS, "--fit", fit)
    for split in SPLITS:
        for id, one in by_id(batch_of(manifest, split)).items() if manifest.samples(split) else ():
            file = next((made[id][name] for name in ("jpg", "png") if name in made[id]), None)
            wanted = 128 if file is None else square(load_rgb(file, least=6 * SIZE)[0], SIZE, fit)  # type: ignore[arg-type]
            np.testing.assert_array_equal(one["image.images"], np.broadcast_to(wanted, (SIZE, SIZE, 3)))


def test_images_that_no_field_takes_are_told(place: Place) -> None:
    place.write("a.tar", samples(0, 12))
    place.lists("--labels", "json.category", "--text", "txt")
    assert "note: no field takes .jpg of 8 samples and .png of 2 samples; --image does" in place.said


def test_labels_may_be_members_of_their_own_and_any_number(place: Place) -> None:
    texts = {f"k{n}": {"txt": b"a word", "cls": f"{n % 3}|{n % 2}".encode()} for n in range(30)}
    place.write("a.tar", texts | {"none": {"txt": b"no label", "cls": b"\n"}})
    manifest = place.lists("--labels", "cls", "--text", "txt", "--unlabelled", "keep")
    assert [label.name for label in manifest.genres] == ["0", "1", "2"]
    assert "1 samples without a label, kept" in place.said
    found = {id: one["labels"] for split in SPLITS for id, one in by_id(batch_of(manifest, split, ("text",))).items()}
    assert len(found) == 31
    for id, labels in found.items():
        assert np.flatnonzero(labels).tolist() == sorted({int(id[1:]) % 3, int(id[1:]) % 2} if id != "none" else set())


def test_long_texts_are_cut_as_the_tokenizer_says(place: Place, tmp_path: Path) -> None:
    place.write("a.tar", samples(0, 30))
    tokenizer = write_tokenizer(tmp_path / "bert", [f"a fine thing no {' '.join(CATEGORIES)} ! : ,"])
    manifest = place.lists(*OPTIONS, "--tokenizer", tokenizer)
    whole, short = (by_id(batch_of(manifest, "train", ("text",), most)) for most in (64, 4))
    assert manifest.text["vocabulary"] == "tokenizer.json"
    assert any(len(one["text.tokens"]) > 4 for one in whole.values())
    for id, one in short.items():
        tokens = whole[id]["text.tokens"]
        assert one["text.tokens"].tolist() == (
            tokens.tolist() if len(tokens) <= 4 else [*tokens[:3].tolist(), tokens[-1].item()]
        )


def test_samples_are_split_by_a_hash_of_their_id_or_by_the_names_of_tars(place: Place) -> None:
    place.write("train-0.tar", samples(0, 30))
    place.write("my_validation.tar", samples(30, 40))
    place.write("test.tar", samples(40, 45))
    manifest = place.lists()
    for split in SPLITS:
        index = reader_type(manifest)(manifest, split, FIELDS, 8).index
        assert {split_of(number) for number in index.all_ids()} <= {split}
    manifest = place.lists(*OPTIONS, "--split_by", "__file__")
    assert [(Path(shard.file).name, shard.split, shard.samples) for shard in manifest.shards] == [
        ("train-0.tar", "train", 30),
        ("my_validation.tar", "val", 10),
        ("test.tar", "test", 5),
    ]
    (place.tars / "test.tar").rename(place.tars / "00007.tar")
    (place.out / "manifest.json").unlink()
    assert "00007.tar: --split_by __file__ takes the split from" in place.refuses(*OPTIONS, "--split_by", "__file__")


def test_samples_of_one_value_lie_in_one_split_under_ids_of_any_column(place: Place) -> None:
    made = {
        f"k{n}": {"txt": b"x", "json": json.dumps({"id": f"ä/{n}", "of": n // 5, "l": n % 2}).encode()}
        for n in range(40)
    }
    place.write("a.tar", made)
    manifest = place.lists("--labels", "json.l", "--text", "txt", "--id", "json.id", "--split_by", "json.of")
    for split in SPLITS:
        if manifest.samples(split):
            batch = batch_of(manifest, split, ("text",))
            assert batch.ids.tolist() == [number_of_id(id) for id in batch.samples]
            groups = {int(id[2:]) // 5 for id in batch.samples}
            assert {split_of(number_of_id(str(group))) for group in groups} == {split}


def test_an_empty_image_is_none_and_a_png_stands_in_for_it(place: Place) -> None:
    made = samples(0, 40)
    for members in made.values():
        members.setdefault("jpg", b"")
    place.write("a.tar", made)
    manifest = place.lists()
    for split in SPLITS:
        for id, one in by_id(batch_of(manifest, split)).items():
            assert one["image.has"] == (len(made[id].get("png", made[id]["jpg"])) > 0)


def test_the_order_is_printed_by_the_ids_of_the_tars(listing: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["order", str(listing), "--global_batch", "16", "--steps", "0:2"]) == 0
    printed = [line.split("\t")[1].split() for line in capsys.readouterr().out.splitlines()]
    assert [len(set(ids)) for ids in printed] == [16, 16]
    assert {id for ids in printed for id in ids} <= set(samples(0, 120))


def test_word_vectors_are_those_of_the_words_of_the_train_split(place: Place, tmp_path: Path) -> None:
    place.write("a.tar", samples(0, 30))
    (tmp_path / "vectors.txt").write_text("fine 1 2 3\nunheard 4 5 6\n")
    manifest = place.lists(*OPTIONS, "--vectors", tmp_path / "vectors.txt")
    words = (place.out / "vocabulary.txt").read_text().split()
    vectors = load_vectors(manifest.folder, manifest.text)
    assert vectors is not None
    assert vectors[words.index("fine")].tolist() == [1, 2, 3]
    assert len(vectors) == len(words) == manifest.text["words"]


def test_links_to_other_members_are_read_in_their_place(place: Place) -> None:
    path = place.write("a.tar", samples(1, 3))
    with tarfile.open(path, "a") as tar:
        for extension, target in (("jpg", "000001.jpg"), ("txt", "000001.txt"), ("json", "000001.json")):
            link = tarfile.TarInfo(f"linked.{extension}")
            link.type, link.linkname = tarfile.LNKTYPE, target
            tar.addfile(link)
    place.write("b.tar", samples(3, 30))
    manifest = place.lists()
    found: dict[str, Any] = {}
    for split in SPLITS:
        found |= by_id(batch_of(manifest, split))
    for name, array in found["000001"].items():
        np.testing.assert_array_equal(found["linked"][name], array, name)
    assert "verified: " in place.verifies()


@pytest.mark.slow
def test_tars_behind_http_are_read_as_local_ones(listing: Path, tmp_path: Path) -> None:
    with serve_folder(listing.parent / "tars") as server:
        urls = [f"{server.url}/{number:05d}.tar" for number in range(3)]
        assert main(["index", *urls, "--out", str(tmp_path), "--workers", "1", *OPTIONS]) == 0
        here, there = (by_id(batch_of(load_manifest(folder), "train")) for folder in (listing, tmp_path))
        assert verify_tars(load_manifest(tmp_path)) == []
    assert set(here) == set(there)
    for id, one in here.items():
        for name, array in one.items():
            np.testing.assert_array_equal(there[id][name], array, name)


def test_reader_processes_import_neither_torch_nor_pyarrow() -> None:
    program = "import genre_dist.tars.sample_reader, sys; print({'torch', 'pyarrow', 'pydantic'} & set(sys.modules))"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert told.strip() == "set()"


def test_a_device_cannot_decode_images_of_any_size(listing: Path) -> None:
    config = Config(data=DataConfig(decode="gpu"))
    with pytest.raises(ValueError, match=r"data\.decode=gpu: the images of the tars .* any size"):
        open_split(config, load_manifest(listing), "train")


def test_titles_images_and_words_are_found_for_reports(listing: Path) -> None:
    manifest = load_manifest(listing)
    batch = batch_of(manifest, "val")
    infos = read_film_info(listing, "val", batch.ids.tolist())
    films = {film.id: film for film in shard_films(manifest, ["val"])}
    assert set(infos) == set(films) == set(batch.ids.tolist())
    for number, id in enumerate(batch.ids.tolist()):
        assert infos[id].title == films[id].key == batch.samples[number]
        assert (infos[id].poster is not None) == (films[id].poster is not None) == batch.arrays["image.has"][number]
        assert films[id].genres == tuple(np.flatnonzero(batch.labels[number]))
        assert len(films[id].words or ()) == batch.arrays["text.lengths"][number]
        assert films[id].fault is None


# ---- listing again ---------------------------------------------------------------------------------------------------


def test_a_tar_that_is_listed_is_left_alone_until_it_or_the_options_change(place: Place) -> None:
    first = place.write("a.tar", samples(0, 20))
    place.write("b.tar", samples(20, 40))
    whole = place.lists()

    def times() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (place.out / "tars.index").iterdir()}

    before = times()
    assert place.lists() == whole
    assert times() == before
    place.write("a.tar", samples(0, 21) | {})
    place.write("b.tar", samples(21, 40))
    os.utime(first, ns=(1, 1))
    again = place.lists()
    assert again.fingerprint != whole.fingerprint
    changed = times()
    assert all(changed[name] != before[name] for name in before)
    place.lists(*OPTIONS, "--id", "__key__", "--unlabelled", "refuse")
    assert all(times()[name] != changed[name] for name in before)


def test_what_a_damaged_index_or_report_lost_is_listed_again(place: Place) -> None:
    place.write("a.tar", samples(0, 30))
    whole = place.lists()
    for name in ("*.train.npy", "*.samples.json"):
        (path,) = (place.out / "tars.index").glob(name)
        content = path.read_bytes()
        path.write_bytes(content[:-7] + b"damage!")
        assert place.lists() == whole
        assert path.read_bytes() == content


def test_another_number_is_another_fingerprint_though_the_tar_has_the_same_layout(place: Place) -> None:
    path = place.write("a.tar", samples(0, 30))
    before = place.lists().fingerprint
    path.write_bytes(path.read_bytes().replace(b'"price": 1.5', b'"price": 2.5'))
    os.utime(path, ns=(1, 1))
    assert place.lists().fingerprint != before


def test_the_listing_is_no_place_for_packed_shards_nor_they_for_it(
    listing: Path, packed: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    catalogue = Path(str(packed.folder)).parent / "catalogue"
    with pytest.raises(ValueError, match="lists tars that were not packed there"):
        pack(catalogue, listing, size=SIZE, overwrite=True)
    tars = str(listing.parent / "tars")
    assert main(["index", tars, "--out", str(packed.folder), *OPTIONS]) == 2
    assert "holds other shards" in capsys.readouterr().err
    assert main(["index", str(listing)]) == 2
    assert "lists tars to train on" in capsys.readouterr().err


# ---- mistakes and damage ---------------------------------------------------------------------------------------------


def test_a_damaged_json_and_a_blank_id_are_left_out_and_counted_with_an_example(place: Place) -> None:
    made = samples(1, 30)
    made["000007"]["json"] = b'{"category": "mugs"'
    made["000008"]["json"] = b"[]"
    place.write("a.tar", made)
    manifest = place.lists()
    assert manifest.left_out == {"a damaged .json": 2}  # type: ignore[attr-defined]
    assert re.search(r"2 samples with a damaged \.json, left out, such as .*a\.tar: the sample 000007 at", place.said)
    made["000007"]["json"] = json.dumps({"category": "mugs", "id": " "}).encode()
    made["000008"]["json"] = json.dumps({"id": "of none", "price": 3}).encode()
    made["000009"] = {"json": json.dumps({"category": "mugs", "id": "1"}).encode()}
    for key in set(made) - {"000007", "000008", "000009"}:
        made[key]["json"] = json.dumps(json.loads(made[key]["json"]) | {"id": key}).encode()
    place.write("a.tar", made)
    manifest = place.lists("--labels", "json.category", "--text", "txt", "--id", "json.id")
    lost = sum("txt" not in members for members in made.values()) - 1  # 000008 has no label either
    assert manifest.left_out == {"a blank id": 1, "no label": 1, "none of the fields": lost}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--labels", "json.categry", "--text", "txt"), r"a column 'json\.categry' for the labels; .*json\.category"),
        (("--labels", "json.category", "--text", "caption"), r"a column 'caption' for the field text; .* txt$"),
        (("--labels", "json.category", "--image", "gif"), r"a column 'gif' for the field image; "),
        (("--labels", "json.category"), r"nothing to learn from: give --image, --text COLUMN or --numbers COLUMN"),
        (("--text", "txt"), r"--text is for tars to train on: name their labels"),
        (("--size", "64"), r"--size is for tars to train on"),
        ((*OPTIONS, "--vectors", "x.txt", "--tokenizer", "bert"), r"--tokenizer=bert|--vectors"),
        ((*OPTIONS, "--size", "0"), r"--size"),
        (
            ("--labels", "json.category", "--numbers", "txt"),
            r"a\.tar: the sample 000001 at byte \d+: .* is no number",
        ),
        ((*OPTIONS, "--id", "json.more.weight"), r"a\.tar \(byte \d+\) and .*a\.tar \(byte \d+\): two samples .* --id"),
        ((*OPTIONS, "--unlabelled", "keep"), r"--unlabelled keep is for --choose many"),
        ((*OPTIONS, "--schema", "x.yaml"), r"--schema says what --image does"),
    ],
)
def test_options_that_do_not_fit_end_in_one_line(place: Place, options: tuple[str, ...], message: str) -> None:
    place.write("a.tar", samples(1, 12))
    assert re.search(message, place.refuses(*options).strip())


def test_a_schema_in_a_file_says_the_same(place: Place, tmp_path: Path) -> None:
    place.write("a.tar", samples(0, 30))
    by_options = place.lists()
    (tmp_path / "schema.yaml").write_text(
        """
id: __key__
labels: {column: json.category, choose: one}
fields:
  image: {kind: image, column: jpg|png}
  text: {kind: text, column: txt}
  numbers: {kind: numbers, columns: [json.price, json.more.weight]}
"""
    )
    assert place.lists("--schema", tmp_path / "schema.yaml", "--size", SIZE) == by_options


def test_an_unknown_label_and_a_data_set_of_one_class_are_refused(place: Place, tmp_path: Path) -> None:
    (tmp_path / "classes").write_text("mugs\nlamps\n")
    place.write("a.tar", samples(0, 12))
    said = place.refuses(*OPTIONS, "--classes", tmp_path / "classes")
    assert re.search(r"a\.tar: the sample 000002 at byte \d+: the label 'shelves' is none of the 2 classes", said)
    place.write("a.tar", {key: members for key, members in samples(0, 12).items() if int(key) % 3 == 0})
    assert "one class only (mugs)" in place.refuses()


def test_an_id_in_two_tars_is_refused_with_both(place: Place) -> None:
    place.write("a.tar", samples(0, 12))
    place.write("b.tar", samples(12, 20) | samples(3, 4))
    said = place.refuses()
    assert re.search(r"a\.tar \(byte \d+\) and .*b\.tar \(byte \d+\): two samples have one id; .*--id", said)


def test_a_damaged_image_or_member_is_a_fault_that_names_tar_byte_and_key(place: Place) -> None:
    made = {f"k{n:02d}": {"jpg": image(5)[1], "txt": b"a word", "cls": b"ab"[n % 2 :][:1]} for n in range(30)}
    path = place.write("a.tar", made)
    manifest = place.lists("--labels", "cls", "--image", "--text", "txt", "--size", SIZE)
    ids = batch_of(manifest, "train", ("image", "text")).samples
    reader = reader_type(manifest)(manifest, "train", ("image", "text"), 8)
    offsets = reader.index.records(reader.index.rows_of(0))["offset"].tolist()
    data = bytearray(path.read_bytes())
    for number, where, what in ((0, b"\xff\xd8\xff", b"xxx"), (1, b"k", b"q"), (2, b"ustar", b"xstar")):
        start = data.index(where, offsets[number])
        data[start : start + len(what)] = what
    for _ in range(3):
        start = data.index(ids[4].encode(), offsets[4])
        data[start : start + 3] = b"qqq"
    label = data.index(b"cls", offsets[3]) // 512 * 512 + 512
    data[label : label + 1] = b"c"
    path.write_bytes(data)
    again = batch_of(manifest, "train", ("image", "text"))
    assert again.weights.tolist() == [0] * 5 + [1] * (len(ids) - 5)
    assert (again.arrays["image.images"][:5] == 128).all()
    assert [fault.partition(": ")[0] for fault in again.faults] == [str(path)] * 5
    for number, text in enumerate((f"sample {ids[0]} at byte", "at byte", "at byte", f"sample {ids[3]} at byte")):
        assert f"{text} {offsets[number]}: " in again.faults[number]
    assert "not a whole image" in again.faults[0]
    assert "index is of another tar" in again.faults[1]
    assert "the label 'c' is none of the 2 classes" in again.faults[3]
    assert "qqq lies where another sample did" in again.faults[4]
    assert again.samples[5:] == ids[5:]
    os.utime(path, ns=(2**60, int(reader.index.shards[0].version)))
    found = place.verifies()
    assert all(fault.split(": ", 2)[2][:40] in found for fault in again.faults)


def test_a_json_that_is_damaged_later_is_named_by_its_key_whatever_the_id(place: Place) -> None:
    made = {f"k{n}": {"json": json.dumps({"id": n, "l": n % 2}).encode(), "txt": b"x"} for n in range(20)}
    path = place.write("a.tar", made)
    manifest = place.lists("--labels", "json.l", "--text", "txt", "--id", "json.id")
    data = path.read_bytes()
    path.write_bytes(data.replace(b'{"id": 3,', b'{"id"; 3,'))
    faults = [fault for split in SPLITS for fault in batch_of(manifest, split, ("text",)).faults]
    assert len(faults) == 1
    assert f"at byte {data.index(b'k3.json')}: k3: " in faults[0]


def test_a_tar_that_has_changed_is_named_and_gives_faults(place: Place) -> None:
    path = place.write("a.tar", samples(0, 30))
    manifest = place.lists()
    assert "verified: 3 shards are whole" in place.verifies()
    place.write("a.tar", samples(0, 31))
    batch = batch_of(manifest, "train")
    assert not batch.weights.any()
    assert "run `genre-dist index` again" in batch.faults[0]
    told = place.verifies()
    assert f"{path}: it has changed since it was listed; run `genre-dist index` again" in told
    assert "1 faults" in told
    path.unlink()
    assert f"{path}: no such tar" in place.verifies()
