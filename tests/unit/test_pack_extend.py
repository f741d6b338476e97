"""Packing a grown catalogue into a finished folder: new shards, and not a byte of the old ones."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from test_pack import BOTH, catalogue_of, command, files, packed, python, reports, temporary, train_films, wait_for

from genre_dist import lock
from genre_dist.catalogue.catalogue import poster_file, read_rows
from genre_dist.cli import main
from genre_dist.packing.pack import pack
from genre_dist.packing.verification import verify
from genre_dist.stream.index import index_path
from genre_dist.stream.manifest import FILE, load_manifest

OPTIONS = {"size": 72, "shard_size": 50}


@pytest.fixture
def fewer(sample_catalogue: Path, tmp_path: Path) -> Path:
    """Two thirds of the catalogue's films."""
    return catalogue_of(sample_catalogue, tmp_path / "fewer", lambda row: row if row["tmdb_id"] % 3 else None)


def test_new_films_go_to_new_shards_and_the_old_ones_stay(
    fewer: Path, sample_catalogue: Path, sample_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "shards"
    first = pack(fewer, out, **OPTIONS)
    old, films = files(out), packed(out)
    times = {path: path.stat().st_mtime_ns for path in out.iterdir() if path.name not in (FILE, lock.FILE)}
    assert main(command(sample_catalogue, out)) == 0
    more = packed(out)
    assert f"{len(more) - len(films)} films added" in capsys.readouterr().out
    assert more == packed(sample_shards)  # the same films, in the same splits
    assert {name: data for name, data in files(out).items() if name in old and name != FILE} == {
        name: data for name, data in old.items() if name != FILE
    }
    assert {path: path.stat().st_mtime_ns for path in times} == times
    second = load_manifest(out)
    assert {shard.file: shard for shard in first.shards}.items() < {
        shard.file: shard for shard in second.shards
    }.items()
    assert [shard.file for shard in second.shards_of("train")] == [
        f"train-{number:06d}.tar" for number in range(len(second.shards_of("train")))
    ]
    assert second.left_out == load_manifest(sample_shards).left_out
    assert second.genre_counts == load_manifest(sample_shards).genre_counts
    assert verify(second) == []
    assert temporary(out) == []


def test_an_unchanged_catalogue_leaves_nothing_to_add(
    fewer: Path, sample_catalogue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "shards"
    pack(fewer, out, **OPTIONS)
    pack(sample_catalogue, out, **OPTIONS)
    before = files(out)
    assert main(command(sample_catalogue, out)) == 0
    assert "nothing to add" in capsys.readouterr().out
    assert files(out) == before


@pytest.mark.parametrize("option", ["--size=80", "--quality=50", "--fit=pad", "--text=title", "--shard_size=10"])
@pytest.mark.parametrize("more", [(), ("--part=0/2",), ("--merge",)])
def test_other_options_are_refused_for_a_grown_catalogue_too(
    fewer: Path,
    sample_catalogue: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    option: str,
    more: tuple[str, ...],
) -> None:
    pack(fewer, tmp_path / "shards", **OPTIONS)
    before = files(tmp_path / "shards")
    assert main([*command(sample_catalogue, tmp_path / "shards"), option, *more]) == 2
    error = capsys.readouterr().err
    assert f"another {option.split('=')[0]}" in error
    assert "--overwrite" in error
    assert files(tmp_path / "shards") == before


def test_the_vectors_stay_and_other_ones_are_refused(fewer: Path, sample_catalogue: Path, tmp_path: Path) -> None:
    vectors, others, out = tmp_path / "vectors.txt", tmp_path / "others.txt", tmp_path / "shards"
    vectors.write_text("the 0.1 0.2\nwizard 0.3 0.4\n")
    others.write_text("the 0.1 0.3\n")
    pack(fewer, out, vectors=vectors, **OPTIONS)
    before = (out / "vectors.npy").read_bytes()
    for other in (others, None):
        with pytest.raises(ValueError, match="another --vectors"):
            pack(sample_catalogue, out, vectors=other, **OPTIONS)
    manifest = pack(sample_catalogue, out, vectors=vectors, **OPTIONS)
    assert (out / "vectors.npy").read_bytes() == before
    assert manifest.text["dim"] == 2
    (out / "vectors.npy").unlink()
    pack(sample_catalogue, out, vectors=vectors, **OPTIONS)
    assert (out / "vectors.npy").read_bytes() == before


@pytest.mark.parametrize("lost", ["tar", "index.npy", "report.json"])
def test_a_lost_file_of_an_extended_folder_is_made_again(
    fewer: Path, sample_catalogue: Path, tmp_path: Path, lost: str
) -> None:
    out = tmp_path / "shards"
    pack(fewer, out, **OPTIONS)
    pack(sample_catalogue, out, **OPTIONS)
    before = files(out)
    (out / f"train-000000.{lost}").unlink()
    pack(sample_catalogue, out, **OPTIONS)
    assert files(out) == before


def test_a_poster_that_could_not_be_read_is_not_tried_at_every_turn(sample_catalogue: Path, tmp_path: Path) -> None:
    (film,) = train_films(sample_catalogue, 1)
    damaged = catalogue_of(sample_catalogue, tmp_path / "damaged", lambda row: row)
    poster_file(damaged, film).write_bytes(b"no picture")
    pack(damaged, tmp_path / "shards", **OPTIONS)
    before = files(tmp_path / "shards")
    assert pack(damaged, tmp_path / "shards", **OPTIONS).left_out["unreadable poster"] == 1
    assert files(tmp_path / "shards") == before
    assert [problem["tmdb_id"] for report in reports(tmp_path / "shards") for problem in report["problems"]] == [film]


def test_films_without_a_poster_are_added_once_they_have_one(sample_catalogue: Path, tmp_path: Path) -> None:
    late = set(train_films(sample_catalogue, 3))
    before = catalogue_of(
        sample_catalogue,
        tmp_path / "before",
        lambda row: row | ({"poster_status": "failed: 503"} if row["tmdb_id"] in late else {}),
    )
    pack(before, tmp_path / "shards", **OPTIONS)
    assert not late & packed(tmp_path / "shards").keys()
    manifest = pack(sample_catalogue, tmp_path / "shards", **OPTIONS)
    assert set(np.load(index_path(tmp_path / "shards" / manifest.shards_of("train")[-1].file))["id"]) == late


def test_another_catalogue_is_not_taken_for_a_later_state(sample_catalogue: Path, tmp_path: Path) -> None:
    one, other = (
        catalogue_of(
            sample_catalogue, tmp_path / name, lambda row, rest=rest: row if row["tmdb_id"] % 3 == rest else None
        )  # type: ignore[misc]
        for rest, name in enumerate(("one", "other"))
    )
    pack(one, tmp_path / "shards", **OPTIONS)
    with pytest.raises(ValueError, match=r"knows 0 of the .* films packed before: another catalogue\?"):
        pack(other, tmp_path / "shards", **OPTIONS)


def test_shards_none_of_which_is_whole_are_not_replaced_by_fewer_films(
    fewer: Path, sample_catalogue: Path, tmp_path: Path
) -> None:
    out = tmp_path / "shards"
    pack(sample_catalogue, out, **OPTIONS)
    for report in out.glob("*.report.json"):
        report.unlink()
    before = files(out)
    with pytest.raises(ValueError, match=r"no shard of its manifest is whole .*--overwrite"):
        pack(fewer, out, **OPTIONS)
    assert files(out) == before
    pack(fewer, out, **OPTIONS, overwrite=True)


def test_reports_of_older_versions_which_do_not_tell_of_posters_count(sample_catalogue: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    pack(sample_catalogue, out, **OPTIONS)
    for report in out.glob("*.report.json"):
        told = json.loads(report.read_text())
        report.write_text(json.dumps({key: value for key, value in told.items() if key not in ("posters", "odd")}))
    before = files(out)
    pack(sample_catalogue, out, **OPTIONS)
    assert files(out) == before


def test_a_changed_vocabulary_is_not_extended(fewer: Path, sample_catalogue: Path, tmp_path: Path) -> None:
    pack(fewer, tmp_path / "shards", **OPTIONS)
    with open(tmp_path / "shards" / "vocabulary.txt", "a") as file:
        file.write("another\n")
    with pytest.raises(ValueError, match=r"vocabulary\.txt: not the vocabulary"):
        pack(sample_catalogue, tmp_path / "shards", **OPTIONS)


@pytest.mark.slow
def test_a_killed_extension_leaves_the_folder_as_it_was_and_goes_on(
    fewer: Path, sample_catalogue: Path, tmp_path: Path
) -> None:
    out, never_killed = tmp_path / "killed", tmp_path / "whole"
    pack(fewer, out, shard_size=1, size=200)
    shutil.copytree(out, never_killed)
    before = files(out)
    arguments = [*command(sample_catalogue, out), "--shard_size=1", "--size=200"]
    reported = len(list(out.glob("*.report.json")))
    killed = subprocess.Popen(python(arguments), start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: len(list(out.glob("*.report.json"))) > reported)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
    assert before.items() <= files(out).items()  # the manifest, too: training goes on with the films it had
    assert verify(load_manifest(out)) == []
    assert main(arguments) == 0
    pack(sample_catalogue, never_killed, shard_size=1, size=200)
    assert files(out) == files(never_killed)
    assert temporary(out) == []


def test_a_catalogue_that_grew_since_the_kill_replaces_only_what_the_manifest_does_not_have(
    fewer: Path, sample_catalogue: Path, tmp_path: Path
) -> None:
    out = tmp_path / "shards"
    pack(fewer, out, **OPTIONS)
    old = files(out)
    between = catalogue_of(
        sample_catalogue, tmp_path / "between", lambda row: row if row["tmdb_id"] % 3 or row["tmdb_id"] % 2 else None
    )
    manifest = (out / FILE).read_bytes()
    pack(between, out, **OPTIONS)
    (out / FILE).write_bytes(manifest)  # as a kill before the last step leaves it
    pack(sample_catalogue, out, **OPTIONS)
    assert packed(out).keys() == {
        row["tmdb_id"]
        for row in read_rows(sample_catalogue)
        if all((row["poster_status"] == "ok", row["overview"], BOTH))
    }
    assert {name: hashlib.sha256(data).digest() for name, data in old.items() if name != FILE}.items() <= {
        name: hashlib.sha256(data).digest() for name, data in files(out).items()
    }.items()
    assert verify(load_manifest(out)) == []
