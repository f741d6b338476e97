"""Import of a data set of one's own: ids, labels, texts, numbers and images as declared, and every mistake named."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
from test_importing import JPEG, files_under, make_table, make_tar

from genre_dist.catalogue.catalogue import movies_file, read_rows, samples_file
from genre_dist.catalogue.importing import import_catalogue
from genre_dist.catalogue.sample_films import make_sample
from genre_dist.catalogue.samples import image_file, load_catalogue_schema, read_samples
from genre_dist.cli import main
from genre_dist.lock import one_writer
from genre_dist.sample_ids import number_of_id
from genre_dist.splits import split_of
from genre_dist.tmdb.fetch_state import FetchOptions
from genre_dist.tmdb.fetching import fetch

SHOE = {"sku": "sku-1", "title": "Red shoe", "text": "Of leather", "category": "shoes", "price": 9.5, "weight": ""}
HAT = {"sku": "sku-2", "title": "Hat", "text": "", "category": "hats", "price": 20, "weight": 0.25}
OPTIONS = ("--id", "sku", "--labels", "category")
TITLE = ("--text", "title")
BY_SHOP = ("--split_by", "shop")
GROUPS = ("big", *(f"shop {n}" for n in range(4)))


class Workplace:
    """A folder with a table, images and a catalogue that is to be made."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys
        self.table, self.out, self.images = folder / "table.jsonl", folder / "catalogue", folder / "images"
        self.said = ""

    def run(self, rows: list[dict[str, Any]], *options: object) -> int:
        """Import rows, as the command does; what it says is kept."""
        make_table(self.table, rows)
        arguments = ["import", "--table", self.table, "--out", self.out, *options]
        code = main([str(argument) for argument in arguments])
        said = self.capsys.readouterr()
        self.said = said.out + said.err
        return code

    def refuses(self, rows: list[dict[str, Any]], *options: object) -> str:
        """The one line of an import that fails and writes nothing."""
        assert self.run(rows, *options) == 2, self.said
        assert files_under(self.out) == set()
        assert self.said.startswith("error: ")
        assert self.said.count("\n") == 1
        return self.said

    def rows(self, *options: object, of: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The catalogue's rows after an import of rows."""
        assert self.run(of, *options) == 0, self.said
        return list(read_samples(self.out, load_catalogue_schema(self.out)))

    def pictures(self, *names: str, under: str = "images") -> Path:
        for name in names:
            path = self.folder / under / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(JPEG + name.encode())
        return self.folder / under

    def schema(self, text: str) -> tuple[str, Path]:
        path = self.folder / "schema.yaml"
        path.write_text(text)
        return "--schema", path


@pytest.fixture
def place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Workplace:
    return Workplace(tmp_path, capsys)


# ---- what is made


def test_a_table_with_images_becomes_a_catalogue(place: Workplace) -> None:
    images = place.pictures("sku-1.png", "other.jpg")
    options = (*OPTIONS, "--posters", images, "--text", "title", "text", "--numbers", "price", "weight")
    shoe, hat = place.rows(*options, of=[SHOE, HAT])
    data = JPEG + b"sku-1.png"
    assert math.isnan(shoe["numbers"].pop())
    assert shoe == {
        **{"id": "sku-1", "split_by": "sku-1", "labels": ["shoes"], "text": "Red shoe Of leather", "numbers": [9.5]},
        **{"image:status": "ok", "image:bytes": len(data), "image:sha256": hashlib.sha256(data).hexdigest()},
    }
    assert (hat["text"], hat["numbers"], hat["image:status"]) == ("Hat", [20, 0.25], "none")
    assert image_file(place.out, "image", number_of_id("sku-1")).read_bytes() == data
    schema = load_catalogue_schema(place.out)
    assert (schema.labels.classes, schema.labels.choose) == (("hats", "shoes"), "many")
    assert [(field.name, field.kind) for field in schema.fields] == [
        ("image", "image"),
        ("text", "text"),
        ("numbers", "numbers"),
    ]
    assert "2 samples\n  1 with the field image" in place.said
    assert "2 classes, choose many: hats 1, shoes 1\n" in place.said
    assert "1 images without a row, left out, such as" in place.said
    assert "next: genre-dist pack --catalogue" in place.said


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_each_table_format_gives_the_same_rows(place: Workplace, suffix: str) -> None:
    place.table = place.folder / f"table.{suffix}"
    rows = place.rows(
        *(*OPTIONS, *TITLE, "--numbers", "price"), of=[SHOE | {"weight": 1.5}, HAT | {"category": "hats|sale"}]
    )
    assert [(row["id"], row["labels"], row["numbers"]) for row in rows] == [
        ("sku-1", ["shoes"], [9.5]),
        ("sku-2", ["hats", "sale"], [20]),
    ]


@pytest.mark.parametrize(
    ("id", "kept"), [("007", "007"), ("tt0111161", "tt0111161"), (7, "7"), (" 7 ", "7"), ("7.0", "7.0"), (7.0, "7")]
)
def test_ids_are_kept_as_they_are(place: Workplace, id: Any, kept: str) -> None:
    assert place.rows(*OPTIONS, *TITLE, of=[HAT, SHOE | {"sku": id}])[1]["id"] == kept


@pytest.mark.parametrize("id", ["a/b", "../../x", "..", ".hidden", "a.b.c", "ünï-写真", "x" * 300, "a\nb", "C:\\x"])
def test_no_id_leads_out_of_the_catalogue(place: Workplace, id: str) -> None:
    place.pictures("cover.jpg")
    rows = [HAT, SHOE | {"sku": id, "file": "cover.jpg"}]
    place.rows(*OPTIONS, *TITLE, "--posters", place.images, "--poster_key", "file", of=rows)
    number = number_of_id(id)
    assert files_under(place.folder) - {"images/cover.jpg", "table.jsonl"} == {
        "catalogue/schema.json",
        "catalogue/samples.parquet",
        f"catalogue/images/image/{number % 1000:03d}/{number:016x}.jpg",
    }


def test_images_are_found_in_tars_and_by_another_column(place: Workplace) -> None:
    tar = make_tar(place.folder / "i.tar", {"photos/front 1.jpg": JPEG + b"1"})
    shoe, hat = place.rows(
        *(*OPTIONS, *TITLE, "--posters", tar, "--poster_key", "file"),
        of=[SHOE | {"file": "https://host/front%201.jpg?v=2"}, HAT],
    )
    assert (shoe["image:status"], hat["image:status"]) == ("ok", "none")


def test_an_image_that_two_samples_name_is_of_neither(place: Workplace) -> None:
    images = place.pictures("a.jpg", "b.jpg")
    rows = [SHOE | {"file": "a"}, HAT | {"file": "a"}, HAT | {"sku": "sku-3", "file": "b"}]
    found = place.rows(*OPTIONS, *TITLE, "--posters", images, "--poster_key", "file", of=rows)
    assert [row["image:status"] for row in found] == ["none", "none", "ok"]
    assert "2 samples that name their file of image as another does, without one, such as a\n" in place.said


def test_an_id_with_a_slash_never_takes_the_file_of_another(place: Workplace) -> None:
    images = place.pictures("x/1.jpg", "y/1.jpg", "sku-2.jpg")
    found = place.rows(*OPTIONS, *TITLE, "--posters", images, of=[SHOE | {"sku": "y/1"}, HAT])
    assert [row["image:status"] for row in found] == ["none", "ok"]
    assert "1 samples whose id has a slash, as no file can be called, without images found by ids" in place.said


def test_ids_that_are_names_of_files_find_them(place: Workplace) -> None:
    images = place.pictures("a.jpg", "b.1.png")
    found = place.rows(*OPTIONS, *TITLE, "--posters", images, of=[SHOE | {"sku": "a.jpg"}, HAT | {"sku": "b.1"}])
    assert [(row["id"], row["image:status"]) for row in found] == [("a.jpg", "ok"), ("b.1", "ok")]


def test_a_schema_declares_several_images_and_texts(place: Workplace) -> None:
    schema = place.schema(
        "{id: sku, labels: {column: category, choose: one}, sample: product, fields: {front: {kind: image}, "
        "title: {kind: text, column: title}, back: {kind: image, column: behind}, about: {kind: text, column: text}}}"
    )
    front, back = place.pictures("sku-1.jpg", "sku-2.jpg", under="f"), place.pictures("x.jpg", under="b")
    shoe, hat = place.rows(
        *(*schema, "--posters", f"front={front}", f"back={back}"), of=[SHOE | {"behind": "x.jpg"}, HAT]
    )
    assert [shoe["front:status"], shoe["back:status"], hat["front:status"], hat["back:status"]] == [
        *("ok", "ok", "ok", "none")
    ]
    assert (shoe["title"], shoe["about"], hat["about"]) == ("Red shoe", "Of leather", "")
    assert load_catalogue_schema(place.out).sample == "product"


def test_labels_come_as_lists_json_or_separated(place: Workplace) -> None:
    cells = [["a", "b"], '["a", "b"]', "a|b", "a; b", "a, b,a", "['a', 'b']", [{"id": 1, "name": "a"}, {"name": "b"}]]
    rows = [{"sku": f"s{n}", "title": "x", "category": cell} for n, cell in enumerate(cells)]
    assert [row["labels"] for row in place.rows(*OPTIONS, *TITLE, of=rows)] == [["a", "b"]] * len(cells)


def test_a_class_of_a_file_may_have_a_comma(place: Workplace) -> None:
    (place.folder / "classes.txt").write_text("Food, drink\nhats\n")
    rows = [SHOE | {"category": "Food, drink"}, HAT]
    found = place.rows(*OPTIONS, *TITLE, "--choose", "one", "--classes", place.folder / "classes.txt", of=rows)
    assert [row["labels"] for row in found] == [["Food, drink"], ["hats"]]
    assert load_catalogue_schema(place.out).labels.classes == ("Food, drink", "hats")


def test_tmdbs_genres_are_read_as_names_or_ids(place: Workplace) -> None:
    rows = [SHOE | {"category": "18|science fiction|Silent"}, HAT | {"category": "Drama"}]
    found = place.rows(*OPTIONS, *TITLE, "--classes", "tmdb", of=rows)
    assert [row["labels"] for row in found] == [["Drama", "Science Fiction"], ["Drama"]]
    assert len(load_catalogue_schema(place.out).labels.classes) == 19
    assert "1 labels that are none of TMDB's genres, dropped, such as Silent" in place.said
    assert "note: 17 classes that no sample has: Action, Adventure" in place.said


# ---- samples without a label, doubled ids, groups


def test_samples_without_a_label_are_left_out_with_a_count(place: Workplace) -> None:
    rows = [SHOE, HAT, HAT | {"sku": "sku-3", "category": ""}, HAT | {"sku": "sku-4", "category": None}]
    assert [row["id"] for row in place.rows(*OPTIONS, *TITLE, of=rows)] == ["sku-1", "sku-2"]
    assert "2 samples without a label, left out (see --unlabelled), such as sample sku-3" in place.said


def test_samples_without_a_label_are_kept_or_refused_as_asked(place: Workplace) -> None:
    rows = [SHOE, HAT, HAT | {"sku": "sku-3", "category": "[]"}]
    refused = place.refuses(rows, *OPTIONS, *TITLE, "--unlabelled", "refuse")
    assert "table.jsonl, row 3: sample sku-3 has no label (column 'category')" in refused
    assert "is for --choose many" in place.refuses(rows, *OPTIONS, *TITLE, "--unlabelled", "keep", "--choose", "one")
    assert [row["labels"] for row in place.rows(*OPTIONS, *TITLE, "--unlabelled", "keep", of=rows)][2] == []
    assert "1 samples without a label, kept as having none" in place.said


def test_the_first_row_of_an_id_counts_and_the_others_are_told(place: Workplace) -> None:
    rows = [SHOE | {"category": ""}, SHOE | {"title": "first"}, HAT, SHOE | {"title": "again"}]
    assert [row["text"] for row in place.rows(*OPTIONS, *TITLE, of=rows)] == ["first", "Hat"]
    assert "1 rows with an id that was there before, left out, such as sample sku-1" in place.said


def test_the_split_column_is_kept_and_a_large_group_is_told(place: Workplace) -> None:
    rows = [HAT | {"sku": f"s{n}", "shop": f"shop {n if n > 3 else 0}"} for n in range(60)] + [SHOE | {"shop": 1.0}]
    found = place.rows(*OPTIONS, *TITLE, "--split_by", "shop", of=rows)
    assert [row["split_by"] for row in found][-2:] == ["shop 59", "1"]
    assert "note: the group shop 0 of shop has 7% of all samples (4), which lie in one split" in place.said
    assert place.said.count("note: the group") == 1


def test_groups_that_leave_a_split_empty_are_an_error(place: Workplace) -> None:
    rows = [HAT | {"sku": f"s{n}", "shop": "big" if n < 45 else f"shop {n % 4}"} for n in range(60)] + [SHOE]
    refused = place.refuses([row | {"shop": row.get("shop", "big")} for row in rows], *OPTIONS, *TITLE, *BY_SHOP)
    empty = [split for split in ("test", "train", "val") if split not in {split_of(number_of_id(g)) for g in GROUPS}]
    assert f"no sample would lie in {' and '.join(empty)}: a group of 'shop' lies in one split" in refused
    assert "of 5 the largest, 'big', has 75% of all samples; give --split_by a column of more and smaller" in refused
    few = [row | {"shop": "big"} for row in rows[:44]]  # a split of so few may be empty without groups
    assert place.run([*few, SHOE | {"shop": "big"}], *OPTIONS, *TITLE, *BY_SHOP) == 0


def test_an_id_too_long_for_a_tar_is_told(place: Workplace) -> None:
    place.rows(*OPTIONS, *TITLE, of=[SHOE | {"sku": "x" * 81}, HAT])
    assert "note: 1 ids are too long to be packed (more than 80 bytes" in place.said


# ---- mistakes: one line, and nothing is written


@pytest.mark.parametrize(
    ("change", "options", "problem"),
    [
        ({"sku": ""}, (), "row 2: the id is blank (column 'sku')"),
        ({"sku": None}, (), "row 2: the id is blank"),
        ({"category": "shoes|hats"}, ("--choose", "one"), "row 2: 'shoes' and 'hats' are two labels, where --choose"),
        ({"category": "a\x07"}, (), r"row 2: the label 'a\x07' has characters that cannot be shown"),
        ({"category": "shoes"}, (), "one class only (shoes) in the column 'category'"),
        ({"price": "cheap"}, ("--numbers", "price"), "row 2: 'cheap' in the column 'price' is no number"),
        ({"price": "1e999"}, ("--numbers", "price"), "row 2: 1e999 in the column 'price' is no finite number"),
        ({"price": "-inf"}, ("--numbers", "price"), "row 2: -inf in the column 'price' is no finite number"),
        ({"price": "1e39"}, ("--numbers", "price"), "row 2: 1e39 in the column 'price' is no finite number of 32"),
        ({"shop": " "}, ("--split_by", "shop"), "row 2: the column 'shop' of --split_by is blank"),
        (
            {},
            ("--classes", "{classes}"),
            "row 2: the label 'hats' is none of the 2 classes; add it to those of --class",
        ),
        ({}, ("--classes", "nothing.txt"), "--classes: nothing.txt is no file; give auto, tmdb, or a file"),
        ({}, ("--split_by", "shops"), "has no column 'shops' for --split_by; it has sku, title, text"),
        ({}, ("--numbers", "size"), "has no column 'size' for the field numbers; it has sku,"),
        ({}, ("--numbers", "empty"), "no row has the field numbers (column 'empty')"),
        ({}, ("--poster_key", "file", "--posters", "{images}"), "has no column 'file' for the field image"),
        ({}, ("--columns", "title=text"), "--columns renames the columns of films"),
    ],
)
def test_a_mistake_is_named_with_its_row_or_option(
    place: Workplace, change: dict[str, Any], options: tuple[str, ...], problem: str
) -> None:
    classes = place.folder / "classes.txt"
    classes.write_text("shoes\ncoats\n")
    images = place.pictures("sku-1.jpg")
    filled = [option.format(classes=classes, images=images) for option in options]
    rows = [row | {"empty": "", "shop": "one"} for row in (SHOE, HAT)]
    rows[1] |= change
    assert problem in place.refuses(rows, *OPTIONS, *TITLE, *filled)


def test_blank_and_nan_numbers_are_missing(place: Workplace) -> None:
    cells = ["", None, "nan", " ", 4]
    rows = [(SHOE if n else HAT) | {"sku": f"s{n}", "price": cell} for n, cell in enumerate(cells)]
    found = [row["numbers"][0] for row in place.rows(*OPTIONS, "--numbers", "price", of=rows)]
    assert [math.isnan(number) for number in found] == [True] * 4 + [False]


def test_a_text_that_no_row_has_is_an_error(place: Workplace) -> None:
    rows = [SHOE | {"text": " "}, HAT]
    assert "no row has the field text (column 'text')" in place.refuses(rows, *OPTIONS, "--text", "text")


def test_images_that_belong_to_no_row_are_an_error_that_says_what_was_looked_for(place: Workplace) -> None:
    images = place.pictures("sku_1.jpg")
    refused = place.refuses([SHOE, HAT], *OPTIONS, "--posters", images)
    assert "no row has the field image: none of the files in" in refused
    assert "is named as a sample, such as sku-1.jpg; check --posters and --poster_key" in refused


def test_a_table_without_a_label_is_an_error(place: Workplace) -> None:
    assert "no sample with a label in the column 'category'" in place.refuses(
        [SHOE | {"category": ""}], *OPTIONS, *TITLE
    )


def test_a_column_of_texts_taken_for_labels_is_refused_before_it_fills_the_memory(place: Workplace) -> None:
    rows = [SHOE | {"sku": n, "category": [f"{n} {m}" for m in range(100)]} for n in range(101)]
    assert "more than 10,000 labels; is 'category' the column of --labels?" in place.refuses(rows, *OPTIONS, *TITLE)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--id", "sku", *TITLE), "needs --labels COLUMN"),
        (("--labels", "category", *TITLE), "needs --id COLUMN"),
        (OPTIONS, "nothing to learn from: give --posters, --text COLUMN or --numbers COLUMN"),
        (("--unlabelled", "keep"), "--unlabelled is for a data set of your own"),
        (("--schema", "{schema}", "--id", "sku"), "--schema says what --id does; give one of them"),
        (("--schema", "{schema}", "--poster_key", "x"), "--schema says what --poster_key does; give one of them"),
        (("--schema", "{schema}"), "the image field front has no files; give --posters front=FOLDER_OR_TAR"),
        (("--schema", "{schema}", "--posters", "{images}"), "whose are these? Give front=PATH back=PATH"),
        (("--schema", "{schema}", "--posters", "font={images}"), "whose are these? Give front=PATH back=PATH"),
        (("--schema", "none.yaml"), "none.yaml: no such file with a schema"),
        ((*OPTIONS, "--posters", "nowhere"), "nowhere does not exist; check --table and --posters"),
    ],
)
def test_options_that_do_not_go_together_are_refused(place: Workplace, options: tuple[str, ...], problem: str) -> None:
    _, schema = place.schema(
        "{id: sku, labels: {column: category}, fields: {front: {kind: image}, back: {kind: image}}}"
    )
    images = place.pictures("sku-1.jpg")
    filled = [option.format(schema=schema, images=images) for option in options]
    assert problem in place.refuses([SHOE, HAT], *filled)


