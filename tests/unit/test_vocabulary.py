"""Words: the tokeniser's rule, which words get an id, and word vectors from any text file."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genre_dist.catalogue.catalogue import CatalogueWriter, read_rows
from genre_dist.packing.pack import pack
from genre_dist.packing.vocabulary import (
    choose_words,
    encode,
    forget_rare,
    load_words,
    save_words,
    tokenise,
    words_sha256,
)
from genre_dist.splits import split_of

# ---- the tokeniser ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A Man, alone.", ["a", "man", "alone"]),
        ("spider-man's", ["spider", "man", "s"]),
        ("end.Then", ["end", "then"]),
        ("“Quoted” — and… more", ["quoted", "and", "more"]),
        ("1984, 7th", ["1984", "7th"]),
        ("ÉCOLE Straße", ["école", "straße"]),
        ("Молодая женщина, одна", ["молодая", "женщина", "одна"]),
        ("少年は、海へ。", ["少年は", "海へ"]),
        ("tab\tline\nnbsp\u00a0end", ["tab", "line", "nbsp", "end"]),
        ("$5 + 3", ["$5", "+", "3"]),  # symbols are no punctuation
        ("?!... -- «»", []),
        ("", []),
    ],
)
def test_words_are_lower_case_and_punctuation_separates_them(text: str, words: list[str]) -> None:
    assert tokenise(text) == words


@settings(deadline=None, max_examples=100)
@given(st.text())
def test_tokenising_words_again_changes_nothing(text: str) -> None:
    words = tokenise(text)
    assert all(words)
    assert [again for word in words for again in tokenise(word)] == tokenise(" ".join(words))


# ---- the vocabulary --------------------------------------------------------------------------------------------------


def test_the_most_frequent_words_come_first_and_equals_by_the_alphabet() -> None:
    assert choose_words(Counter(b=2, a=2, c=9)) == ["<pad>", "<unk>", "c", "a", "b"]


def test_a_word_seen_once_needs_a_vector() -> None:
    counts = Counter(often=5, once=1, known=1)
    assert choose_words(counts) == ["<pad>", "<unk>", "often"]
    assert choose_words(counts, with_vector={"known", "never"}) == ["<pad>", "<unk>", "often", "known"]


def test_a_text_that_holds_a_special_word_does_not_add_it_again() -> None:
    assert choose_words(Counter({"<pad>": 4, "<unk>": 4, "a": 2})) == ["<pad>", "<unk>", "a"]


def test_a_count_that_grows_too_large_forgets_the_rarest_words() -> None:
    counts = Counter(
        {f"once{number}": 1 for number in range(60)} | {f"twice{number}": 2 for number in range(30)} | {"a": 9}
    )
    forget_rare(counts, most=91)
    assert len(counts) == 91
    forget_rare(counts, most=90)
    assert counts == {f"twice{number}": 2 for number in range(30)} | {"a": 9}
    forget_rare(counts, most=20)
    assert counts == {"a": 9}


def test_a_bounded_count_keeps_the_frequent_words_of_a_long_text_nearly_exactly() -> None:
    frequent, seen, bounded = [f"f{number}" for number in range(50)], Counter[str](), Counter[str]()
    rng = np.random.default_rng(0)
    for film in range(2000):
        words = [frequent[number] for number in rng.integers(0, 50, 20)] + [
            f"rare{film}-{number}" for number in range(5)
        ]
        seen.update(words)
        bounded.update(words)
        forget_rare(bounded, most=500)
        assert len(bounded) <= 500
    assert all(bounded[word] == seen[word] for word in frequent)


def test_unknown_words_are_encoded_as_unk() -> None:
    ids = encode(["b", "never", "a"], {"<pad>": 0, "<unk>": 1, "a": 2, "b": 3})
    assert ids.tolist() == [3, 1, 2]
    assert ids.dtype == np.int32
    assert encode([], {}).shape == (0,)


def test_a_vocabulary_is_read_as_it_was_written(tmp_path: Path) -> None:
    words = ["<pad>", "<unk>", "école", "少年は", "a"]
    save_words(words, tmp_path / "words.txt")
    assert load_words(tmp_path / "words.txt") == {word: number for number, word in enumerate(words)}
    assert words_sha256(words) != words_sha256(words[::-1])


def test_a_vocabulary_of_another_checksum_is_refused(tmp_path: Path) -> None:
    words = ["<pad>", "<unk>", "a", "b"]
    save_words(words, tmp_path / "words.txt")
    assert list(load_words(tmp_path / "words.txt", words_sha256(words))) == words
    save_words(["<pad>", "<unk>", "b", "a"], tmp_path / "words.txt")
    with pytest.raises(ValueError, match=r"words\.txt: not the vocabulary the shards were packed with"):
        load_words(tmp_path / "words.txt", words_sha256(words))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<pad>\n<unk>\na",
        b"<pad>\n<unk>\na\nb\na\n",
        b"<unk>\n<pad>\na\n",
        b"<pad>\n<unk>\n\na\n",
        b"<pad>\n<unk>\n\xff\n",
    ],
    ids=["empty", "cut", "a word twice", "other first words", "an empty line", "no UTF-8"],
)
def test_what_is_no_vocabulary_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "words.txt").write_bytes(data)
    with pytest.raises(ValueError, match=r"words\.txt: .*pack the shards again"):
        load_words(tmp_path / "words.txt")


def test_a_missing_vocabulary_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"words\.txt.*pack the shards again"):
        load_words(tmp_path / "words.txt")


def test_words_of_val_and_test_films_alone_stay_out_of_the_vocabulary(sample_catalogue: Path, tmp_path: Path) -> None:
    with CatalogueWriter(tmp_path / "catalogue") as writer:
        for row in read_rows(sample_catalogue):
            row["overview"] += f" only{split_of(row['tmdb_id'])}"
            row["title"] += f" title{split_of(row['tmdb_id'])}"
            row["poster_status"] = "none"
            writer.add(row)
    pack(tmp_path / "catalogue", tmp_path / "shards", require=("overview",))
    words = load_words(tmp_path / "shards" / "vocabulary.txt")
    assert {word for word in words if word.startswith(("onlyt", "onlyv", "title"))} == {"onlytrain", "titletrain"}
