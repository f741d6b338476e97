"""Ids of a declared data set: any string has a number for the index and, if it is short enough, a key for tars."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genre_dist.sample_ids import LONGEST_KEY, id_of_key, member_key, number_of_id
from genre_dist.stream.indexing import sample_id, split_name

SHORT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=LONGEST_KEY // 12)
"""12 bytes a letter at most."""


@given(id=SHORT)
def test_a_key_leads_back_to_its_id(id: str) -> None:
    assert id_of_key(member_key(id)) == id


@given(id=SHORT)
def test_a_key_has_neither_dots_nor_slashes_and_is_read_from_a_members_name(id: str) -> None:
    key = member_key(id)
    assert re.fullmatch(r"(?:[A-Za-z0-9_-]|%[0-9A-F]{2})+", key)
    assert split_name(f"{key}.front.jpg") == (key, "front.jpg")


@given(one=SHORT, other=SHORT)
def test_two_ids_have_two_keys_and_two_numbers(one: str, other: str) -> None:
    assert (member_key(one) == member_key(other)) == (number_of_id(one) == number_of_id(other)) == (one == other)


@given(id=st.text(st.characters(exclude_categories=["Cs"]), max_size=400))
def test_every_id_has_a_number_of_63_bits(id: str) -> None:
    assert 0 <= number_of_id(id) < 2**63


def test_usual_ids_are_their_own_keys() -> None:
    assert [member_key(id) for id in ("sku-1", "tt0111161", "a_B")] == ["sku-1", "tt0111161", "a_B"]
    assert [member_key(id) for id in ("a.b", "../x", "ü", "~")] == ["a%2Eb", "%2E%2E%2Fx", "%C3%BC", "%7E"]


def test_numbers_never_change_between_versions_and_are_the_hashes_of_foreign_keys() -> None:
    assert number_of_id("sku-1") == sample_id("sku-1") == 7_409_758_481_748_834_931
    assert len({number_of_id(id) for id in ("7", "007", "7.0")}) == 3


def test_a_long_id_is_refused_with_its_length() -> None:
    assert len(member_key("x" * LONGEST_KEY)) == LONGEST_KEY
    with pytest.raises(ValueError, match=r"the id 'üü.* takes 84 bytes as a key in a tar, where 80 fit"):
        member_key("ü" * 14)
    with pytest.raises(ValueError, match="blank"):
        member_key("")


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "%", "%2e", "%41", "%FF", "ü", "x" * 81])
def test_what_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="is no key of a sample"):
        id_of_key(key)
