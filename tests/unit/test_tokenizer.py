"""Tokens by a file of the tokenizers library: what it makes of texts, and shards that are packed with it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_text import TEXTS, write_bytes_tokenizer, write_tokenizer

from genre_dist.catalogue.catalogue import read_rows
from genre_dist.cli import main
from genre_dist.packing.catalogue_rows import COLUMNS
from genre_dist.packing.pack import merge_parts, pack, pack_part
from genre_dist.packing.recipe import Recipe, recipe_key
from genre_dist.packing.shard_report import read_report
from genre_dist.packing.tokenizer import PieceTokenizer, read_tokenizer_file, tokenizer_of
from genre_dist.packing.verification import verify
from genre_dist.packing.vocabulary import tokenise
from genre_dist.stream.manifest import load_manifest
from genre_dist.stream.order import Rows
from genre_dist.stream.reader import ShardReader
from genre_dist.stream.sample import cut
from genre_dist.tars.films import shard_films

pytest.importorskip("tokenizers")
CLS, SEP = 2, 3
OPTIONS = {"size": 72, "shard_size": 50}


@pytest.fixture(scope="module")
def file(sample_catalogue: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that has seen the sample's texts."""
    texts = [row["overview"] or "" for row in read_rows(sample_catalogue, COLUMNS)]
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"), [*TEXTS, *texts], size=500)


@pytest.fixture(scope="module")
def pieces(file: Path) -> PieceTokenizer:
    return read_tokenizer_file(str(file)).pieces


@pytest.fixture(scope="module")
def shards(sample_catalogue: Path, file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample's films with tokens of the tokenizer."""
    out = tmp_path_factory.mktemp("pieces") / "shards"
    pack(sample_catalogue, out, tokenizer=str(file), **OPTIONS)
    return out


# --- texts and ids


def test_texts_get_their_special_tokens_and_are_neither_truncated_nor_padded(pieces: PieceTokenizer) -> None:
    long, short = pieces.encode(" ".join(TEXTS)), pieces.encode("the war")
    assert len(long) > 8  # where the file truncates
    assert len(short) < 8  # to which it pads
    for tokens in (long, short):
        assert tokens.dtype == np.int32
        assert [tokens[0], tokens[-1]] == [CLS, SEP]
        assert pieces.size > tokens.max()
    assert (pieces.closing, pieces.padding) == (1, 0)


def test_ids_become_text_and_words_again(pieces: PieceTokenizer) -> None:
    tokens = pieces.encode("Two lovers meet in the rain, and they marry!")
    assert pieces.words(tokens) == ["two", "lovers", "meet", "in", "the", "rain", "and", "they", "marry"]
    assert pieces.text(tokens).startswith("two lovers meet in the rain")


def test_pieces_are_joined_to_words_that_own_them(pieces: PieceTokenizer) -> None:
    tokens = pieces.encode("the warlovers don't haunting")
    words, owners = pieces.spelled(tokens)
    assert [words[0], words[-1]] == ["[CLS]", "[SEP]"]
    assert words[1:3] == ["the", "warlovers"]
    assert words[-2] == "haunting"
    assert len(owners) == len(tokens) > len(words)  # some word is of several pieces
    assert (np.diff(owners) >= 0).all()
    assert set(owners.tolist()) == set(range(len(words)))


def test_a_tokenizer_of_bytes_has_no_padding_and_nothing_at_the_end(tmp_path: Path) -> None:
    tokenizer = read_tokenizer_file(str(write_bytes_tokenizer(tmp_path))).pieces
    assert (tokenizer.closing, tokenizer.padding) == (0, None)
    tokens = tokenizer.encode("the war \N{EN DASH} begins")
    words, owners = tokenizer.spelled(tokens)
    assert words == ["the", "war", "\N{EN DASH}", "begins"]
    assert len(owners) == len(tokens)
    assert (np.diff(owners) >= 0).all()


@pytest.mark.parametrize(
    ("most", "closing", "kept"),
    [(9, 1, [5, 6, 7, 8]), (4, 1, [5, 6, 7, 8]), (3, 1, [5, 6, 8]), (3, 0, [5, 6, 7]), (1, 1, [5]), (3, 2, [5, 7, 8])],
)
def test_a_text_that_is_cut_keeps_its_last_special_tokens(most: int, closing: int, kept: list[int]) -> None:
    assert cut(np.array([5, 6, 7, 8], np.int32), most, closing).tolist() == kept


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"{}", "not a file of the tokenizers library"), (b"\xff", "not a file"), (b"[]", "not a file"), (b"", "not a")],
)
def test_a_damaged_file_is_told(content: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"{tmp_path}.*{told}"):
        read_tokenizer_file(str(tmp_path))


def test_a_tokenizer_that_is_nowhere_is_told_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"--tokenizer=nobody/nothing: .* `hf download nobody/nothing`"):
        read_tokenizer_file("nobody/nothing")
    with pytest.raises(ValueError, match=r"this folder has no tokenizer\.json"):
        read_tokenizer_file(str(tmp_path))


