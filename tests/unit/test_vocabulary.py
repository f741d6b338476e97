"""Words: the tokeniser's rule, which words get an id, and word vectors from any text file."""

import gzip
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genre_dist.acquire.catalogue import CatalogueWriter, read_rows
from genre_dist.prepare import vectors
from genre_dist.prepare.pack import pack
from genre_dist.prepare.splits import split_of
from genre_dist.prepare.vectors import matrix_for, read_vectors
from genre_dist.prepare.vocabulary import (
    choose_words,
    encode,
    forget_rare,
    load_words,
    save_words,
    tokenise,
    words_sha256,
)


def written(folder: Path, text: str) -> Path:
    path = folder / "vectors.txt"
    path.write_text(text, encoding="utf-8")
    return path


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


# ---- word vectors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2, 50, 300])
def test_vectors_of_any_width_are_read(tmp_path: Path, width: int) -> None:
    values = np.random.default_rng(0).normal(size=(3, width)).astype(np.float32)
    lines = [f"{word} {' '.join(map(str, row))}" for word, row in zip("abc", values, strict=True)]
    found = read_vectors(written(tmp_path, "\n".join(lines) + "\n"), {"a", "c"})
    assert {word: vector.tolist() for word, vector in found.items()} == {
        "a": values[0].tolist(),
        "c": values[2].tolist(),
    }


def test_only_wanted_rows_are_kept(tmp_path: Path) -> None:
    path = written(tmp_path, "".join(f"w{number} 0.5 {number}.0\n" for number in range(1000)))
    assert list(read_vectors(path, Counter(w7=3, absent=1))) == ["w7"]
    assert read_vectors(path, set()) == {}


def test_the_header_line_of_word2vec_is_passed_over(tmp_path: Path) -> None:
    found = read_vectors(written(tmp_path, "2 3\nthe 0.1 0.2 0.3\n2 1 2 3\n"), {"the", "2"})
    assert found["the"].tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert found["2"].tolist() == [1, 2, 3]


def test_words_with_spaces_as_in_glove_840b_are_understood(tmp_path: Path) -> None:
    path = written(tmp_path, "the 0.1 0.2\n. . . 0.3 0.4\nat name@domain.com 0.5 0.6\nend 0.7 0.8\n")
    found = read_vectors(path, {"end", "at", ". . ."})
    assert set(found) == {"end", ". . ."}
    assert found["end"].tolist() == pytest.approx([0.7, 0.8])


@pytest.mark.parametrize("ending", ["\r\n", " \n"])
def test_line_endings_and_trailing_spaces_are_no_values(tmp_path: Path, ending: str) -> None:
    assert read_vectors(written(tmp_path, f"a 1 2{ending}b 3 4{ending}"), {"b"})["b"].tolist() == [3, 4]


def test_the_first_of_two_rows_of_a_word_counts(tmp_path: Path) -> None:
    assert read_vectors(written(tmp_path, "a 1 2\na 3 4\n"), {"a"})["a"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a 0.1 0.2 0.3\nb 0.1 0.2\n", 2),  # cut short
        ("a 0.1 0.2\nc 0.1 0.2\nb 0.1 0.2 0.3\n", 3),  # too many
        ("a 0.1 0.2\nb\n", 2),
        ("alone\n", 1),
        ("a 0.1 0.2\nb 0.1 x\n", 2),
        ("a 0.1 0.2\nb nan 0.1\n", 2),
    ],
)
def test_a_damaged_line_is_refused_with_file_and_number(tmp_path: Path, text: str, line: int) -> None:
    with pytest.raises(ValueError, match=rf"vectors\.txt line {line}: "):
        read_vectors(written(tmp_path, text), {"a", "b"})


# ---- other files of word vectors -------------------------------------------------------------------------------------


VALUES = {
    word: np.random.default_rng(0).normal(size=7).astype(np.float32) for word in ("the", "école", "少年は", "end")
}


def text_of(values: dict[str, np.ndarray], head: str = "") -> bytes:
    return (head + "".join(f"{word} {' '.join(map(str, row))}\n" for word, row in values.items())).encode()


def binary_of(values: dict[str, np.ndarray], words: int = 4, end: bytes = b"\n") -> bytes:
    return f"{words} 7\n".encode() + b"".join(
        word.encode() + b" " + row.tobytes() + end for word, row in values.items()
    )


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def file_of(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("glove.txt", text_of(VALUES)),
        ("word2vec.txt", text_of(VALUES, "4 7\n")),
        ("glove.txt.gz", gzip.compress(text_of(VALUES))),
        ("word2vec.bin", binary_of(VALUES)),
        ("gensim.bin", binary_of(VALUES, end=b"")),
        ("word2vec.bin.gz", gzip.compress(binary_of(VALUES))),
    ],
)
def test_every_form_gives_the_same_vectors(tmp_path: Path, name: str, data: bytes) -> None:
    found = read_vectors(file_of(tmp_path / name, data), {"the", "少年は", "end", "absent"})
    assert {word: vector.tolist() for word, vector in found.items()} == {
        word: VALUES[word].tolist() for word in ("the", "少年は", "end")
    }
    assert all(vector.dtype == np.float32 and vector.flags.owndata for vector in found.values())


