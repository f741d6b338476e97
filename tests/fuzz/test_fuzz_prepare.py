"""What packing reads and leaves, damaged: the right result, or one line with the name of the file."""

import gzip
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzzing import damaged, odd_json, told_or_read
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_text import write_tokenizer

from genre_dist.packing.posters import load_rgb
from genre_dist.packing.shard_report import read_report
from genre_dist.packing.tokenizer import read_tokenizer_file
from genre_dist.packing.vectors import read_vectors
from genre_dist.stream.decode import check_jpeg, decode_jpeg
from genre_dist.stream.words import load_vectors, load_words, vectors_sha256

REPORT: dict[str, Any] = {
    "key": "0123456789abcdef",
    "recipe": {
        "require": ["poster", "overview"],
        "text": "overview",
        "size": 72,
        "fit": "squash",
        "quality": 90,
        "shard_size": 50,
        "vectors_sha256": "",
        "vocabulary_sha256": "ab" * 32,
    },
    "shard": {
        "file": "train-000000.tar",
        "split": "train",
        "samples": 3,
        "poster": 3,
        "overview": 3,
        "both": 3,
        "bytes": 20480,
        "sha256": "cd" * 32,
    },
    "genre_counts": [1] * 19,
    "left_out": {"unreadable poster": 1},
    "posters": {"odd": 1, "resized": 2, "unreadable": 1},
    "odd": [{"tmdb_id": 5, "odd": "PNG"}],
    "problems": [{"tmdb_id": 7, "problem": "posters/007/7.jpg: not a whole image"}],
}
WORDS = ["<pad>", "<unk>", "the", "école", "少年は", "end"]
VALUES = {word: np.random.default_rng(0).normal(size=5).astype(np.float32) for word in WORDS[2:]}
TEXT = "".join(f"{word} {' '.join(map(str, row))}\n" for word, row in VALUES.items()).encode()
BINARY = b"4 5\n" + b"".join(word.encode() + b" " + row.tobytes() + b"\n" for word, row in VALUES.items())


