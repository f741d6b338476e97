"""Word vectors from anyone's files: every form gives the same numbers, and what is damaged is told with its place."""

import gzip
import re
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from fuzzing import within_memory

from genre_dist.packing import vectors
from genre_dist.packing.pack import pack
from genre_dist.packing.vectors import matrix_for, read_vectors
from genre_dist.packing.vocabulary import load_words
from genre_dist.stream.words import load_vectors


def written(folder: Path, text: str) -> Path:
    path = folder / "vectors.txt"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("width", [1, 2, 50, 300])
def test_vectors_of_any_width_are_read(tmp_path: Path, width: int) -> None:
    values = np.random.default_rng(0).normal(size=(3, width)).astype(np.float32)
    lines = [f"{word} {' '.join(map(str, row))}" for word, row in zip("abc", values, strict=True)]
    found = read_vectors(written(tmp_path, "\n".join(lines) + "\n"), {"a", "c"}).by_word
    assert {word: vector.tolist() for word, vector in found.items()} == {
        "a": values[0].tolist(),
        "c": values[2].tolist(),
    }


def test_only_wanted_rows_are_kept(tmp_path: Path) -> None:
    path = written(tmp_path, "".join(f"w{number} 0.5 {number}.0\n" for number in range(1000)))
    assert list(read_vectors(path, Counter(w7=3, absent=1)).by_word) == ["w7"]
    assert read_vectors(path, set()).by_word == {}


def test_the_header_line_of_word2vec_is_passed_over(tmp_path: Path) -> None:
    found = read_vectors(written(tmp_path, "2 3\nthe 0.1 0.2 0.3\n2 1 2 3\n"), {"the", "2"}).by_word
    assert found["the"].tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert found["2"].tolist() == [1, 2, 3]


def test_words_with_spaces_as_in_glove_840b_are_understood(tmp_path: Path) -> None:
    path = written(tmp_path, "the 0.1 0.2\n. . . 0.3 0.4\nat name@domain.com 0.5 0.6\nend 0.7 0.8\n")
    found = read_vectors(path, {"end", "at", ". . ."}).by_word
    assert set(found) == {"end", ". . ."}
    assert found["end"].tolist() == pytest.approx([0.7, 0.8])


@pytest.mark.parametrize("head", ["", "6 3\n"])
def test_the_last_numbers_of_a_row_are_its_vector_whatever_the_words_look_like(tmp_path: Path, head: str) -> None:
    rows = ["the 1 2 3", "phrase 5 4 5 6", "version 2.0 7 8 9", "1984 1 1 1", "new\u00a0york 2 2 2", " 3 3 3"]
    found = read_vectors(
        written(tmp_path, head + "".join(f"{row}\n" for row in rows)),
        {"the", "phrase 5", "version 2.0", "1984", "new\u00a0york", "phrase"},
    )
    assert {word: vector.tolist() for word, vector in found.by_word.items()} == {
        "the": [1, 2, 3],
        "phrase 5": [4, 5, 6],
        "version 2.0": [7, 8, 9],
        "1984": [1, 1, 1],
        "new\u00a0york": [2, 2, 2],
    }
    assert found.dim == 3
    (note,) = found.notes
    assert f"2 rows have more than 3 numbers, the first is line {3 if head else 2}" in note


def test_a_phrase_in_the_first_row_does_not_set_the_width(tmp_path: Path) -> None:
    found = read_vectors(
        written(tmp_path, "top 10 0.1 0.2\n. . . 0.3 0.4\nthe 0.5 0.6\nend 0.7 0.8\n"), {"top 10", "end"}
    )
    assert {word: len(vector) for word, vector in found.by_word.items()} == {"top 10": 2, "end": 2}


def test_a_mark_of_the_byte_order_belongs_to_no_word(tmp_path: Path) -> None:
    assert list(read_vectors(written(tmp_path, "\ufeffthe 1 2\nend 3 4\n"), {"the", "end"}).by_word) == ["the", "end"]


