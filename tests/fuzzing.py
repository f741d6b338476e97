"""Damaged inputs, and what a reader may make of them: the right result, or an error in one line naming the file."""

import copy
import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import strategies as st

Result = TypeVar("Result")

MOST_BYTES = 200 << 20
"""Memory that a reader may take for a damaged file of a few KB."""

NASTY = st.sampled_from(
    [
        *(
            "",
            ".",
            "..",
            "../x",
            "../../etc/passwd",
            "/etc/passwd",
            "a/../../b",
            "a\\b",
            "a\x00b",
            "\x1b[31mred",
            "a\nb",
        ),
        *("https://example.com/x", "s3://bucket/x", "NaN", "1e999", "862.0", "[/]", "=1+1", "\ud800", "x" * 5000),
        *(-1, -3, 2**31, 2**62, 2**63, 2**63 + 5, 10**40, 0.5, 862.0, 1e308, float("inf"), float("nan"), True, None),
        *([], {}, [[]], [None], {"": None}),
    ]
)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | NASTY,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def odd_json(draw: st.DrawFn, valid: Any) -> bytes:
    """A JSON document like `valid`: a few values replaced, keys dropped or added; now and then anything at all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.sampled_from([b"", b"[" * 200_000, b'{"a":' * 5_000, b"\xff\xfe{}", b"nul", b"{} {}"]))
    # copies: lists and dicts of these strategies are the same ones in every example
    document = copy.deepcopy(draw(ANY_JSON) if draw(st.integers(0, 9)) == 0 else valid)
    for _ in range(draw(st.integers(1, 3))):
        document = _changed(draw, document)
    return json.dumps(document).encode("utf-8", "surrogatepass")


def _changed(draw: st.DrawFn, document: Any) -> Any:
    places = list(_places(document))
    if not places:
        return copy.deepcopy(draw(ANY_JSON))
    inside, key = draw(st.sampled_from(places))
    what = draw(st.sampled_from(["replace", "drop", "add", "double"]))
    if what == "replace" or not isinstance(inside, dict):
        inside[key] = copy.deepcopy(draw(NASTY | ANY_JSON))
    elif what == "drop":
        del inside[key]
    elif what == "add":
        inside[draw(st.text(max_size=8))] = copy.deepcopy(draw(NASTY))
    else:
        inside[key] = [inside[key], copy.deepcopy(inside[key])]
    return document


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Every container with every key of it."""
    if isinstance(document, dict | list):
        for key, value in document.items() if isinstance(document, dict) else enumerate(document):
            yield document, key
            yield from _places(value)


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes like `data`: flipped bits, pieces cut out, doubled, zeroed or replaced, the end missing."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        if not changed:
            break
        at = draw(st.integers(0, len(changed) - 1))
        length = draw(st.sampled_from([1, 4, 8, 64, 512, 4096]))
        what = draw(st.sampled_from(["flip", "flip", "flip", "cut", "end", "zero", "ones", "double", "replace"]))
        piece = changed[at : at + length]
        if what == "flip":
            changed[at] ^= 1 << draw(st.integers(0, 7))
        elif what == "end":
            del changed[at:]
        else:
            changed[at : at + length] = {
                "cut": b"",
                "zero": bytes(len(piece)),
                "ones": b"\xff" * len(piece),
                "double": piece + piece,
                "replace": draw(st.binary(min_size=len(piece), max_size=len(piece))),
            }[what]
    return bytes(changed)


def told_or_read(read: Callable[[], Result], path: Path | str) -> Result | None:
    """What `read` returns; None where it raised ValueError or OSError in one printable line with the file's name.

    Any other exception, an error without the name or of several lines, and more than MOST_BYTES of memory fail.
    """
    with within_memory(MOST_BYTES):
        try:
            return read()
        except (ValueError, OSError) as error:
            told = str(error)
    problems = {
        "the file is not named": Path(path).name not in told,
        "more than one line": "\n" in told,
        "control characters": not told.isprintable(),
        "too long": len(told) > 2000,
    }
    assert not any(problems.values()), f"{[name for name, is_so in problems.items() if is_so]}: {told[:300]!r}"
    return None


@contextmanager
def within_memory(size: int) -> Iterator[None]:
    """Let this process's address space grow by `size` bytes at most: beyond, MemoryError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
