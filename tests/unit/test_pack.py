"""Packing: standard tars, the same bytes for the same films, whole whatever stops it."""

import errno
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import simplejpeg
import webdataset
from PIL import Image

from genre_dist import lock
from genre_dist.catalogue.catalogue import CatalogueWriter, poster_file, read_rows
from genre_dist.cli import main
from genre_dist.genres import GENRES
from genre_dist.packing import posters
from genre_dist.packing import shard as one_shard
from genre_dist.packing.catalogue_rows import read_line
from genre_dist.packing.pack import pack
from genre_dist.packing.shard_report import read_report
from genre_dist.packing.verification import verify
from genre_dist.packing.vocabulary import load_words, tokenise, words_sha256
from genre_dist.schema import TMDB
from genre_dist.splits import order_key, split_of
from genre_dist.stream import tar
from genre_dist.stream.index import OVERVIEW, POSTER, index_path
from genre_dist.stream.manifest import FILE, SPLITS, load_manifest

Row = dict[str, Any]
BOTH = ("poster", "overview")


def files(folder: Path) -> dict[str, bytes]:
    """Everything below a folder, by name, but who wrote it last."""
    there = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != lock.FILE]
    return {str(path.relative_to(folder)): path.read_bytes() for path in there}


def temporary(folder: Path) -> list[str]:
    names = {path.name for path in folder.rglob("*")} - {lock.FILE}
    return [name for name in names if name.endswith(".tmp") or name.startswith(".")]


def packed(folder: Path) -> dict[int, str]:
    """The films in the shards and the split each is in."""
    manifest = load_manifest(folder)
    return {
        int(film): shard.split for shard in manifest.shards for film in np.load(index_path(folder / shard.file))["id"]
    }


