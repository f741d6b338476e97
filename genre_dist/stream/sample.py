"""Parsing of one sample: its members are located in their bytes of the tar and turned into arrays.

Shards that `genre-dist pack` wrote take a fast path of a few microseconds; all others take a general path with the same
result. The bytes themselves tell which path applies, so no flag declares it.
"""

import json
import re
import struct
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genre_dist.printable import printable
from genre_dist.sample_ids import id_of_key, number_of_id
from genre_dist.schema import TMDB, Schema
from genre_dist.stream.index import DamagedArrayError, array_bytes, array_in
from genre_dist.stream.tar import members

PADDING, UNKNOWN = 0, 1  # token ids of the first two words of every vocabulary
MEMBER_OF = {field.name: field.extension for field in TMDB.fields}

ENCODING = "encoding.npy"
"""Extension of the member with the outputs of frozen encoders, in shards of encodings."""

Data = bytes | memoryview


def read_members(data: Data, sample_id: int) -> dict[str, memoryview]:
    """A sample's members by extension, from its bytes of the tar. Raises ValueError if they are another sample's."""
    view = memoryview(data)
    return _plain_members(view, b"%d." % sample_id) or _members(view, str(sample_id), f"film {sample_id}")


def read_declared(data: Data, number: int) -> tuple[str, dict[str, memoryview]]:
    """The id and the members by extension of a sample of a declared data set, whose id has this number.

    Raises ValueError if they are another sample's.
    """
    view = memoryview(data)
    head = bytes(view[:100])
    key = head[: head.find(b".") + 1]
    id = id_of_key(key[:-1].decode("ascii", "replace"))
    if number_of_id(id) != number:
        raise ValueError(f"the sample {printable(id)!r} lies where another one should; the index is of another tar")
    return id, _plain_members(view, key) or _members(view, key[:-1].decode(), f"sample {printable(id)!r}")


def sample_in(data: Data, number: int, schema: Schema) -> tuple[str, dict[str, memoryview]]:
    """The id, as its data set has it, and the members of a sample. Raises ValueError if they are another sample's."""
    return (str(number), read_members(data, number)) if schema == TMDB else read_declared(data, number)


def _members(view: memoryview, key: str, what: str) -> dict[str, memoryview]:
    parts = {}
    for name, start, size, *_ in members(view):
        owner, _, extension = name.partition(".")
        if owner != key:
            raise ValueError(f"a member {name!r} lies where {what} should; the index is of another tar")
        parts[extension] = view[start : start + size]
    return parts


_HEAD = struct.Struct(
    "100s24x11s1s20x1s100x8s80x1s166x"
)  # name, size and its end, kind, magic, first byte of the prefix


def _plain_members(view: memoryview, key: bytes) -> dict[str, memoryview] | None:
    """The fast path: the members if all are plain USTAR files; None for everything else. The key ends with its dot."""
    parts, position, end = {}, 0, len(view)
    try:
        while position < end:
            name, digits, ended, kind, magic, prefix = _HEAD.unpack_from(view, position)
            if ended != b"\0" or kind != b"0" or magic != b"ustar\x0000" or prefix != b"\0" or not name.startswith(key):
                return None
            start, size = position + 512, int(digits, 8)
            if size < 0 or start + size > end:
                return None
            parts[_extension(name[len(key) :].rstrip(b"\0"))] = view[start : start + size]
            position = start + (size + 511 & -512)
    except (struct.error, ValueError):
        return None
    return parts


@lru_cache(maxsize=256)
def _extension(name: bytes) -> str:
    if not re.fullmatch(rb"[a-z0-9_.]+", name):
        raise ValueError("an unusual name")
    return name.decode("ascii")