def test_the_first_text_in_a_zip_is_read(tmp_path: Path) -> None:
    members = {"readme.md": b"# vectors", "glove.7d.txt": text_of(VALUES), "glove.2d.txt": b"the 1 2\n"}
    found = read_vectors(zipped(tmp_path / "glove.zip", members), {"the"})
    assert found["the"].tolist() == VALUES["the"].tolist()


def test_a_zip_without_a_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"glove\.zip: no \.txt in this archive"):
        read_vectors(zipped(tmp_path / "glove.zip", {"readme.md": b"#"}), {"the"})


def test_a_binary_file_longer_than_a_chunk_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "CHUNK", 5)
    found = read_vectors(file_of(tmp_path / "v.bin", binary_of(VALUES)), set(VALUES))
    assert {word: vector.tolist() for word, vector in found.items()} == {
        word: row.tolist() for word, row in VALUES.items()
    }


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("cut.txt", text_of(VALUES)[:-40], "line 4: . values where there should be 7"),
        ("short.txt", text_of(VALUES, "9 7\n"), "line 5: the end after 4 of 9 words"),
        ("width.txt", text_of(VALUES, "4 8\n"), "line 2: 7 values where there should be 8"),
        ("cut.bin", binary_of(VALUES)[:-10], "word 4 of 4: the file ends here"),
        ("short.bin", binary_of(VALUES, words=9), "word 5 of 9: the file ends here"),
        ("head.bin", text_of(VALUES), r"does not begin as a \.bin of word2vec"),
        ("damaged.bin", b"9 7\n" + bytes(20_000), "word 1: no end of the word"),
        ("nan.bin", binary_of({"the": np.full(7, np.nan, np.float32)}, 1), "word 1: a value of `the` is no number"),
        ("cut.txt.gz", gzip.compress(text_of(VALUES))[:-30], "damaged or cut short"),
        ("no.txt.gz", text_of(VALUES), "damaged or cut short"),
        ("no.zip", text_of(VALUES), "damaged or cut short"),
        ("empty.txt", b"", None),
    ],
)
def test_a_damaged_file_is_refused_with_the_place(tmp_path: Path, name: str, data: bytes, reason: str | None) -> None:
    path = file_of(tmp_path / name, data)
    if reason is None:
        assert read_vectors(path, set(VALUES)) == {}
        return
    with pytest.raises(ValueError, match=rf"{name}:? .*{reason}"):
        read_vectors(path, set(VALUES))


def test_a_cut_zip_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "glove.zip", {"glove.txt": text_of(VALUES) * 100})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"glove\.zip: damaged or cut short"):
        read_vectors(path, {"the"})


def test_a_missing_file_of_vectors_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.txt: no such file of word vectors"):
        read_vectors(tmp_path / "nowhere.txt", {"a"})


def test_the_matrix_has_the_files_vectors_zeros_for_padding_and_draws_of_the_same_spread_for_the_rest() -> None:
    rng = np.random.default_rng(0)
    found = {f"w{number}": rng.normal(0, 0.4, 100).astype(np.float32) for number in range(50)}
    words = ["<pad>", "<unk>", *found, *(f"new{number}" for number in range(50))]
    matrix = matrix_for(words, found)
    assert matrix.dtype == np.float32
    assert not matrix[0].any()
    assert np.array_equal(matrix[2:52], np.stack(list(found.values())))
    assert matrix[52:].std() == pytest.approx(0.4, rel=0.05)
    assert np.array_equal(matrix, matrix_for(words, found))


def test_pack_saves_a_vector_for_every_word(sample_catalogue: Path, tmp_path: Path) -> None:
    path = written(tmp_path, "the 0.1 0.2 0.3\nwizard 0.4 0.5 0.6\n")
    text = pack(sample_catalogue, tmp_path / "shards", vectors=path, size=16).text
    words, matrix = load_words(tmp_path / "shards" / text["vocabulary"]), np.load(tmp_path / "shards" / text["vectors"])
    assert matrix.shape == (text["words"], text["dim"]) == (len(words), 3)
    assert matrix[words["wizard"]].tolist() == pytest.approx([0.4, 0.5, 0.6])


def test_vectors_that_know_none_of_the_words_are_refused(sample_catalogue: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"vectors\.txt: none of the .* words"):
        pack(sample_catalogue, tmp_path / "shards", vectors=written(tmp_path, "xyzzy 0.1 0.2\n"), size=16)
