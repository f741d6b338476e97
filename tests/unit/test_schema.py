"""A schema declares fields and labels; TMDB's is built in."""

import pytest

from genre_dist.genres import GENRE_NAMES
from genre_dist.schema import TMDB, Field, Labels, Schema

LABELS = Labels(column="category")
TITLE = Field(name="title", kind="text", columns=("title",))
PHOTO = Field(name="photo", kind="image")


def schema(*fields: Field, **changed: str) -> Schema:
    return Schema(**{"id": "sku", "split_by": "sku"} | changed, labels=LABELS, fields=fields)


def test_tmdb_is_a_schema_with_the_bits_members_and_parts_of_the_first_shards() -> None:
    assert [(field.name, TMDB.bit(field.name), field.extension, field.part) for field in TMDB.fields] == [
        ("poster", 1, "jpg", "poster"),
        ("overview", 2, "tokens.npy", "text"),
    ]
    assert [field.part for field in TMDB.encoded] == ["text", "poster"]
    assert TMDB.labels.classes == GENRE_NAMES


def test_encodings_are_of_texts_then_images_then_numbers() -> None:
    facts = Field(name="facts", kind="numbers", columns=("price", "weight"))
    declared = schema(facts, PHOTO, TITLE)
    assert [field.name for field in declared.encoded] == ["title", "photo", "facts"]
    assert [field.extension for field in declared.fields] == ["facts.numbers.npy", "photo.jpg", "title.tokens.npy"]
    assert declared.bits(("facts", "title")) == 5


@pytest.mark.parametrize(
    ("field", "problem"),
    [
        ({"name": "Title"}, "small letters"),
        ({"name": "heads"}, "small letters"),
        ({"kind": "numbers", "columns": ()}, "needs the columns"),
        ({"kind": "image", "columns": ("a", "b")}, "one column at most"),
        ({"member": "json"}, "cannot be kept as .json"),
        ({"member": "../x"}, "cannot be kept as"),
    ],
)
def test_impossible_fields_are_refused(field: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Field(**{"name": "title", "kind": "text", "columns": ("title",)} | field)  # type: ignore[arg-type]


def test_two_fields_of_one_extension_are_refused() -> None:
    with pytest.raises(ValueError, match="extension 'jpg'"):
        schema(Field(name="front", kind="image", member="jpg"), Field(name="back", kind="image", member="jpg"))


@pytest.mark.parametrize(
    ("classes", "problem"),
    [(("a", "b", "a"), "'a' is there twice"), (("a", " "), "without blanks"), (("a", ""), "has a name")],
)
def test_doubled_and_blank_classes_are_refused(classes: tuple[str, ...], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Labels(column="category", classes=classes)


def test_an_unknown_field_is_named() -> None:
    with pytest.raises(ValueError, match="a sample has title and photo, not 'poster'"):
        schema(TITLE, PHOTO).bit("poster")