def zipped(method: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in (("glove/glove.5d.txt", TEXT), ("readme.txt", b"vectors\n")):
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return buffer.getvalue()


def saved(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def pictures() -> dict[str, bytes]:
    y, x = np.mgrid[0:48, 0:32]
    image = Image.fromarray(np.stack([5 * x, 4 * y, 2 * x + 3 * y], axis=2).astype(np.uint8))
    made = {}
    for name, kind, options in (
        ("jpeg", "JPEG", {}),
        ("progressive", "JPEG", {"progressive": True}),
        ("png", "PNG", {}),
        ("webp", "WEBP", {}),
        ("gif", "GIF", {}),
        ("tiff", "TIFF", {"compression": "tiff_lzw"}),
        ("mpo", "MPO", {"save_all": True, "append_images": [image]}),
    ):
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        made[name] = buffer.getvalue()
    return made


PICTURES = pictures()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@given(data=odd_json(REPORT) | damaged(json.dumps(REPORT, indent=1).encode()))
def test_fuzz_a_shards_report(folder: Path, data: bytes) -> None:
    path = folder / "train-000000.report.json"
    path.write_bytes(data)
    report = told_or_read(lambda: read_report(folder / "train-000000.tar"), path)
    assert read_report(folder / "train-000000.tar", damaged_is_none=True) == report
    if report is not None:
        assert report.shard.file == "train-000000.tar"
        assert 0 <= report.shard.both <= report.shard.samples
        assert len(report.genre_counts) == 19
        assert min(report.genre_counts) >= 0


@given(data=damaged("".join(f"{word}\n" for word in WORDS).encode()) | st.binary(max_size=200))
def test_fuzz_a_vocabulary(folder: Path, data: bytes) -> None:
    path = folder / "vocabulary.txt"
    path.write_bytes(data)
    words = told_or_read(lambda: load_words(path), path)
    if words is not None:
        assert list(words.values()) == list(range(len(words)))
        assert "".join(f"{word}\n" for word in words).encode() == data
    whole = "0" * 64
    assert told_or_read(lambda: load_words(path, whole), path) is None


@pytest.fixture(scope="module")
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    pytest.importorskip("tokenizers")
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer")).read_bytes()


@given(drawn=st.data())
def test_fuzz_a_tokenizer(folder: Path, drawn: st.DataObject, tokenizer_json: bytes) -> None:
    path = folder / "tokenizer.json"
    data = drawn.draw(damaged(tokenizer_json) | odd_json(json.loads(tokenizer_json)) | st.binary(max_size=200))
    path.write_bytes(data)
    found = told_or_read(lambda: read_tokenizer_file(str(path)), path)
    if found is not None:
        assert found.pieces.size >= 2
        tokens = told_or_read(lambda: found.pieces.encode("The war begins, and 2 lovers meet!"), path)
        if tokens is None:
            return
        assert tokens.dtype == np.int32
        assert tokens.max(initial=0) < found.pieces.size
        words, owners = found.pieces.spelled(tokens)
        assert len(owners) == len(tokens)
        assert not len(owners) or 0 <= owners.min() <= owners.max() < len(words)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("glove.txt", TEXT),
        ("word2vec.txt", b"4 5\n" + TEXT),
        ("word2vec.bin", BINARY),
        ("glove.txt.gz", gzip.compress(TEXT, mtime=0)),
        ("stored.zip", zipped(zipfile.ZIP_STORED)),
        ("deflated.zip", zipped(zipfile.ZIP_DEFLATED)),
        ("lzma.zip", zipped(zipfile.ZIP_LZMA)),
        ("bzip2.zip", zipped(zipfile.ZIP_BZIP2)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_fuzz_files_of_word_vectors(folder: Path, name: str, data: bytes) -> None:
    path = folder / name

    @given(changed=damaged(data))
    def check(changed: bytes) -> None:
        path.write_bytes(changed)
        found = told_or_read(lambda: read_vectors(path, set(VALUES)), path)
        if found is not None:
            assert set(found.by_word) <= set(VALUES)
            assert all(row.shape == (found.dim,) and np.isfinite(row).all() for row in found.by_word.values())

    check()


@given(
    data=damaged(saved(np.zeros((6, 5), np.float32)))
    | st.sampled_from(
        [
            saved(np.zeros((6, 5))),
            saved(np.zeros((6, 5), np.float32).T),
            saved(np.array([{}, []], object)),
            saved(np.zeros((6, 5), np.float32)).replace(b"(6, 5)", b"(6, 10**9)"),
            saved(np.zeros((6, 5), np.float32)).replace(b"(6, 5), }", b"(600000000, 500), }"),
            zipped(zipfile.ZIP_STORED),
            b"",
        ]
    )
)
def test_fuzz_the_saved_vectors(folder: Path, data: bytes) -> None:
    path = folder / "vectors.npy"
    path.write_bytes(data)
    sha256 = vectors_sha256(np.zeros((6, 5), np.float32))
    text: Any = {"vectors": "vectors.npy", "words": 6, "dim": 5, "vectors_sha256": sha256}
    vectors = told_or_read(lambda: load_vectors(folder, text), path)
    if vectors is not None:
        assert vectors.tolist() == np.zeros((6, 5), np.float32).tolist()


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", PICTURES)
def test_fuzz_pictures(folder: Path, kind: str) -> None:
    @given(data=damaged(PICTURES[kind]))
    def check(data: bytes) -> None:
        found = told_or_read(lambda: load_rgb(data), "")
        if found is not None:
            assert found[0].ndim == 3
            assert found[0].shape[2] == 3

    check()


@pytest.mark.parametrize("kind", ["jpeg", "progressive"])
def test_fuzz_jpegs_in_training(kind: str) -> None:
    out = np.empty((48, 32, 3), np.uint8)

    @given(data=damaged(PICTURES[kind]))
    def check(data: bytes) -> None:
        told_or_read(lambda: decode_jpeg(memoryview(data), out), "")
        told_or_read(lambda: check_jpeg(data, out.shape), "")

    check()
