"""The schema of a data set: what a sample has, its id, its split and its labels. TMDB's is built in.

A schema is declared once, by a YAML file or by options of `genre-dist import`, and travels in the catalogue and in the
shards' manifest. Nothing else knows a field's name.
"""

import re
from collections import Counter
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

from annotated_types import Len

from genre_dist.genres import GENRE_NAMES

FieldKind = Literal["text", "image", "numbers"]
Choose = Literal["many", "one"]
"""Any number of labels (sigmoid), or exactly one (softmax)."""
ORDER: tuple[FieldKind, ...] = ("text", "image", "numbers")
"""The order of a model's encodings."""
EXTENSIONS: dict[FieldKind, str] = {"text": "tokens.npy", "image": "jpg", "numbers": "numbers.npy"}
MOST_FIELDS = 15
"""The index has a bit for each."""
RESERVED = ("heads", "missing", "id", "split_by", "labels", "json", "all")
"""Names that are used beside those of fields."""


@dataclass(frozen=True, kw_only=True)
class Field:
    """One input of a sample, which a sample may lack. Raises ValueError for an impossible name or extension."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (no field)

    name: str
    kind: FieldKind
    columns: tuple[str, ...] = ()
    """Columns of the table: a text's are joined by blanks, each of a `numbers` field is one number, and an image's
    (at most one) has the name of its file. Without one, images are found by the sample's id."""
    member: str = ""
    """Extension of its member in the tars; by default NAME.EXTENSION of its kind."""
    encoder: str = ""
    """Name of the model's part that encodes it; by default the field's."""

    def __post_init__(self) -> None:
        if not re.fullmatch("[a-z][a-z0-9_]{0,39}", self.name) or self.name in RESERVED:
            raise ValueError(f"a field is named by small letters, digits and _, not {self.name[:60]!r}")
        if self.kind != "image" and not self.columns:
            raise ValueError(f"the field {self.name} ({self.kind}) needs the columns that it is made of")
        if self.kind == "image" and len(self.columns) > 1:
            raise ValueError(f"the image {self.name} has one column at most, with the name of its file")
        if not re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)*", self.extension) or self.extension == "json":
            raise ValueError(f"the field {self.name} cannot be kept as .{self.extension[:60]}")

    @property
    def extension(self) -> str:
        """Extension of its member in the tars."""
        return self.member or f"{self.name}.{EXTENSIONS[self.kind]}"

    @property
    def part(self) -> str:
        """Name of the model's part that encodes it."""
        return self.encoder or self.name


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The labels of a sample. Raises ValueError for doubled or blank classes."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (no field)

    column: str
    classes: tuple[str, ...] = ()
    """In the order of logits; empty: those that the table has, by name (`auto`)."""
    choose: Choose = "many"
    """Whether a sample has any number of them (sigmoid), or exactly one (softmax)."""

    def __post_init__(self) -> None:
        if not all(name.strip() == name and name and name.isprintable() for name in self.classes):
            raise ValueError("each class has a name, in printable characters and without blanks around it")
        if again := [name for name, count in Counter(self.classes).items() if count > 1]:
            raise ValueError(f"the class {again[0]!r} is there twice")


@dataclass(frozen=True, kw_only=True)
class Schema:
    """What is declared of a data set. Raises ValueError for two fields of one name, extension or part."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (no field)

    id: str
    """The column of ids, which may be any strings."""
    split_by: str
    """The column whose value decides the split: samples of one value are in one split."""
    labels: Labels
    fields: Annotated[tuple[Field, ...], Len(1, MOST_FIELDS)]
    """In the order of their bits in the index."""
    sample: str = "sample"
    """What messages call a sample, and a label."""
    label: str = "label"

    def __post_init__(self) -> None:
        for what in ("name", "extension", "part"):
            values = Counter(getattr(field, what) for field in self.fields)
            if again := [value for value, count in values.items() if count > 1]:
                raise ValueError(f"two fields have the {what} {again[0]!r}; give one of them another")
        for word in (self.sample, self.label):
            if not re.fullmatch("[a-z][a-z ]{0,29}", word):
                raise ValueError(f"a sample or label is called by a word in small letters, not {word[:60]!r}")

    @cached_property
    def by_name(self) -> dict[str, Field]:
        return {field.name: field for field in self.fields}

    @cached_property
    def encoded(self) -> tuple[Field, ...]:
        """The fields in the order of a model's encodings: texts, images, numbers."""
        return tuple(sorted(self.fields, key=lambda field: ORDER.index(field.kind)))

    def bit(self, name: str) -> int:
        """A field's bit in the index. Raises ValueError for an unknown field."""
        for number, field in enumerate(self.fields):
            if field.name == name:
                return 1 << number
        raise ValueError(f"a {self.sample} has {' and '.join(self.by_name)}, not {name[:60]!r}")

    def bits(self, names: tuple[str, ...]) -> int:
        """The bits of several fields."""
        return sum({self.bit(name) for name in names})

    def first(self, kind: FieldKind) -> str:
        """The name of the first field of a kind; the kind itself without one."""
        return next((field.name for field in self.fields if field.kind == kind), kind)

    @property
    def samples(self) -> str:
        """What messages call several samples."""
        return plural(self.sample)

    @property
    def image(self) -> str:
        """What messages call an image."""
        return "poster" if self == TMDB else "image"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def with_article(word: str) -> str:
    """An English word with its article: a film, an image."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def plural(word: str) -> str:
    """The regular plural of an English word: films, categories, classes."""
    if re.search("[^aeiou]y$", word):
        return f"{word[:-1]}ies"
    return f"{word}es" if re.search("(s|x|z|ch|sh)$", word) else f"{word}s"


TMDB = Schema(
    id="tmdb_id",
    split_by="tmdb_id",
    labels=Labels(column="genre_ids", classes=GENRE_NAMES),
    fields=(
        Field(name="poster", kind="image", member="jpg"),
        Field(name="overview", kind="text", columns=("overview",), member="tokens.npy", encoder="text"),
    ),
    sample="film",
    label="genre",
)
