"""Files from outside, checked against their type: the first fault is told, whatever there are of them."""

import json
from dataclasses import dataclass

import pytest
from fuzzing import within_memory

from genre_dist.validation import Count, parse_json


@dataclass
class Listing:
    counts: tuple[Count, ...]
    named: dict[str, list[Count]]


def test_what_fits_is_a_value_of_the_type() -> None:
    told = parse_json(Listing, b'{"counts": [1, 2], "named": {"a": [3]}}', "f.json", "mend it")
    assert told == Listing((1, 2), {"a": [3]})


@pytest.mark.parametrize("kind", ["counts", "named"])
def test_a_million_wrong_items_take_no_more_memory_than_the_first(kind: str) -> None:
    wrong = {"counts": ["x"] * 10**6, "named": {"a": ["x"] * 10**6}}
    written = json.dumps({"counts": [], "named": {}} | {kind: wrong[kind]}).encode()
    first = "counts.0" if kind == "counts" else "named.a.0"
    with within_memory(200 << 20), pytest.raises(ValueError, match=f"f.json: {first}: .* found 'x'; mend it"):
        parse_json(Listing, written, "f.json", "mend it")