# ---- catalogues that are there


def test_a_catalogue_is_replaced_only_when_asked_whatever_its_kind(place: Workplace) -> None:
    make_sample(2, 0, place.out, size=(32, 32))
    assert place.run([SHOE, HAT], *OPTIONS, *TITLE) == 2
    assert "already holds a catalogue; give another --out, or --overwrite" in place.said
    assert place.run([SHOE, HAT], *OPTIONS, *TITLE, "--overwrite") == 0
    assert files_under(place.out) == {"schema.json", "samples.parquet"}
    film = make_table(place.folder / "films.jsonl", [{"tmdb_id": 1, "genre_ids": [18]}])
    for sample_over in (lambda: import_catalogue(film, [], place.out), lambda: make_sample(2, 0, place.out)):
        with pytest.raises(ValueError, match="already holds a catalogue"):
            sample_over()
    import_catalogue(film, [], place.out, overwrite=True)
    assert files_under(place.out) == {"movies.parquet"}


def test_a_failed_import_over_a_catalogue_leaves_it(place: Workplace) -> None:
    place.rows(*OPTIONS, *TITLE, of=[SHOE, HAT])
    before = samples_file(place.out).read_bytes()
    assert place.run([SHOE, HAT | {"sku": ""}], *OPTIONS, *TITLE, "--overwrite") == 2
    assert samples_file(place.out).read_bytes() == before