def members(folder: Path) -> dict[str, bytes]:
    """All members of all shards, read by Python's own tarfile."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                content = archive.extractfile(member)
                assert content is not None
                found[member.name] = content.read()
    return found


def reports(folder: Path) -> list[Row]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.report.json"))]


def catalogue_of(source: Path, out: Path, change: Callable[[Row], Row | None]) -> Path:
    """A copy of a catalogue with films changed or, for None, left out."""
    shutil.copytree(source / "posters", out / "posters")
    with CatalogueWriter(out) as writer:
        for row in read_rows(source):
            changed = change(row)
            if changed is not None:
                writer.add(changed)
    return out


def command(catalogue: Path, out: Path, *more: str) -> list[str]:
    return ["pack", f"--catalogue={catalogue}", f"--out={out}", "--size=72", "--shard_size=50", "--workers=1", *more]


def train_films(catalogue: Path, count: int) -> list[int]:
    """Films of the train split that have both media."""
    rows = read_rows(catalogue, ["tmdb_id", "overview", "poster_status"])
    whole = (row["tmdb_id"] for row in rows if row["overview"] and row["poster_status"] == "ok")
    return [film for film in whole if split_of(film) == "train"][:count]


# ---- the format ------------------------------------------------------------------------------------------------------


def test_stock_webdataset_reads_the_shards(sample_shards: Path) -> None:
    manifest, contents = load_manifest(sample_shards), members(sample_shards)
    urls = [str(sample_shards / shard.file) for shard in manifest.shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode("rgb8"))
    assert [int(sample["__key__"]) for sample in samples] == list(packed(sample_shards))
    for sample in samples:
        key = sample["__key__"]
        assert {name for name in sample if not name.startswith("__")} == {"jpg", "json", "tokens.npy"}
        assert sample["json"] == json.loads(contents[f"{key}.json"])
        assert sample["json"]["tmdb_id"] == int(key)
        assert sample["jpg"].shape == (72, 72, 3)
        assert sample["tokens.npy"].dtype == np.int32


def test_the_members_tell_the_film(sample_catalogue: Path, sample_shards: Path) -> None:
    contents, words = members(sample_shards), load_words(sample_shards / "vocabulary.txt")
    for row in read_rows(sample_catalogue):
        film = row["tmdb_id"]
        if film in packed(sample_shards):
            about = json.loads(contents[f"{film}.json"])
            assert about == {name: row[name] for name in ("tmdb_id", "title", "genre_ids", "release_date")}
            height, width, _, _ = simplejpeg.decode_jpeg_header(contents[f"{film}.jpg"])
            assert (height, width) == (72, 72)
            wanted = [words.get(word, 1) for word in tokenise(row["overview"])]
            assert np.load(io.BytesIO(contents[f"{film}.tokens.npy"])).tolist() == wanted


def test_shards_are_ustar_without_pax_headers_times_or_owners(sample_shards: Path) -> None:
    for shard in load_manifest(sample_shards).shards:
        data, position = (sample_shards / shard.file).read_bytes(), 0
        assert data.endswith(bytes(1024))
        with tarfile.open(sample_shards / shard.file) as archive:
            for member in archive:
                assert member.offset == position  # nothing lies between the members
                assert data[position + 156 : position + 157] == b"0"
                assert data[position + 257 : position + 265] == b"ustar\x0000"
                assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
                assert member.pax_headers == {}
                position += 512 + -(-member.size // 512) * 512
        assert len(data) == position + 1024


@pytest.mark.parametrize("size", [0, 1, 511, 512, 24_000, 8 * 2**30 - 1])
@pytest.mark.parametrize("name", ["1.jpg", "603.tokens.npy", "9223372036854775807.tokens.npy", "é" * 50])
def test_headers_are_what_tarfile_writes(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size = size
    assert tar.header(name, size) == info.tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.parametrize(("name", "size"), [("1" * 101, 0), ("1.jpg", 8 * 2**30)])
def test_what_a_plain_header_cannot_hold_is_refused(name: str, size: int) -> None:
    with pytest.raises(ValueError, match=r"too long|overflow"):
        tar.header(name, size)


@pytest.mark.parametrize("length", [0, 1, 55, 12_345])
def test_a_films_members_are_what_tarfile_and_numpy_write(length: int) -> None:
    film = {"tmdb_id": 7, "title": "é", "genre_ids": [18], "release_date": "", "text": "words", "poster": "sha"}
    tokens = np.arange(length, dtype=np.int32)
    buffer = io.BytesIO()
    np.save(buffer, tokens)
    poster, tokenizer = one_shard.Outcome(b"jpg", "resized"), SimpleNamespace(encode=lambda text: tokens)
    made, has, longest = one_shard.members_of(read_line(film, TMDB), TMDB, {"poster": poster}, tokenizer)  # type: ignore[arg-type]
    assert (has, longest) == (3, length)
    data = one_shard.tar_of("7", made)
    with tarfile.open(fileobj=io.BytesIO(data + tar.END)) as archive:
        contents = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    assert list(contents) == ["7.json", "7.jpg", "7.tokens.npy"]
    assert contents["7.tokens.npy"] == buffer.getvalue()
    assert contents["7.jpg"] == b"jpg"


def test_films_lie_in_hash_order_so_that_every_shard_is_a_random_draw(sample_shards: Path) -> None:
    films = packed(sample_shards)
    for split in SPLITS:
        ordered = [film for film, where in films.items() if where == split]
        assert ordered == sorted(ordered, key=order_key)


def test_shards_hold_the_wanted_number_of_films(sample_shards: Path) -> None:
    for split in SPLITS:
        sizes = [shard.samples for shard in load_manifest(sample_shards).shards_of(split)]
        assert all(size == 50 for size in sizes[:-1])
        assert 1 <= sizes[-1] <= 50


def test_the_manifest_tells_what_is_there(sample_shards: Path) -> None:
    manifest, contents = load_manifest(sample_shards), members(sample_shards)
    assert manifest.genres == GENRES
    assert manifest.image == {"size": 72, "fit": "squash", "quality": 90}
    assert manifest.require == BOTH
    assert "0.8" in manifest.split_rule
    words = load_words(sample_shards / "vocabulary.txt")
    assert manifest.text["words"] == len(words)
    assert manifest.text["vocabulary_sha256"] == words_sha256(list(words))
    for shard in manifest.shards:
        data = (sample_shards / shard.file).read_bytes()
        assert (shard.bytes, shard.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    counts = {split: [0] * len(GENRES) for split in SPLITS}
    for film, split in packed(sample_shards).items():
        for genre in json.loads(contents[f"{film}.json"])["genre_ids"]:
            counts[split][[known.id for known in GENRES].index(genre)] += 1
    assert manifest.genre_counts == counts


def test_the_index_tells_where_every_film_lies(sample_shards: Path) -> None:
    for shard in load_manifest(sample_shards).shards:
        with tarfile.open(sample_shards / shard.file) as archive:
            starts = {int(m.name.split(".")[0]): m.offset for m in reversed(archive.getmembers())}
        index = np.load(index_path(sample_shards / shard.file))
        assert dict(zip(index["id"].tolist(), index["offset"].tolist(), strict=True)) == starts
        assert (index["offset"] + index["size"]).tolist() == [*index["offset"][1:].tolist(), shard.bytes - 1024]
        assert (index["has"] == POSTER | OVERVIEW).all()


# ---- the same films, the same bytes ----------------------------------------------------------------------------------


def test_packing_again_gives_the_same_bytes(sample_catalogue: Path, sample_shards: Path, tmp_path: Path) -> None:
    pack(sample_catalogue, tmp_path / "again", size=72, shard_size=50, workers=1)
    assert files(tmp_path / "again") == files(sample_shards)


def test_the_number_of_workers_changes_no_byte(sample_catalogue: Path, sample_shards: Path, tmp_path: Path) -> None:
    pack(sample_catalogue, tmp_path / "two", size=72, shard_size=50, workers=2)
    assert files(tmp_path / "two") == files(sample_shards)


def test_the_order_of_the_catalogue_changes_no_byte(
    sample_catalogue: Path, sample_shards: Path, tmp_path: Path
) -> None:
    shutil.copytree(sample_catalogue / "posters", tmp_path / "turned" / "posters")
    with CatalogueWriter(tmp_path / "turned") as writer:
        for row in reversed(list(read_rows(sample_catalogue))):
            writer.add(row)
    pack(tmp_path / "turned", tmp_path / "again", size=72, shard_size=50)
    assert files(tmp_path / "again") == files(sample_shards)


def test_running_a_finished_pack_again_writes_no_shard(sample_catalogue: Path, shards_copy: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in shards_copy.glob("*.tar")}
    contents = files(shards_copy)
    assert main(command(sample_catalogue, shards_copy)) == 0
    assert {path: path.stat().st_mtime_ns for path in shards_copy.glob("*.tar")} == before
    assert files(shards_copy) == contents


@pytest.mark.parametrize("lost", ["train-000000.tar", "val-000000.index.npy", "train-000001.report.json", FILE])
def test_a_lost_file_is_made_again(sample_catalogue: Path, shards_copy: Path, lost: str) -> None:
    before = files(shards_copy)
    (shards_copy / lost).unlink()
    assert main(command(sample_catalogue, shards_copy)) == 0
    assert files(shards_copy) == before


@pytest.mark.parametrize("manifest", [True, False], ids=["finished", "killed before the end"])
@pytest.mark.parametrize("damage", ["report of another", "nested", "counts below zero", "cut", "index of another"])
def test_a_shard_with_a_damaged_report_or_index_is_made_again(
    sample_catalogue: Path, shards_copy: Path, damage: str, manifest: bool
) -> None:
    before = files(shards_copy)
    report, index = shards_copy / "train-000001.report.json", shards_copy / "train-000001.index.npy"
    told = json.loads(report.read_text())
    if damage == "report of another":
        shutil.copy(shards_copy / "train-000000.report.json", report)
        with pytest.raises(ValueError, match=r"train-000001\.report\.json: describes train-000000\.tar"):
            read_report(shards_copy / "train-000001.tar")
    elif damage == "nested":
        report.write_bytes(b"[" * 200_000)
    elif damage == "counts below zero":
        report.write_text(json.dumps(told | {"shard": told["shard"] | {"both": -3}}))
    elif damage == "cut":
        report.write_bytes(report.read_bytes()[:300])
    else:
        shutil.copy(shards_copy / "val-000000.index.npy", index)
    if not manifest:
        (shards_copy / FILE).unlink()
    assert main(command(sample_catalogue, shards_copy)) == 0
    assert files(shards_copy) == before


# ---- which films -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("require", [(), ("poster",), ("overview",)])
def test_a_films_split_is_the_same_in_every_packing(
    sample_catalogue: Path, sample_shards: Path, tmp_path: Path, require: tuple[str, ...]
) -> None:
    pack(sample_catalogue, tmp_path / "more", require=require, size=16)
    assert packed(sample_shards).items() <= packed(tmp_path / "more").items()


def test_more_films_move_none_to_another_split(sample_catalogue: Path, sample_shards: Path, tmp_path: Path) -> None:
    fewer = catalogue_of(sample_catalogue, tmp_path / "fewer", lambda row: row if row["tmdb_id"] % 3 else None)
    pack(fewer, tmp_path / "shards", size=16)
    assert packed(tmp_path / "shards").items() < packed(sample_shards).items()


@pytest.mark.parametrize("require", [(), ("poster",), ("overview",), BOTH])
def test_requiring_less_packs_films_without_a_member_and_counts_them(
    sample_catalogue: Path, tmp_path: Path, require: tuple[str, ...]
) -> None:
    rows = list(read_rows(sample_catalogue))
    has = {row["tmdb_id"]: (row["poster_status"] == "ok", bool(row["overview"])) for row in rows}
    wanted = {
        film: members
        for film, members in has.items()
        if (members[0] or "poster" not in require) and (members[1] or "overview" not in require)
    }
    manifest = pack(sample_catalogue, tmp_path / "shards", require=require, size=16)
    contents = members(tmp_path / "shards")
    assert set(packed(tmp_path / "shards")) == set(wanted)
    for film, (poster, overview) in wanted.items():
        assert (f"{film}.jpg" in contents, f"{film}.tokens.npy" in contents) == (poster, overview)
    total = {name: sum(getattr(shard, name) for shard in manifest.shards) for name in ("poster", "overview", "both")}
    assert total == {
        "poster": sum(poster for poster, _ in wanted.values()),
        "overview": sum(overview for _, overview in wanted.values()),
        "both": sum(poster and overview for poster, overview in wanted.values()),
    }
    assert sum(manifest.left_out.values()) == len(has) - len(wanted)
    assert verify(manifest) == []


def test_a_film_with_no_known_genre_is_left_out_and_counted(sample_catalogue: Path, tmp_path: Path) -> None:
    first, second, third = train_films(sample_catalogue, 3)
    genres = {first: [], second: [4711], third: [4711, 18]}
    changed = catalogue_of(
        sample_catalogue,
        tmp_path / "catalogue",
        lambda row: row | {"genre_ids": genres.get(row["tmdb_id"], row["genre_ids"])},
    )
    manifest = pack(changed, tmp_path / "shards", size=16)
    assert manifest.left_out["no known genre"] == 2
    assert not {first, second} & packed(tmp_path / "shards").keys()
    assert json.loads(members(tmp_path / "shards")[f"{third}.json"])["genre_ids"] == [18]


@pytest.mark.parametrize("overview", ["", "   \n\t ", None])
def test_a_film_without_words_has_no_overview(sample_catalogue: Path, tmp_path: Path, overview: str | None) -> None:
    (film,) = train_films(sample_catalogue, 1)
    changed = catalogue_of(
        sample_catalogue,
        tmp_path / "catalogue",
        lambda row: row | {"overview": overview} if row["tmdb_id"] == film else row,
    )
    before = sum(not row["overview"] for row in read_rows(sample_catalogue))
    assert pack(changed, tmp_path / "both", size=16).left_out["no overview"] == before + 1
    assert film not in packed(tmp_path / "both")
    pack(changed, tmp_path / "posters", require=("poster",), size=16)
    assert film in packed(tmp_path / "posters")
    assert f"{film}.tokens.npy" not in members(tmp_path / "posters")


def test_overviews_in_other_alphabets_are_packed(sample_catalogue: Path, tmp_path: Path) -> None:
    first, second = train_films(sample_catalogue, 2)
    texts = {first: "Молодая женщина, молодая тайна", second: "少年は、海へ。"}
    changed = catalogue_of(
        sample_catalogue,
        tmp_path / "catalogue",
        lambda row: row | {"overview": texts.get(row["tmdb_id"], row["overview"])},
    )
    pack(changed, tmp_path / "shards", size=16)
    words, contents = load_words(tmp_path / "shards" / "vocabulary.txt"), members(tmp_path / "shards")
    for film, text in texts.items():
        tokens = np.load(io.BytesIO(contents[f"{film}.tokens.npy"])).tolist()
        assert tokens == [words.get(word, 1) for word in tokenise(text)]
    assert "молодая" in words


@pytest.mark.parametrize(("text", "expected"), [("title", "a title"), ("both", "a title the overview")])
def test_the_text_can_be_the_title_or_both(sample_catalogue: Path, tmp_path: Path, text: str, expected: str) -> None:
    changed = catalogue_of(
        sample_catalogue, tmp_path / "catalogue", lambda row: row | {"title": "A title", "overview": "The overview."}
    )
    pack(changed, tmp_path / "shards", text=text, size=16)
    words = {number: word for word, number in load_words(tmp_path / "shards" / "vocabulary.txt").items()}
    (film,) = train_films(sample_catalogue, 1)
    tokens = np.load(io.BytesIO(members(tmp_path / "shards")[f"{film}.tokens.npy"]))
    assert " ".join(words[token] for token in tokens.tolist()) == expected


@pytest.mark.parametrize("require", [BOTH, ("overview",)])
@pytest.mark.parametrize("fault", ["missing", "text", "cut"])
def test_a_poster_that_cannot_be_read_is_reported_with_film_and_file(
    sample_catalogue: Path, tmp_path: Path, require: tuple[str, ...], fault: str
) -> None:
    (film,) = train_films(sample_catalogue, 1)
    changed = catalogue_of(sample_catalogue, tmp_path / "catalogue", lambda row: row)
    poster = poster_file(changed, film)
    if fault == "missing":
        poster.unlink()
    else:
        poster.write_bytes(b"no picture" if fault == "text" else poster.read_bytes()[:1000])
    manifest = pack(changed, tmp_path / "shards", require=require, size=16)
    (problem,) = [problem for report in reports(tmp_path / "shards") for problem in report["problems"]]
    assert problem["tmdb_id"] == film
    assert str(poster) in problem["problem"]
    if "poster" in require:
        assert film not in packed(tmp_path / "shards")
        assert manifest.left_out["missing poster file" if fault == "missing" else "unreadable poster"] == 1
    else:
        assert f"{film}.jpg" not in members(tmp_path / "shards")
        assert f"{film}.tokens.npy" in members(tmp_path / "shards")
    assert verify(manifest) == []


def test_a_poster_that_may_not_be_opened_is_told_apart_from_a_bad_picture(
    sample_catalogue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (film,) = train_films(sample_catalogue, 1)

    def closed(path: Path) -> bytes:
        if path == poster_file(sample_catalogue, film):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return path.read_bytes()

    monkeypatch.setattr("genre_dist.packing.shard.read_bytes", closed)
    assert main(command(sample_catalogue, tmp_path / "shards")) == 0
    assert load_manifest(tmp_path / "shards").left_out["poster file that cannot be opened"] == 1
    printed = capsys.readouterr().out
    assert f"1 posters could not be read, such as film {film}: " in printed
    assert "Permission denied" in printed


def test_a_file_far_too_large_for_a_poster_is_not_read(sample_catalogue: Path, tmp_path: Path) -> None:
    (film,) = train_films(sample_catalogue, 1)
    changed = catalogue_of(sample_catalogue, tmp_path / "catalogue", lambda row: row)
    os.truncate(poster_file(changed, film), posters.MAX_BYTES + 1)
    pack(changed, tmp_path / "shards", size=16)
    (problem,) = [problem for report in reports(tmp_path / "shards") for problem in report["problems"]]
    assert problem["tmdb_id"] == film
    assert "more than 268,435,456 bytes" in problem["problem"]


def odd_posters() -> dict[str, bytes]:
    """A file of every kind that needs more than a resize, by what the report says of it."""

    def file(size: tuple[int, int] = (20, 30), mode: str = "RGB", kind: str = "JPEG", **options: Any) -> bytes:
        buffer = io.BytesIO()
        Image.effect_noise(size, 50).convert(mode).save(buffer, kind, **options)
        return buffer.getvalue()

    turned = Image.Exif()
    turned[0x0112] = 6
    return {
        "EXIF orientation 6": file(exif=turned),
        "CMYK": file(mode="CMYK"),
        "PNG": file(kind="PNG"),
        "extraneous bytes before marker 0xd9": file()[:-2] + bytes(16) + file()[-2:],
        "greyscale": file(mode="L"),
        "PNG, one pixel": file((1, 1), kind="PNG"),
        "untouched": file((16, 16)),
        "1001 x 1000 pixels are more than the limit": file((1001, 1000)),
        "not a whole image": file()[:-200],
    }


def test_the_report_states_what_became_of_every_odd_poster(
    sample_catalogue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(posters, "MAX_PIXELS", 1_000_000)
    kinds = odd_posters()
    films = dict(zip(train_films(sample_catalogue, len(kinds) + 1), kinds, strict=False))  # one more stays plain
    changed = catalogue_of(
        sample_catalogue, tmp_path / "catalogue", lambda row: row if row["tmdb_id"] <= max(films) + 1 else None
    )
    for film, kind in films.items():
        poster_file(changed, film).write_bytes(kinds[kind])
    manifest = pack(changed, tmp_path / "shards", size=16, shard_size=1000)
    found = {problem["tmdb_id"]: problem for report in reports(tmp_path / "shards") for problem in report["problems"]}
    found |= {odd["tmdb_id"]: odd for report in reports(tmp_path / "shards") for odd in report["odd"]}
    for film, kind in films.items():
        if kind == "untouched":
            assert film not in found
            assert members(tmp_path / "shards")[f"{film}.jpg"] == kinds[kind]
        else:
            assert kind in (found[film].get("odd") or found[film]["problem"])
    counts = sum((Counter(report["posters"]) for report in reports(tmp_path / "shards")), Counter[str]())
    assert (counts["odd"], counts["unreadable"], counts["untouched"]) == (6, 2, 1)
    printed = capsys.readouterr().out
    assert "6 odd posters were packed, such as film " in printed
    assert "2 posters could not be read, such as film " in printed
    assert counts["resized"] + counts["odd"] + counts["untouched"] == len(packed(tmp_path / "shards"))
    assert verify(manifest) == []


def test_a_shard_whose_films_are_all_unreadable_is_empty_and_whole(sample_catalogue: Path, tmp_path: Path) -> None:
    (film,) = train_films(sample_catalogue, 1)
    changed = catalogue_of(
        sample_catalogue, tmp_path / "catalogue", lambda row: row if row["tmdb_id"] in range(film, film + 20) else None
    )
    poster_file(changed, film).write_bytes(b"")
    manifest = pack(changed, tmp_path / "shards", shard_size=1, size=16)
    assert 0 in [shard.samples for shard in manifest.shards]
    assert verify(manifest) == []


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("--require=poster,trailer", "--require knows poster and overview, not trailer"),
        ("--size=0", "--size"),
        ("--size=100000", "--size"),
        ("--shard_size=0", "--shard_size"),
        ("--quality=0", "--quality"),
        ("--quality=101", "--quality"),
        ("--vectors=nowhere.txt", "nowhere.txt: no such file"),
        ("--catalogue=nowhere", "no catalogue in nowhere"),
    ],
)
@pytest.mark.parametrize("more", [(), ("--overwrite",)])
def test_a_wrong_option_is_refused_and_nothing_is_changed(
    sample_catalogue: Path,
    shards_copy: Path,
    capsys: pytest.CaptureFixture[str],
    option: str,
    reason: str,
    more: tuple[str, ...],
) -> None:
    before = files(shards_copy)
    assert main([*command(sample_catalogue, shards_copy), option, *more]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert len(error.splitlines()) == 1
    assert files(shards_copy) == before


@pytest.mark.parametrize(
    "option", ["--size=80", "--quality=50", "--fit=crop", "--text=both", "--shard_size=40", "--require="]
)
def test_other_options_on_a_finished_folder_are_refused_and_nothing_is_changed(
    sample_catalogue: Path, shards_copy: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    before = files(shards_copy)
    assert main([*command(sample_catalogue, shards_copy), option]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert files(shards_copy) == before


def test_overwrite_replaces_the_shards(sample_catalogue: Path, shards_copy: Path, tmp_path: Path) -> None:
    options = ("--shard_size=90", "--size=16")
    assert main([*command(sample_catalogue, tmp_path / "fresh"), *options]) == 0
    assert main([*command(sample_catalogue, shards_copy), *options, "--overwrite"]) == 0
    assert files(shards_copy) == files(tmp_path / "fresh")


def test_overwrite_reads_every_poster_again(sample_catalogue: Path, tmp_path: Path) -> None:
    (film,) = train_films(sample_catalogue, 1)
    changed = catalogue_of(sample_catalogue, tmp_path / "catalogue", lambda row: row)
    poster = poster_file(changed, film).read_bytes()
    poster_file(changed, film).write_bytes(b"")
    pack(changed, tmp_path / "shards", size=16)
    poster_file(changed, film).write_bytes(poster)
    pack(changed, tmp_path / "shards", size=16, overwrite=True)
    assert film in packed(tmp_path / "shards")


def test_a_catalogue_without_a_film_to_pack_is_refused_with_the_reasons(sample_catalogue: Path, tmp_path: Path) -> None:
    none = catalogue_of(sample_catalogue, tmp_path / "none", lambda row: row | {"poster_status": "none"})
    with pytest.raises(ValueError, match=r"no film to pack \(.* with no poster.*--require"):
        pack(none, tmp_path / "shards", size=16)


def test_a_catalogue_that_has_a_film_twice_is_refused(sample_catalogue: Path, tmp_path: Path) -> None:
    (film,) = train_films(sample_catalogue, 1)
    twice = catalogue_of(
        sample_catalogue,
        tmp_path / "twice",
        lambda row: row | {"tmdb_id": film} if row["tmdb_id"] == film + 1 else row,
    )
    with pytest.raises(ValueError, match=f"the film {film} is there twice"):
        pack(twice, tmp_path / "shards", size=16)


# ---- stopped in the middle -------------------------------------------------------------------------------------------


def python(arguments: Iterable[str], before: str = "") -> list[str]:
    """A command line that runs the CLI in a process of its own, after some Python."""
    return [
        sys.executable,
        "-c",
        f"{before}\nimport sys\nfrom genre_dist.cli import main\nsys.exit(main())",
        *arguments,
    ]


def wait_for(reached: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, "the deadline passed"
        time.sleep(0.002)


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_pack_goes_on_and_ends_with_the_bytes_of_one_never_killed(
    sample_catalogue: Path, tmp_path: Path, workers: int
) -> None:
    options = ["--shard_size=5", "--size=200"]
    out, never_killed = tmp_path / "killed", tmp_path / "whole"
    arguments = [*command(sample_catalogue, out), *options]
    killed = subprocess.Popen(
        python([*arguments, f"--workers={workers}"]), start_new_session=True, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: any(out.glob("*.report.json")))
        killed.kill()
        killed.wait()
        wait_for(lambda: not alive(killed.pid), seconds=20)  # its workers end with it
    finally:
        with suppress(ProcessLookupError):
            os.killpg(killed.pid, signal.SIGKILL)
    left = {path.name: path.read_bytes() for path in out.glob("*.tar")}
    assert not (out / FILE).exists()
    assert main(arguments) == 0
    assert main([*command(sample_catalogue, never_killed), *options]) == 0
    assert files(out) == files(never_killed)
    assert temporary(out) == []
    assert 0 < len(left) < len(list(out.glob("*.tar")))
    assert left.items() <= files(never_killed).items()  # what had been finished was finished


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_no_byte(sample_catalogue: Path, tmp_path: Path) -> None:
    out, never_killed = tmp_path / "killed", tmp_path / "whole"
    options = ["--shard_size=1", "--size=256"]
    arguments, moments, left = [*command(sample_catalogue, out), *options], random.Random(0), [0]
    for _ in range(10):
        killed = subprocess.Popen(python(arguments), start_new_session=True, stdout=subprocess.DEVNULL)
        time.sleep(0.3 + moments.random() * 0.6)
        with suppress(ProcessLookupError):
            os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
        left.append(len(list(out.glob("*.report.json"))))
    assert left == sorted(left)  # every run goes on from the one before
    assert main(arguments) == 0
    assert main([*command(sample_catalogue, never_killed), *options]) == 0
    assert files(out) == files(never_killed)
    assert temporary(out) == []


def test_what_a_killed_pack_with_other_options_left_is_not_mixed_in(
    sample_catalogue: Path, sample_shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "shards"
    pack(sample_catalogue, out, size=72, shard_size=10)
    (out / FILE).unlink()  # as a kill before the end leaves it
    (out / "train-000009.tar.tmp").write_bytes(b"half")
    (out / ".packing").mkdir()
    (out / ".packing" / "0.jsonl").write_text("half")
    for _ in range(2):
        assert main(command(sample_catalogue, out)) == 0
        assert files(out) == files(sample_shards)


# ---- a full disk -----------------------------------------------------------------------------------------------------


def check_full(result: "subprocess.CompletedProcess[str]", out: Path, reference: Path) -> None:
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "no space left" in result.stderr
    assert "run the same command again" in result.stderr
    assert temporary(out) == []
    assert not (out / FILE).exists()
    whole = files(reference)
    finished = {path.name.replace(".report.json", ".tar") for path in out.glob("*.report.json")}
    assert {path.name for path in out.glob("*.tar")} == finished
    assert all((out / name).read_bytes() == whole[name] for name in finished)


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "workers"), [(3_000, 1), (12_000, 1), (100_000, 1), (100_000, 2)])
def test_a_file_that_cannot_grow_stops_the_pack_with_one_line_and_the_same_command_finishes_it(
    sample_catalogue: Path, sample_shards: Path, tmp_path: Path, limit: int, workers: int
) -> None:
    out = tmp_path / "shards"
    arguments = [*command(sample_catalogue, out), f"--workers={workers}"]
    lower = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    result = subprocess.run(python(arguments, lower), capture_output=True, text=True, timeout=60)
    check_full(result, out, sample_shards)
    assert main(arguments) == 0
    assert files(out) == files(sample_shards)


def test_a_full_disk_stops_the_pack_with_one_line_and_the_same_command_finishes_it(
    sample_catalogue: Path, sample_shards: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    size = sum(map(len, files(sample_shards).values())) // 2
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root may mount a small disk")
    try:
        arguments = command(sample_catalogue, disk / "shards")
        result = subprocess.run(python(arguments), capture_output=True, text=True, timeout=60)
        check_full(result, disk / "shards", sample_shards)
        assert list((disk / "shards").glob("*.tar"))
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert main(arguments) == 0
        assert files(disk / "shards") == files(sample_shards)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
