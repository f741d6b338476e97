"""Looking into shards: whole ones pass, every planted fault is found, and the order of training can be printed."""

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genre_dist.cli import main
from genre_dist.genres import GENRE_NAMES
from genre_dist.packing.verification import verify
from genre_dist.stream import tar
from genre_dist.stream.index import index_path
from genre_dist.stream.loader import TrainStream
from genre_dist.stream.manifest import FILE, SPLITS, load_manifest
from genre_dist.stream.reader import ShardReader

TRAIN, VAL = "train-000000.tar", "val-000000.tar"
Parts = dict[str, bytes]


class Shards:
    """A folder of shards to plant faults in; `seal` makes checksums right again, so the fault itself must be found."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.told: dict[str, Any] = json.loads((folder / FILE).read_text())

    def entry(self, name: str) -> dict[str, Any]:
        return next(shard for shard in self.told["shards"] if shard["file"] == name)

    def films(self, name: str) -> list[tuple[int, Parts]]:
        data = (self.folder / name).read_bytes()
        films: dict[int, Parts] = {}
        for member in tar.members(data):
            key, _, extension = member.name.partition(".")
            films.setdefault(int(key), {})[extension] = data[member.start : member.start + member.size]
        return list(films.items())

    def rewrite(self, name: str, films: list[tuple[int, Parts]], **changed: int) -> None:
        """Write a shard anew with index, checksum and counts that agree with it, but for `changed` counts."""
        old = np.load(index_path(self.folder / name))
        index = np.zeros(len(films), old.dtype)
        data = b""
        for row, (film, parts) in enumerate(films):
            pieces = [
                tar.header(f"{film}.{extension}", len(part)) + part.ljust(tar.padded(len(part)), b"\0")
                for extension, part in parts.items()
            ]
            length = len(np.load(io.BytesIO(parts["tokens.npy"]))) if "tokens.npy" in parts else 0
            has = old["has"][min(row, len(old) - 1)]
            index[row] = (film, len(data), sum(map(len, pieces)), length, has)
            data += b"".join(pieces)
        (self.folder / name).write_bytes(data + tar.END)
        np.save(index_path(self.folder / name), index)
        count = len(films)
        self.entry(name).update({"samples": count, "poster": count, "overview": count, "both": count} | changed)
        self.seal()

    def edit_first(self, change: Callable[[Parts], Any]) -> None:
        """Change the members of the first film of the first train shard."""
        films = self.films(TRAIN)
        change(films[0][1])
        self.rewrite(TRAIN, films)

    def seal(self) -> None:
        for shard in self.told["shards"]:
            data = (self.folder / shard["file"]).read_bytes()
            shard.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        self.save()

    def save(self) -> None:
        (self.folder / FILE).write_text(json.dumps(self.told))

    def faults(self) -> list[str]:
        return verify(load_manifest(self.folder))


def tokens(*values: int, kind: str = "<i4") -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array(values, kind))
    return buffer.getvalue()


# ---- verify ----------------------------------------------------------------------------------------------------------


def test_whole_shards_have_no_fault(sample_shards: Path) -> None:
    assert verify(load_manifest(sample_shards)) == []


def test_the_tools_of_these_tests_plant_no_fault_by_themselves(shards_copy: Path) -> None:
    shards = Shards(shards_copy)
    shards.rewrite(TRAIN, shards.films(TRAIN))
    assert shards.faults() == []


def flip_a_byte(shards: Shards) -> None:
    data = bytearray((shards.folder / TRAIN).read_bytes())
    data[int(np.load(index_path(shards.folder / TRAIN))["offset"][1]) - 700] ^= 0xFF
    (shards.folder / TRAIN).write_bytes(data)


def truncate(shards: Shards) -> None:
    data = (shards.folder / TRAIN).read_bytes()
    (shards.folder / TRAIN).write_bytes(data[: len(data) // 2])


def copy_a_film_to_val(shards: Shards) -> None:
    shards.rewrite(VAL, [*shards.films(VAL), shards.films(TRAIN)[0]])


def double_a_film(shards: Shards) -> None:
    films = shards.films(TRAIN)
    shards.rewrite(TRAIN, [*films, films[0]])


def rename_a_split(shards: Shards) -> None:
    shards.entry(VAL)["split"] = "test"
    shards.save()


def change_a_count(*names: str) -> Callable[[Shards], None]:
    def change(shards: Shards) -> None:
        for name in names:
            shards.entry(TRAIN)[name] -= 1
        shards.save()

    return change


def change_the_samples(shards: Shards) -> None:
    shards.entry(TRAIN)["samples"] += 1
    shards.save()


def change_a_genre_count(shards: Shards) -> None:
    shards.told["genre_counts"]["val"][6] += 1
    shards.save()


def change_the_vocabulary(shards: Shards) -> None:
    path = shards.folder / "vocabulary.txt"
    path.write_text(path.read_text().replace("\nthe\n", "\nteh\n"))


def turn_the_vocabulary(shards: Shards) -> None:
    path = shards.folder / "vocabulary.txt"
    first, second, *words = path.read_text().splitlines(keepends=True)
    path.write_text("".join([first, second, *words[::-1]]))


def change_the_manifest(section: str, name: str | None, value: Any) -> Callable[[Shards], None]:
    def change(shards: Shards) -> None:
        if name is None:
            shards.told[section] = value
        else:
            shards.told[section][name] = value
        shards.save()

    return change


def change_a_report(shards: Shards, change: Callable[[dict[str, Any]], None]) -> None:
    path = shards.folder / "train-000000.report.json"
    told = json.loads(path.read_text())
    change(told)
    path.write_text(json.dumps(told))


def append(data: bytes) -> Callable[[Shards], None]:
    def change(shards: Shards) -> None:
        path = shards.folder / TRAIN
        path.write_bytes(path.read_bytes() + data)
        shards.seal()

    return change


def cut_at_a_member(shards: Shards) -> None:
    """Without the last film, and without the end mark."""
    index = np.load(index_path(shards.folder / TRAIN))
    shards.rewrite(TRAIN, shards.films(TRAIN)[:-1])
    path = shards.folder / TRAIN
    path.write_bytes(path.read_bytes()[: int(index["offset"][-1])])
    shards.seal()


def hide_a_sample(shards: Shards) -> None:
    """A film in the tar that neither the index nor the manifest knows."""
    films = len(shards.films(TRAIN)) - 1
    path = index_path(shards.folder / TRAIN)
    np.save(path, np.delete(np.load(path), 1))
    shards.entry(TRAIN).update(samples=films, poster=films, overview=films, both=films)
    shards.save()


def add_a_link(shards: Shards) -> None:
    """Make the picture of the first film a hard link to one that lies elsewhere."""
    path = shards.folder / TRAIN
    data = bytearray(path.read_bytes())
    header = next(member.header for member in tar.members(bytes(data)) if member.name.endswith(".jpg"))
    info = tarfile.TarInfo.frombuf(bytes(data[header : header + 512]), "utf-8", "strict")
    info.type, info.linkname = tarfile.LNKTYPE, "elsewhere.jpg"
    data[header : header + 512] = info.tobuf(tarfile.USTAR_FORMAT)
    path.write_bytes(data)
    shards.seal()


def shorten_the_vocabulary(shards: Shards) -> None:
    path = shards.folder / "vocabulary.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def shorten_the_index(shards: Shards) -> None:
    np.save(index_path(shards.folder / TRAIN), np.load(index_path(shards.folder / TRAIN))[:-1])


def change_the_index(field: str, value: int) -> Callable[[Shards], None]:
    def change(shards: Shards) -> None:
        index = np.load(index_path(shards.folder / TRAIN))
        index[field][0] = value
        np.save(index_path(shards.folder / TRAIN), index)

    return change


def member(extension: str, content: bytes | None) -> Callable[[Shards], None]:
    """Replace a member of the first film, or remove it."""

    def change(shards: Shards) -> None:
        shards.edit_first(lambda parts: parts.pop(extension) if content is None else parts.update({extension: content}))

    return change


FIRST = r"train-000000\.tar: film \d+ at byte 0: "
FAULTS: dict[str, tuple[Callable[[Shards], None], str]] = {
    "flipped byte": (flip_a_byte, r"train-000000\.tar: the checksum differs"),
    "truncated tar": (truncate, r"train-000000\.tar: [\d,]+ bytes where the manifest has"),
    "films cut off": (truncate, r"train-000000\.tar: film \d+ at byte \d+: "),
    "missing tar": (lambda shards: (shards.folder / TRAIN).unlink(), r"train-000000\.tar"),
    "image damaged": (member("jpg", b"\xff\xd8\xff no picture"), FIRST),
    "image missing": (member("jpg", None), FIRST + r"no member \.jpg"),
    "tokens missing": (member("tokens.npy", None), FIRST + r"no member \.tokens\.npy"),
    "json missing": (member("json", None), FIRST + r"no member \.json"),
    "json broken": (member("json", b"{"), FIRST),
    "json without genres": (member("json", b"{}"), FIRST + ".*genre_ids"),
    "another member": (member("webp", b""), FIRST + r"the index knows nothing of its member \.webp"),
    "unknown genre": (member("json", b'{"genre_ids": [4711]}'), FIRST + "the genre 4711 is not in the manifest"),
    "other genre": (member("json", b'{"genre_ids": []}'), "genre_counts of train disagree"),
    "token too high": (member("tokens.npy", tokens(5, 10**6)), FIRST + "the token 1000000 is outside the vocabulary"),
    "token negative": (member("tokens.npy", tokens(-7, 5)), FIRST + "the token -7 is outside the vocabulary"),
    "tokens of floats": (member("tokens.npy", tokens(1, 2, kind="<f8")), FIRST + "the tokens are no int32 array"),
    "film in two splits": (
        copy_a_film_to_val,
        r"val-000000\.tar: film \d+ at byte \d+: the film is in the shards twice",
    ),
    "film in another split": (copy_a_film_to_val, r"val-000000\.tar: film \d+ .* belongs to train, not val"),
    "film twice": (double_a_film, r"train-000000\.tar: film \d+ at byte \d+: the film is in the shards twice"),
    "wrong split": (rename_a_split, r"val-000000\.tar: film \d+ at byte \d+: the film belongs to val, not test"),
    "count": (change_a_count("poster", "both"), r"train-000000\.tar: 50 samples with poster where the manifest has 49"),
    "count of both": (
        change_a_count("both", "overview"),
        r"train-000000\.tar: 50 samples with poster and overview where the manifest has 49",
    ),
    "samples": (change_the_samples, r"train-000000\.index\.npy: 50 records where the manifest has 51"),
    "genre count": (change_a_genre_count, r"manifest\.json: genre_counts of val disagree"),
    "vocabulary changed": (change_the_vocabulary, r"vocabulary\.txt: not the vocabulary the shards were packed with"),
    "vocabulary shortened": (
        shorten_the_vocabulary,
        r"vocabulary\.txt: not the vocabulary the shards were packed with",
    ),
    "another number of words": (
        change_the_manifest("text", "words", 9999),
        r"vocabulary\.txt: \d+ words where the manifest has 9999",
    ),
    "words in another order": (turn_the_vocabulary, r"vocabulary\.txt: not the vocabulary the shards were packed with"),
    "size of the posters": (
        change_the_manifest("image", "size", 80),
        FIRST + ".*72 x 72 where the shards hold 80 x 80",
    ),
    "smaller posters": (change_the_manifest("image", "size", 64), FIRST),
    "split rule": (change_the_manifest("split_rule", None, "by year"), r"manifest\.json: its split rule"),
    "nested too deeply": (member("json", b"[" * 200_000), FIRST + "the member .json is nested too deeply"),
    "json of another film": (
        member("json", b'{"tmdb_id": 3, "genre_ids": [18]}'),
        FIRST + r"its \.json describes film 3",
    ),
    "a link among the members": (add_a_link, FIRST + ".*"),
    "no end mark": (cut_at_a_member, r"train-000000\.tar: the end mark at byte \d+ is missing; the tar was cut"),
    "bytes behind the end": (append(b"x" * 512), r"train-000000\.tar: [\d,]+ bytes behind the last sample"),
    "index size": (change_the_index("size", 2**32 - 1), FIRST + "4,294,967,295 bytes there are more than the tar has"),
    "index offset below zero": (change_the_index("offset", -512), r"train-000000\.tar: film \d+ at byte -512: "),
    "index offset far away": (change_the_index("offset", 2**62), r"train-000000\.tar: film \d+ at byte 4611"),
    "a sample outside the index": (
        hide_a_sample,
        r"train-000000\.tar: film \d+ does not begin where the sample before",
    ),
    "index an npz": (
        lambda shards: np.savez(open(index_path(shards.folder / TRAIN), "wb"), np.zeros(3)),  # noqa: SIM115
        r"train-000000\.index\.npy: no array",
    ),
    "films left out": (
        change_the_manifest("left_out", "unreadable poster", 3),
        r"manifest\.json: 3 films left out with unreadable poster where the reports of the shards have 0",
    ),
    "report damaged": (
        lambda shards: (shards.folder / "train-000000.report.json").write_bytes(b"[" * 100_000),
        r"train-000000\.report\.json: ",
    ),
    "report of other counts": (
        lambda shards: change_a_report(shards, lambda told: told["shard"].update(bytes=1024)),
        r"train-000000\.report\.json: describes other counts",
    ),
    "report of films left out": (
        lambda shards: change_a_report(shards, lambda told: told["left_out"].update({"unreadable poster": 2})),
        r"manifest\.json: 0 films left out with unreadable poster where the reports of the shards have 2",
    ),
    "index shortened": (shorten_the_index, r"train-000000\.index\.npy: 49 records where the manifest has 50"),
    "index offset": (change_the_index("offset", 512), r"train-000000\.tar: film \d+ at byte 512: "),
    "index tokens": (change_the_index("tokens", 9999), FIRST + r"\d+ tokens where the index has 9999"),
    "index film": (change_the_index("id", 1), r"train-000000\.tar: film 1 at byte 0: .*index is of another tar"),
    "index missing": (lambda shards: index_path(shards.folder / TRAIN).unlink(), r"train-000000\.index\.npy"),
    "index empty": (lambda shards: index_path(shards.folder / TRAIN).write_bytes(b""), r"train-000000"),
    "index of numbers": (
        lambda shards: np.save(index_path(shards.folder / TRAIN), np.zeros(50)),
        r"train-000000\.index\.npy: not an index",
    ),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_planted_fault_is_found(shards_copy: Path, kind: str) -> None:
    plant, line = FAULTS[kind]
    plant(Shards(shards_copy))
    assert [fault for fault in Shards(shards_copy).faults() if re.search(line, fault)]


def test_a_fault_in_one_film_is_one_line(shards_copy: Path) -> None:
    member("tokens.npy", tokens(5, 10**6))(Shards(shards_copy))
    index = np.load(index_path(shards_copy / TRAIN))
    assert len(Shards(shards_copy).faults()) == 1
    assert str(index["id"][0]) in Shards(shards_copy).faults()[0]


def test_faults_in_several_shards_are_all_told(shards_copy: Path) -> None:
    flip_a_byte(Shards(shards_copy))
    (shards_copy / VAL).unlink()
    faults = Shards(shards_copy).faults()
    assert any(TRAIN in fault for fault in faults)
    assert any(VAL in fault for fault in faults)


# ---- genre-dist inspect ----------------------------------------------------------------------------------------------


def test_inspect_prints_counts_genres_and_steps(sample_shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(sample_shards)]) == 0
    printed, manifest = capsys.readouterr().out, load_manifest(sample_shards)
    assert manifest.fingerprint in printed
    for split in SPLITS:
        assert f" {split} " in printed
    for what, count in (("shards", lambda split: len(manifest.shards_of(split))), ("films", manifest.samples)):
        assert re.search(rf"{what} +│ " + " +│ ".join(f"{count(split):,}" for split in SPLITS), printed)
    assert all(genre in printed for genre in GENRE_NAMES)
    assert "left out" in printed


def test_inspect_verify_says_that_shards_are_whole(sample_shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(sample_shards), "--verify"]) == 0
    assert f"verified: {len(load_manifest(sample_shards).shards)} shards are whole" in capsys.readouterr().out


def test_inspect_verify_prints_every_fault_and_ends_with_1(
    shards_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    member("tokens.npy", tokens(5, 10**6))(Shards(shards_copy))
    assert main(["inspect", str(shards_copy), "--verify"]) == 1
    printed = capsys.readouterr().out
    assert "outside the vocabulary" in printed
    assert "1 fault" in printed


def test_encodings_are_not_verified_by_themselves(shards_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = Shards(shards_copy)
    shards.told["encoding"] = {"size": 8, "key": "k", "source": "0123456789abcdef"}
    shards.save()
    assert main(["inspect", str(shards_copy), "--verify"]) == 2
    assert "these are encodings; verify the shards they were made from" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["missing", "npz"])
def test_a_damaged_index_is_told_in_one_line_without_verify_too(
    shards_copy: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    path = index_path(shards_copy / TRAIN)
    path.unlink() if damage == "missing" else path.write_bytes(b"PK\x03\x04" * 50)
    assert main(["inspect", str(shards_copy)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "train-000000.index.npy" in line
    assert main(["inspect", str(shards_copy), "--verify"]) == 1
    assert "train-000000.index.npy" in capsys.readouterr().out


def test_names_of_genres_are_no_markup(shards_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = Shards(shards_copy)
    shards.told["genres"][0]["name"] = "[/] [red]Drama"
    shards.save()
    assert main(["inspect", str(shards_copy)]) == 0
    assert "[/] [red]Drama" in capsys.readouterr().out


def test_inspect_of_a_folder_without_shards_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path)]) == 2
    assert "genre-dist pack" in capsys.readouterr().err


# ---- genre-dist order ------------------------------------------------------------------------------------------------


def printed_order(capsys: pytest.CaptureFixture[str], shards: Path, *more: str) -> list[tuple[int, list[int]]]:
    assert main(["order", str(shards), "--global_batch=12", "--seed=5", *more]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    return [(int(step), [int(film) for film in films.split()]) for step, films in lines]


@pytest.mark.parametrize("epoch", [0, 2])
def test_order_prints_the_films_of_every_step_of_training(
    sample_shards: Path, capsys: pytest.CaptureFixture[str], epoch: int
) -> None:
    reader = ShardReader(load_manifest(sample_shards), "train", ("poster", "overview"), 100)
    stream = TrainStream(reader, global_batch=12, micro_batch=4, seed=5)
    wanted = [
        (step, stream.step_ids(epoch * stream.steps_per_epoch + step).tolist())
        for step in range(stream.steps_per_epoch)
    ]
    assert printed_order(capsys, sample_shards, f"--epoch={epoch}") == wanted


@pytest.mark.parametrize("world", [2, 3, 12])
def test_the_ranks_orders_side_by_side_are_the_whole(
    sample_shards: Path, capsys: pytest.CaptureFixture[str], world: int
) -> None:
    whole = printed_order(capsys, sample_shards)
    ranks = [printed_order(capsys, sample_shards, f"--world={world}", f"--rank={rank}") for rank in range(world)]
    for step, films in whole:
        assert [film for rank in ranks for film in rank[step][1]] == films
    assert printed_order(capsys, sample_shards, f"--world={world}") == whole


@pytest.mark.parametrize(
    ("text", "steps"), [("0:3", [0, 1, 2]), ("2:4", [2, 3]), (":2", [0, 1]), ("3", [3]), ("5:5", [])]
)
def test_steps_can_be_chosen(
    sample_shards: Path, capsys: pytest.CaptureFixture[str], text: str, steps: list[int]
) -> None:
    whole = dict(printed_order(capsys, sample_shards))
    assert printed_order(capsys, sample_shards, f"--steps={text}") == [(step, whole[step]) for step in steps]


@pytest.mark.parametrize(
    "options",
    [
        ["--steps=a:b"],
        ["--steps=1:2:3"],
        ["--world=5"],
        ["--world=0"],
        ["--world=2", "--rank=2"],
        ["--rank=-1"],
        ["--global_batch=0"],
        ["--members=trailer"],
    ],
    ids=" ".join,
)
def test_impossible_requests_end_with_2_and_one_line(
    sample_shards: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    assert main(["order", str(sample_shards), "--global_batch=12", *options]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