def test_words_that_are_there_twice_are_told(tmp_path: Path) -> None:
    found = read_vectors(written(tmp_path, "a 1 2\nb 0 0\na 3 4\nc 1 1\nc 1 1\n"), {"a", "b"})
    assert found.notes == ["1 words are there more than once, such as `a`: the first row counts"]


@pytest.mark.parametrize("ending", ["\r\n", " \n"])
def test_line_endings_and_trailing_spaces_are_no_values(tmp_path: Path, ending: str) -> None:
    assert read_vectors(written(tmp_path, f"a 1 2{ending}b 3 4{ending}"), {"b"}).by_word["b"].tolist() == [3, 4]


def test_the_first_of_two_rows_of_a_word_counts(tmp_path: Path) -> None:
    assert read_vectors(written(tmp_path, "a 1 2\na 3 4\n"), {"a"}).by_word["a"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("3 2\na 1 2\nc 1 2\nb 1\n", 4),
        ("a 1e999 0.2\n", 1),
        ("a 0.1 inf\n", 1),
        ("3 100000\na 1 2\n", 2),
        ("a 0.1 0.2 0.3\nb 0.1 0.2\n", 2),  # cut short
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
        ("glove.txt.gz", gzip.compress(text_of(VALUES), mtime=0)),
        ("word2vec.bin", binary_of(VALUES)),
        ("gensim.bin", binary_of(VALUES, end=b"")),
        ("word2vec.bin.gz", gzip.compress(binary_of(VALUES), mtime=0)),
    ],
)
def test_every_form_gives_the_same_vectors(tmp_path: Path, name: str, data: bytes) -> None:
    found = read_vectors(file_of(tmp_path / name, data), {"the", "少年は", "end", "absent"}).by_word
    assert {word: vector.tolist() for word, vector in found.items()} == {
        word: VALUES[word].tolist() for word in ("the", "少年は", "end")
    }
    assert all(vector.dtype == np.float32 and vector.flags.owndata for vector in found.values())


@pytest.mark.parametrize(
    "more",
    [
        {"readme.md": b"# vectors", "LICENSE.txt": b"Public domain\n", "empty.txt": b""},
        {"__MACOSX/glove/._glove.7d.txt": b"the 1 2\n", "glove/.hidden.txt": b"the 1 2\n", "glove/": b""},
    ],
)
def test_the_one_file_of_vectors_in_a_zip_is_read(tmp_path: Path, more: dict[str, bytes]) -> None:
    found = read_vectors(zipped(tmp_path / "glove.zip", more | {"glove/glove.7d.txt": text_of(VALUES)}), {"the"})
    assert found.by_word["the"].tolist() == VALUES["the"].tolist()
    assert (found.file, found.dim, found.notes) == ("glove/glove.7d.txt", 7, [])


@pytest.mark.parametrize(
    ("name", "data"), [("crawl.vec", text_of(VALUES, "4 7\n")), ("GoogleNews.BIN", binary_of(VALUES))]
)
def test_a_zip_may_hold_any_form_of_vectors(tmp_path: Path, name: str, data: bytes) -> None:
    found = read_vectors(zipped(tmp_path / "vectors.ZIP", {name: data}), {"end"})
    assert found.by_word["end"].tolist() == VALUES["end"].tolist()


def test_a_zip_with_several_files_of_vectors_is_refused_with_their_names(tmp_path: Path) -> None:
    members = {
        "readme.txt": b"vectors of several widths\n",
        "glove.7d.txt": text_of(VALUES),
        "glove.2d.txt": b"the 1 2\n",
    }
    with pytest.raises(
        ValueError, match=r"glove\.zip: 2 files .*: glove\.7d\.txt, glove\.2d\.txt; unpack the one you want"
    ):
        read_vectors(zipped(tmp_path / "glove.zip", members), {"the"})


def test_a_zip_without_a_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"glove\.zip: no file of vectors \(\.txt, \.vec, \.bin\) in this archive"):
        read_vectors(zipped(tmp_path / "glove.zip", {"readme.md": b"#"}), {"the"})