def test_a_second_writer_is_refused(place: Workplace) -> None:
    with one_writer(place.out):
        assert place.run([SHOE, HAT], *OPTIONS, *TITLE) == 2
    assert str(place.out) in place.said
    assert not samples_file(place.out).exists()


def test_without_the_new_options_a_table_is_one_of_films(place: Workplace) -> None:
    assert place.run([{"tmdb_id": 5, "genre_ids": [18]}]) == 0
    assert place.said.startswith(f"{place.out}: 1 films, 0 with a poster")
    assert movies_file(place.out).is_file()
    assert [row["tmdb_id"] for row in read_rows(place.out)] == [5]


def test_fetch_does_not_write_films_beside_a_declared_data_set(place: Workplace) -> None:
    place.rows(*OPTIONS, *TITLE, of=[SHOE, HAT])
    with pytest.raises(ValueError, match="holds the catalogue of another data set; give another --out"):
        fetch(FetchOptions(out=place.out, key="k", years=[2000]))
    assert files_under(place.out) == {"schema.json", "samples.parquet"}


def test_the_same_table_gives_the_same_bytes(place: Workplace) -> None:
    images = place.pictures("sku-1.jpg")
    options = (*OPTIONS, *TITLE, "--posters", images, "--overwrite")
    files = []
    for _ in range(2):
        place.rows(*options, of=[SHOE, HAT])
        files.append({name: (place.out / name).read_bytes() for name in files_under(place.out)})
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ({"labels": {"column": "c", "classes": ["a"]}}, "labels.classes: fewer than two classes"),
        ({"fields": []}, "schema.json: fields: "),
        ({"colour": "red"}, "schema.json: colour: "),
        ({"id": 7}, "schema.json: id: "),
    ],
)
def test_a_damaged_schema_of_a_catalogue_is_named(place: Workplace, damage: dict[str, Any], problem: str) -> None:
    place.rows(*OPTIONS, *TITLE, of=[SHOE, HAT])
    path = place.out / "schema.json"
    content = json.loads(path.read_text())
    del content["sha256"]
    path.write_text(json.dumps(content | damage))
    with pytest.raises(ValueError, match=problem):
        load_catalogue_schema(place.out)


def test_the_report_tells_no_more_than_fifty_classes(place: Workplace) -> None:
    rows = [SHOE | {"sku": n, "category": f"c{n:03}"} for n in range(60)]
    place.rows(*OPTIONS, *TITLE, of=rows)
    assert "c048 1, c049 1, and 10 more\n" in place.said
