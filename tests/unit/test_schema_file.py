"""A schema in YAML: what it may say, and that every mistake is one line that names the file and the key."""

from pathlib import Path

import pytest

from genre_dist.catalogue.schema_file import load_classes, load_schema
from genre_dist.genres import GENRE_NAMES
from genre_dist.schema import Field, Labels, Schema

PRODUCTS = """\
id: sku
labels: {column: category, classes: [shoes, hats], choose: one}
fields:
  front: {kind: image}
  text: {kind: text, columns: [title, description]}
  facts: {kind: numbers, columns: [price, weight], member: facts.npy}
sample: product
label: category
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "products.yaml"
    path.write_text(text)
    return path


def test_a_schema_is_read_with_its_fields_in_their_order(tmp_path: Path) -> None:
    assert load_schema(written(tmp_path, PRODUCTS)) == Schema(
        id="sku",
        split_by="sku",
        labels=Labels(column="category", classes=("shoes", "hats"), choose="one"),
        fields=(
            Field(name="front", kind="image"),
            Field(name="text", kind="text", columns=("title", "description")),
            Field(name="facts", kind="numbers", columns=("price", "weight"), member="facts.npy"),
        ),
        sample="product",
        label="category",
    )


def test_one_column_may_be_named_alone_and_the_split_by_another(tmp_path: Path) -> None:
    text = "{id: scan, split_by: patient, labels: {column: finding}, fields: {report: {kind: text, column: notes}}}"
    schema = load_schema(written(tmp_path, text))
    assert (schema.split_by, schema.fields[0].columns) == ("patient", ("notes",))
    assert (schema.labels.classes, schema.labels.choose, schema.sample) == ((), "many", "sample")


@pytest.mark.parametrize(("classes", "expected"), [("auto", ()), ("tmdb", GENRE_NAMES), ("kinds.txt", ("b", "a c"))])
def test_classes_are_of_the_table_of_tmdb_or_of_a_file_beside(
    tmp_path: Path, classes: str, expected: tuple[str, ...]
) -> None:
    (tmp_path / "kinds.txt").write_text("b\n a c \n")
    assert load_schema(written(tmp_path, PRODUCTS.replace("[shoes, hats]", classes))).labels.classes == expected


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("id: sku", "ids: sku", "unknown key `ids`; did you mean `id`?"),
        ("choose: one", "chose: one", "unknown key `labels.chose`; did you mean `choose`?"),
        ("{kind: image}", "{kinds: image}", "unknown key `fields.front.kinds`; did you mean `kind`?"),
        ("id: sku", "", "the key `id` is missing"),
        ("id: sku", "id: 7", "id: not a text, found 7; put names"),
        ("choose: one", "choose: two", "labels: choose: Input should be 'many' or 'one', found 'two'"),
        ("kind: image", "kind: picture", "fields.front: kind: Input should be 'text', 'image' or 'numbers'"),
        ("{kind: image}", "image", "`fields.front` is a section of keys, found: image"),
        ("[shoes, hats]", "[shoes, no]", "labels: classes.1: Input should be a valid string, found False; put names"),
        ("[shoes, hats]", "[shoes, shoes]", "labels: the class 'shoes' is there twice"),
        ("[shoes, hats]", "[]", r"labels.classes: a list of classes, a file, auto or tmdb, found \[\]"),
        ("[shoes, hats]", "none.txt", "labels.classes: .*none.txt is no file; give auto, tmdb, or a file"),
        ("columns: [title,", "column: x, columns: [title,", "fields.text has both `column` and `columns`"),
        ("front:", "Front:", "fields.Front: a field is named by small letters"),
        ("sample: product", "sample: 'A product'", "is called by a word in small letters"),
        ("member: facts.npy", "member: front.jpg", "two fields have the extension 'front.jpg'"),
        ("sku\n", "[\n", "is not a YAML file of sections and keys"),
        ("id: sku", "1: sku", "unknown key `1`"),
    ],
)
def test_mistakes_are_named_with_the_file(tmp_path: Path, old: str, new: str, problem: str) -> None:
    assert old in PRODUCTS
    with pytest.raises(ValueError, match=rf"(?s)products\.yaml.*{problem}") as error:
        load_schema(written(tmp_path, PRODUCTS.replace(old, new, 1)))
    assert "\n" not in str(error.value)


def test_a_bomb_of_aliases_and_a_file_too_large_are_refused(tmp_path: Path) -> None:
    bomb = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
    bomb += "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    with pytest.raises(ValueError, match="more than 10,000 values"):
        load_schema(written(tmp_path, bomb))
    with pytest.raises(ValueError, match="bytes, more than a file of settings ever has"):
        load_schema(written(tmp_path, PRODUCTS + "#" * 100_000))
    with pytest.raises(ValueError, match="no such file with a schema"):
        load_schema(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a\n\nb\n", "line 2: blank"),
        ("a\nb\na\n", "line 3: 'a' is there already, in line 1"),
        ("a\n\x07\n", r"line 2: '\\x07' has characters that cannot be shown"),
        ("", "0 classes"),
        ("\n".join(map(str, range(10_001))), "10,001 classes"),
        ("a" * (5 << 20), "bytes, more than a list of classes ever has"),
    ],
)
def test_a_line_that_is_no_class_is_named(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "classes.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"classes\.txt.*{problem}"):
        load_classes(path)


def test_a_file_of_classes_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes(b"caf\xe9\n")
    with pytest.raises(ValueError, match=r"classes\.txt: not UTF-8"):
        load_classes(path)