def test_a_package_is_searched_without_importing_it(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "packed_tokenizer"
    (package / "model" / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    shutil.copy(file, package / "model" / "tokenizer.json")
    (package / "model" / "inner" / "tokenizer.json").write_text("another one")
    monkeypatch.syspath_prepend(tmp_path)
    assert read_tokenizer_file("packed-tokenizer").written == file.read_bytes()


# --- shards


def test_shards_hold_the_tokenizers_ids_and_its_file(shards: Path, file: Path, sample_catalogue: Path) -> None:
    manifest = load_manifest(shards)
    tokenizer = read_tokenizer_file(str(file))
    assert (shards / "tokenizer.json").read_bytes() == file.read_bytes()
    assert not (shards / "vocabulary.txt").exists()
    assert manifest.text["vocabulary"] == "tokenizer.json"
    assert manifest.text["vocabulary_sha256"] == tokenizer.sha256
    assert (manifest.text["tokenizer"], manifest.text["words"]) == ("tokenizers", tokenizer.pieces.size)
    assert verify(manifest) == []
    texts = {row["tmdb_id"]: row["overview"] for row in read_rows(sample_catalogue, COLUMNS)}
    reader = ShardReader(manifest, "val", ("overview",), 500)
    batch = reader.read(Rows(np.zeros(5, np.int64), np.arange(5)))
    assert batch.tokens is not None
    assert batch.lengths is not None
    for film, tokens, length in zip(batch.ids.tolist(), batch.tokens, batch.lengths, strict=True):
        assert tokens[:length].tolist() == tokenizer.pieces.encode(texts[film]).tolist()
        assert not tokens[length:].any()


def test_a_text_longer_than_max_tokens_is_cut_before_its_last_token(shards: Path) -> None:
    reader = ShardReader(load_manifest(shards), "train", ("overview",), 6)
    batch = reader.read(Rows(np.zeros(20, np.int64), np.arange(20)))
    assert batch.tokens is not None
    assert batch.tokens.shape == (20, 6)
    assert (batch.tokens[:, 0] == CLS).all()
    assert (batch.tokens[:, 5] == SEP).all()
    assert not (batch.tokens[:, 1:5] == SEP).any()


def test_words_come_back_from_the_shards(shards: Path, sample_catalogue: Path) -> None:
    texts = {row["tmdb_id"]: row["overview"] for row in read_rows(sample_catalogue, COLUMNS)}
    films = [film for film in shard_films(load_manifest(shards)) if film.words is not None]
    assert len(films) > 100
    assert sum(film.words == tokenise(texts[film.id]) for film in films) > 0.9 * len(films)  # others lose accents


def test_the_same_pack_again_does_nothing_and_another_tokenizer_is_refused(
    shards: Path, sample_catalogue: Path, sample_shards: Path, file: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(shards, tmp_path / "shards"))
    before = {path.name: path.stat().st_mtime_ns for path in copy.glob("*.tar")}
    pack(sample_catalogue, copy, tokenizer=str(file), **OPTIONS)
    assert {path.name: path.stat().st_mtime_ns for path in copy.glob("*.tar")} == before
    other = write_tokenizer(tmp_path / "other", TEXTS[:2])
    for tokenizer in (str(other), "words"):
        with pytest.raises(ValueError, match="already holds shards packed with another --tokenizer"):
            pack(sample_catalogue, copy, tokenizer=tokenizer, **OPTIONS)
    words = Path(shutil.copytree(sample_shards, tmp_path / "words"))
    with pytest.raises(ValueError, match="already holds shards packed with another --tokenizer"):
        pack(sample_catalogue, words, tokenizer=str(file), **OPTIONS)
    pack(sample_catalogue, copy, tokenizer="words", overwrite=True, **OPTIONS)
    assert not (copy / "tokenizer.json").exists()
    assert load_manifest(copy).fingerprint == load_manifest(sample_shards).fingerprint


def test_parts_make_the_same_shards(shards: Path, sample_catalogue: Path, file: Path, tmp_path: Path) -> None:
    for number in range(2):
        pack_part(sample_catalogue, tmp_path / "shards", (number, 2), tokenizer=str(file), **OPTIONS)
    merge_parts(sample_catalogue, tmp_path / "shards", tokenizer=str(file), **OPTIONS)
    assert load_manifest(tmp_path / "shards").to_dict() == load_manifest(shards).to_dict()


def test_a_replaced_tokenizer_is_told(shards: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(shards, tmp_path / "shards"))
    write_tokenizer(copy, TEXTS[:2])
    manifest = load_manifest(copy)
    with pytest.raises(ValueError, match="not the tokenizer the shards were packed with"):
        tokenizer_of(copy, manifest.text)
    assert any("not the tokenizer" in fault for fault in verify(manifest))
    (copy / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="the tokenizer is missing"):
        tokenizer_of(copy, manifest.text)


def test_the_command_packs_with_a_tokenizer_and_inspect_names_it(
    sample_catalogue: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "shards")
    command = ["pack", "--catalogue", str(sample_catalogue), "--out", out, "--size", "72", "--tokenizer", str(file)]
    assert main([*command, "--vectors", str(file)]) == 2
    assert "--vectors has vectors of words" in capsys.readouterr().err
    assert main(command) == 0
    told = read_tokenizer_file(str(file))
    assert f"; {told.pieces.size:,} tokens" in capsys.readouterr().out
    assert main(["inspect", out, "--verify"]) == 0
    assert f"tokenizer tokenizer.json {told.sha256[:16]}, {told.pieces.size:,} tokens" in capsys.readouterr().out


def test_shards_of_words_have_the_keys_and_reports_of_earlier_versions(sample_shards: Path) -> None:
    assert recipe_key(Recipe(), "train", "0" * 64) == "54886d2c7bb76cba"
    report = json.loads((sample_shards / "train-000000.report.json").read_text())
    assert "tokenizer_sha256" not in report["recipe"]
    assert {"tokenizer", "padding", "closing"}.isdisjoint(load_manifest(sample_shards).text)
    assert read_report(sample_shards / "train-000000.tar") is not None


def test_reports_note_the_tokenizer(shards: Path, file: Path) -> None:
    report = read_report(shards / "train-000000.tar")
    assert report is not None
    assert report.recipe.tokenizer_sha256 == read_tokenizer_file(str(file)).sha256