def test_a_zip_with_a_password_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "glove.zip", {"glove.txt": text_of(VALUES)})
    data = bytearray(path.read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.find(mark) + at] |= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"glove\.zip: .*password"):
        read_vectors(path, {"the"})


@pytest.mark.parametrize("name", ["zeros.txt", "zeros.txt.gz", "zeros.zip"])
def test_a_line_without_end_takes_no_memory(tmp_path: Path, name: str) -> None:
    zeros = bytes(120 << 20)
    path = tmp_path / name
    if name.endswith(".zip"):
        zipped(path, {"zeros.txt": zeros})
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(zeros, 1))
    else:
        with open(path, "wb") as file:
            file.truncate(120 << 20)
    del zeros
    with within_memory(60 << 20), pytest.raises(ValueError, match=rf"{name} line 1: longer than 1,048,576 bytes"):
        read_vectors(path, {"the"})


def test_a_binary_file_longer_than_a_chunk_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "CHUNK", 5)
    found = read_vectors(file_of(tmp_path / "v.bin", binary_of(VALUES)), set(VALUES)).by_word
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
        ("cut.txt.gz", gzip.compress(text_of(VALUES), mtime=0)[:-30], "damaged, or not readable here"),
        ("no.txt.gz", text_of(VALUES), "damaged, or not readable here"),
        ("no.zip", text_of(VALUES), "damaged, or not readable here"),
        ("empty.txt", b"", None),
    ],
)
def test_a_damaged_file_is_refused_with_the_place(tmp_path: Path, name: str, data: bytes, reason: str | None) -> None:
    path = file_of(tmp_path / name, data)
    if reason is None:
        assert read_vectors(path, set(VALUES)).by_word == {}
        return
    with pytest.raises(ValueError, match=rf"{name}:? .*{reason}"):
        read_vectors(path, set(VALUES))


def test_a_cut_zip_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "glove.zip", {"glove.txt": text_of(VALUES) * 100})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"glove\.zip: damaged, or not readable here"):
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


def test_pack_tells_which_file_how_wide_and_how_many_words_were_found(
    sample_catalogue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = zipped(tmp_path / "glove.zip", {"in/glove.3d.txt": b"the 1 2 3\nwizard 4 5 6\nxyzzy 1 1 1\n"})
    pack(sample_catalogue, tmp_path / "shards", vectors=path, size=16)
    assert re.search(r"glove\.zip \(in/glove\.3d\.txt\): 3 numbers a word, for 2 of \d+ words", capsys.readouterr().out)


@pytest.mark.parametrize("fault", ["missing", "cut", "a changed byte", "an npz", "of another width"])
def test_damaged_vectors_of_shards_are_made_again(sample_catalogue: Path, tmp_path: Path, fault: str) -> None:
    path, out = written(tmp_path, "the 0.1 0.2 0.3\nwizard 0.4 0.5 0.6\n"), tmp_path / "shards"
    text = pack(sample_catalogue, out, vectors=path, size=16).text
    made = (out / "vectors.npy").read_bytes()
    if fault == "missing":
        (out / "vectors.npy").unlink()
    elif fault == "cut":
        (out / "vectors.npy").write_bytes(made[:-1])
    elif fault == "a changed byte":
        (out / "vectors.npy").write_bytes(made[:-2] + bytes([made[-2] ^ 1]) + made[-1:])
    else:
        with open(out / "vectors.npy", "wb") as file:
            np.savez(file, np.zeros(3)) if fault == "an npz" else np.save(
                file, np.zeros((text["words"], 4), np.float32)
            )
    with pytest.raises(ValueError, match=r"vectors\.npy: .*pack the shards again"):
        load_vectors(out, text)
    assert pack(sample_catalogue, out, vectors=path, size=16).text == text
    assert (out / "vectors.npy").read_bytes() == made
    assert load_vectors(out, text).shape == (text["words"], 3)


def test_vectors_that_know_none_of_the_words_are_refused(sample_catalogue: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"vectors\.txt: none of the .* words"):
        pack(sample_catalogue, tmp_path / "shards", vectors=written(tmp_path, "xyzzy 0.1 0.2\n"), size=16)