def pad(texts: Iterable[NDArray[np.int32]]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Token lists -> int32 [n, longest] padded with PADDING (at least one column), and their lengths, int64 [n]."""
    texts = list(texts)
    lengths = np.array([len(text) for text in texts], np.int64)
    tokens = np.full((len(texts), max(1, lengths.max(initial=0))), PADDING, np.int32)
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text)] = text
    return tokens, lengths


def cut(tokens: NDArray[np.int32], most: int, closing: int = 0) -> NDArray[np.int32]:
    """A text's first tokens, at most `most`, but with the `closing` last ones, a tokenizer's marks of the end."""
    if len(tokens) <= most:
        return tokens
    if closing == 0 or closing >= most:
        return tokens[:most]
    return np.concatenate([tokens[: most - closing], tokens[-closing:]])


_PLAIN_TOKENS = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '<i4', 'fortran_order': False, 'shape': \((\d+),\), \} *\n", re.DOTALL
)


def load_tokens(data: Data, words: int) -> NDArray[np.int32]:
    """A member .tokens.npy -> int32 [length], ids of a vocabulary of `words` words. Raises ValueError otherwise."""
    tokens = read_tokens(data)
    check_tokens(tokens, words)
    return tokens


def read_tokens(data: Data) -> NDArray[np.int32]:
    """A member .tokens.npy -> int32 [length], not yet checked against a vocabulary."""
    plain = _PLAIN_TOKENS.match(data)  # np.load parses this header in 40 us, longer than all other parsing here
    if plain and len(data) == plain.end() + 4 * int(plain[1]):
        return np.frombuffer(data, np.int32, offset=plain.end())
    try:
        array = array_in(data)
    except DamagedArrayError as error:
        raise ValueError(f"the tokens are no NumPy array ({error})") from None
    if array.ndim != 1 or array.dtype != np.int32:
        raise ValueError("the tokens are no int32 array of one dimension")
    return array


def check_tokens(tokens: NDArray[np.int32], words: int) -> None:
    """Raises ValueError for a token outside a vocabulary of `words`."""
    if len(tokens) and tokens.view(np.uint32).max() >= words:  # negative ones are large as unsigned
        wrong = tokens[(tokens < 0) | (tokens >= words)][0]
        raise ValueError(f"the token {wrong} is outside the vocabulary of {words} words")


_TEXT = rb'(?:"[^"\\\x00-\x1f\x80-\xff]*"|null)'
_PLAIN_ABOUT = re.compile(
    rb'\{"tmdb_id": \d+, "title": %b, "genre_ids": \[([1-9]\d{0,8}(?:, [1-9]\d{0,8})*)\], "release_date": %b\}'
    % (_TEXT, _TEXT)
)


def load_genres(data: Data) -> tuple[int, ...]:
    """The genre ids in a member .json. Raises ValueError if there are none."""
    if plain := _PLAIN_ABOUT.fullmatch(data):
        return _numbers(plain[1])
    genres = load_about(data).get("genre_ids")
    if not isinstance(genres, list) or not all(type(genre) is int for genre in genres):
        raise ValueError("the member .json has no list of genre_ids")
    return tuple(genres)


def load_about(data: Data) -> dict[str, Any]:
    """A member .json. Raises ValueError if it is anything but an object."""
    try:
        content = json.loads(bytes(data))
    except RecursionError:
        raise ValueError("the member .json is nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError("the member .json is no object, so it has no labels")
    return content


def load_encoding(data: Data, size: int) -> NDArray[np.float32]:
    """A member .encoding.npy -> float32 [size]. Raises ValueError if it is anything else."""
    numbers = read_numbers(data, size)
    if np.isnan(numbers).any():
        raise ValueError(f"not {size} finite numbers")
    return numbers


def read_numbers(data: Data, size: int) -> NDArray[np.float32]:
    """A member .npy -> float32 [size], NaN where a number is missing. Raises ValueError if it is anything else."""
    head = _encoding_head(size)
    if data[: len(head)] == head and len(data) == len(head) + 4 * size:
        numbers = np.frombuffer(data, np.float32, offset=len(head))
    else:  # another NumPy wrote the header; parsing it takes ten times as long
        numbers = array_in(data)
    if numbers.dtype != np.float32 or numbers.shape != (size,) or np.isinf(numbers).any():
        raise ValueError(f"not {size} finite numbers")
    return numbers


@lru_cache
def _encoding_head(size: int) -> bytes:
    return array_bytes(np.zeros(size, np.float32))[: -4 * size]


def load_fault(data: Data) -> str | None:
    """The reason why a sample could not be encoded, None if it was. Raises ValueError for a damaged member .json."""
    fault = load_about(data).get("fault")
    if fault is not None and not isinstance(fault, str):
        raise ValueError("the fault in the member .json is no text")
    return None if fault is None else printable(fault)


def load_labels(data: Data) -> tuple[str, ...]:
    """The labels in a member .json of a declared data set. Raises ValueError if there is no list of them."""
    labels = load_about(data).get("labels")
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ValueError("the member .json has no list of labels")
    return tuple(labels)


def labels_in(data: Data, schema: Schema) -> tuple[Any, ...]:
    """The labels in a member .json, ids of genres or names. Raises ValueError if there are none, or no list of them."""
    return load_genres(data) if schema == TMDB else load_labels(data)


def label_rows(labels: Iterable[Any], what: str) -> Callable[[tuple[Any, ...]], NDArray[np.float32]]:
    """A function from some of these labels (ids of genres, or names) to multi-hot rows, float32 [labels].

    It raises ValueError for an unknown one; `what` is what the message calls it.
    """
    columns = {label: number for number, label in enumerate(labels)}

    @lru_cache(maxsize=4096)
    def row(chosen: tuple[Any, ...]) -> NDArray[np.float32]:
        row = np.zeros(len(columns), np.float32)
        for label in chosen:
            if label not in columns:
                raise ValueError(f"the {what} {printable(label)[:40]} is not in the manifest")
            row[columns[label]] = 1
        return row

    return row


@lru_cache(maxsize=4096)
def _numbers(text: bytes) -> tuple[int, ...]:
    return tuple(map(int, text.split(b", ")))
