"""What `genre-dist index` makes of anyone's tars: links, ends and keys, and the listing, checked before it is used."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from foreign_decoder import json_of
from foreign_tars import like_img2dataset, samples_of, write_tar
from helpers import snapshot
from range_server import serve_folder

from genre_dist.cli import main
from genre_dist.lock import one_writer
from genre_dist.stream import TarReader, evaluation_stream, index_tars, load_tars

# ---- links, ends, keys -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("remote", [False, True])
def test_links_are_read_where_they_lead(tmp_path: Path, form: int, remote: bool) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as archive:
        for name, kind, content in [
            ("d/1.jpg", tarfile.REGTYPE, "first"),
            ("d/2.jpg", tarfile.LNKTYPE, "d/1.jpg"),
            ("d/3.jpg", tarfile.SYMTYPE, "2.jpg"),  # a link to a link, from its own folder
            ("d/3.txt", tarfile.REGTYPE, "three"),
            ("d/4.jpg", tarfile.SYMTYPE, "../e/5.jpg"),  # to what comes later
            ("e/5.jpg", tarfile.REGTYPE, "fifth"),
        ]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, content if kind != tarfile.REGTYPE else ""
            info.size = len(content) if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(content.encode()))
    tars = index_tars([tmp_path / "a.tar"], tmp_path)
    assert tars.extensions == {"jpg": 5, "txt": 1}
    assert tars.tars[0].notes == ("3 members are links to other members of the tar, which are read in their place",)
    with serve_folder(tmp_path) as server:
        found = samples_of(load_tars(server.url if remote else tmp_path), workers=1)
    assert {key: sample["jpg"] for key, sample in found.items()} == {
        **dict.fromkeys(("d/1", "d/2", "d/3"), b"first"),
        **dict.fromkeys(("d/4", "e/5"), b"fifth"),
    }


def test_what_is_no_file_is_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind, target in [
            ("1.jpg", tarfile.SYMTYPE, "/etc/passwd"),
            ("2.jpg", tarfile.SYMTYPE, "nowhere.jpg"),
            ("3.jpg", tarfile.SYMTYPE, "3.jpg"),
            ("4.jpg", tarfile.LNKTYPE, "gone.jpg"),
            ("5.jpg", tarfile.FIFOTYPE, ""),
            ("6.jpg", tarfile.CHRTYPE, ""),
            ("folder", tarfile.DIRTYPE, ""),
            ("README", tarfile.REGTYPE, ""),
            ("odd.j\x1b[31mpg", tarfile.REGTYPE, ""),
            ("7.jpg", tarfile.REGTYPE, ""),
        ]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    assert main(["index", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "1 samples of 1 tars" in told
    assert "3 not read: a symbolic link to no file of this tar, such as '1.jpg' -> '/etc/passwd'" in told
    assert "1 not read: a hard link to no file of this tar, such as '4.jpg' -> 'gone.jpg'" in told
    assert "1 not read: a pipe, such as '5.jpg'" in told
    assert "1 not read: a device, such as '6.jpg'" in told
    assert "2 not read: of no sample (KEY.EXTENSION), such as 'README'" in told
    assert "\x1b" not in told
    assert list(samples_of(load_tars(tmp_path))) == ["7"]


@pytest.mark.parametrize(
    ("end", "note"),
    [
        (lambda whole: whole, None),
        (lambda whole: whole[: 3 * 1024], "no end mark: samples are missing if the tar was cut"),
        (lambda whole: whole[: 3 * 1024 + 512], "no end mark: samples are missing if the tar was cut"),
        (lambda whole: whole[: 3 * 1024] + bytes(30_720), "30,720 zeros at its end"),
        (lambda whole: whole + b"<html>502 Bad Gateway</html>" * 20, "560 bytes behind its end mark are no tar"),
    ],
)
def test_a_tar_that_ends_too_soon_or_too_late_is_said_to(
    tmp_path: Path, end: Callable[[bytes], bytes], note: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["1.jpg", "2.jpg", "3.jpg"]
    whole = write_tar(tmp_path / "a.tar", names).read_bytes()
    (tmp_path / "a.tar").write_bytes(end(whole))
    for _ in range(2):  # said again where nothing is to be done
        assert main(["index", str(tmp_path)]) == 0
        told = capsys.readouterr().out
        assert "3 samples" in told
        assert (f"note: {tmp_path}/a.tar: {note}" in told) if note else "note:" not in told


def test_a_tar_of_several_is_read_as_one(tmp_path: Path) -> None:
    parts = [
        write_tar(tmp_path / f"{name}.part", names) for name, names in (("a", ["1.jpg"]), ("b", ["2.jpg", "2.txt"]))
    ]
    (tmp_path / "ab.tar").write_bytes(b"".join(part.read_bytes() for part in parts))
    tars = index_tars([tmp_path / "ab.tar"], tmp_path)
    assert samples_of(tars) == {"1": {"jpg": b"1.jpg"}, "2": {"jpg": b"2.jpg", "txt": b"2.txt"}}
    assert tars.tars[0].notes == ()


def test_keys_are_told_apart_as_they_are(tmp_path: Path) -> None:
    names = [f"{key}.{extension}" for key in ("1", "01", "001", "x/1", "1_") for extension in ("jpg", "txt")]
    tars = index_tars([write_tar(tmp_path / "a.tar", names)], tmp_path)
    found = samples_of(tars, ("jpg", "txt"))
    assert {key: sample["txt"].decode() for key, sample in found.items()} == {
        key: f"{key}.txt" for key in ("1", "01", "001", "x/1", "1_")
    }


def test_a_key_that_comes_twice_is_named_as_it_is(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", ["data/003.jpg", "data/001.jpg", "data/003.txt"])
    with pytest.raises(ValueError, match=r"a\.tar: the sample 'data/003' is there twice, or its members lie apart"):
        index_tars([tar], tmp_path)
    tar = write_tar(tmp_path / "b.tar", ["01.jpg", "1.jpg", "01.txt"])
    with pytest.raises(ValueError, match=r"b\.tar: the sample '01' is there twice, or its members lie apart"):
        index_tars([tar], tmp_path)


def test_a_fault_names_the_sample_by_its_key(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", ["data/003.jpg", "data/003.txt"])
    tars = index_tars([tar], tmp_path)
    tar.write_bytes(tar.read_bytes().replace(b"data/003.txt", b"data/0x3.txt"))
    (batch,) = evaluation_stream(TarReader(tars, ()), batch=9, workers=0)
    assert batch.samples == [None]
    assert batch.faults == [
        f"{tar}: sample data/003 at byte 0: a member 'data/0x3.txt' lies there; the index is of another tar"
    ]


@pytest.mark.parametrize("workers", [0, 1])
def test_whatever_a_decoder_raises_is_a_fault_of_the_sample(tmp_path: Path, workers: int) -> None:
    tars = index_tars(
        [write_tar(tmp_path / "a.tar", [f"{n}.{'json' if n % 2 else 'txt'}" for n in range(4)])], tmp_path
    )
    batches = list(evaluation_stream(TarReader(tars, (), decode=json_of), batch=2, workers=workers))
    assert [sample for batch in batches for sample in batch.samples] == [None] * 4
    told = [fault for batch in batches for fault in batch.faults]
    assert ["KeyError in json_of: 'json'" in fault for fault in told] == [True, False] * 2
    assert len(told) == 4


# ---- what is written and read ----------------------------------------------------------------------------------------


def test_a_tar_that_changed_at_the_same_length_is_indexed_again(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", ["1.jpg", "2.txt"])
    index_tars([tar], tmp_path)
    write_tar(tar, ["1.txt", "2.jpg"])
    os.utime(tar, ns=(0, 1))  # whatever the clock's steps
    assert samples_of(index_tars([tar], tmp_path)) == {"1": {"txt": b"1.txt"}, "2": {"jpg": b"2.jpg"}}


@pytest.mark.parametrize("damage", [b"", b"damaged", None])
@pytest.mark.parametrize("suffix", [".npy", ".links.npy", ".json"])
def test_what_was_written_about_a_tar_is_made_again_where_it_is_damaged(
    tmp_path: Path, damage: bytes | None, suffix: str
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("1.jpg"))
        link = tarfile.TarInfo("2.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "1.jpg"
        archive.addfile(link)
    index_tars([tmp_path / "a.tar"], tmp_path)
    before = snapshot(tmp_path)
    (path,) = [
        path
        for path in (tmp_path / "tars.index").iterdir()
        if path.name.endswith(suffix) and path.name.count(".") == suffix.count(".")
    ]
    if damage is None:
        path.write_bytes(path.read_bytes()[:-1] + b"~")
    else:
        path.write_bytes(damage)
    index_tars([tmp_path / "a.tar"], tmp_path)
    assert snapshot(tmp_path) == before


DYING = """
import os, signal, sys
from pathlib import Path

replace, renames = Path.replace, iter(range(int(sys.argv[1]) + 1))

def dying(self, target):
    if next(renames) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)

Path.replace = dying
from genre_dist.cli import main
main(["index", sys.argv[2], "--workers", "1"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("renames", range(4))
def test_killed_at_any_of_its_files_the_same_command_makes_what_one_never_killed_makes(
    tmp_path: Path, renames: int
) -> None:
    like_img2dataset(tmp_path / "whole", tars=2)
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    assert main(["index", str(tmp_path / "whole")]) == 0
    command = [sys.executable, "-c", DYING, str(renames), str(tmp_path / "killed")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert main(["index", str(tmp_path / "killed")]) == 0
    assert snapshot(tmp_path / "killed") == snapshot(tmp_path / "whole")


def told(folder: Path) -> Any:
    return json.loads((folder / "tars.json").read_text())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("file", "../x.tar"),
        ("file", "a/../../x.tar"),
        ("file", "https://example.com/../x.tar"),
        ("file", "\x1b[31m.tar"),
        ("file", ""),
        ("index_file", "../x.npy"),
        ("index_file", "/etc/passwd"),
        ("index_file", "https://example.com/x.npy"),
        ("identity", "/some/dir"),
        ("identity", "0" * 63),
        ("samples", -1),
        ("samples", 3),
        ("samples", True),
        ("bytes", "1"),
        ("bytes", 2**63),
        ("extensions", []),
        ("extensions", ["jpg"] * 2),
        ("extensions", ["j\x1bpg"]),
        ("extensions", [f"e{number}" for number in range(17)]),
        ("has", {"65536": 25}),
        ("has", {"-1": 25}),
        ("has", {"x": 25}),
        ("has", {}),
        ("links", -1),
        ("colour", "blue"),
    ],
)
def test_a_listing_that_cannot_be_is_refused_with_its_place(tmp_path: Path, key: str, value: object) -> None:
    like_img2dataset(tmp_path, tars=1)
    index_tars([tmp_path / "00000.tar"], tmp_path)
    listing = told(tmp_path)
    listing["tars"][0][key] = value
    (tmp_path / "tars.json").write_text(json.dumps(listing))
    with pytest.raises(ValueError, match=r"tars\.json: tars\.0.*genre-dist index.*run it again") as error:
        load_tars(tmp_path)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("place", ["tars.json", "about"])
def test_paths_that_a_listing_names_are_never_written_to(tmp_path: Path, place: str) -> None:
    (tmp_path / "listing").mkdir()
    like_img2dataset(tmp_path / "listing", tars=1)
    index_tars([tmp_path / "listing" / "00000.tar"], tmp_path / "listing")
    path = tmp_path / "listing/tars.json" if place == "tars.json" else next(tmp_path.glob("listing/tars.index/*.json"))
    path.write_text(path.read_text().replace("tars.index/", "../precious/").replace("00000.tar", "../00000.tar"))
    (tmp_path / "precious").mkdir()
    index_tars([tmp_path / "listing" / "00000.tar"], tmp_path / "listing")
    assert not list((tmp_path / "precious").iterdir())
    assert len(samples_of(load_tars(tmp_path / "listing"))) == 25


def test_a_tar_whose_name_is_no_name_for_ours_is_indexed_under_another(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / ("a b\\c" + "x" * 200 + ".tar"), ["1.jpg"])
    tars = index_tars([tar], tmp_path)
    assert tars.tars[0].index_file.startswith("tars.index/a b_cxxx")
    assert list(samples_of(load_tars(tmp_path))) == ["1"]
    with pytest.raises(ValueError, match=r"'a\\x1bb\.tar' cannot be listed"):
        index_tars([write_tar(tmp_path / "a\x1bb.tar", ["1.jpg"])], tmp_path)


def test_the_order_of_a_listing_that_an_earlier_version_wrote_is_the_same(tmp_path: Path) -> None:
    like_img2dataset(tmp_path, tars=2)
    tars = index_tars(sorted(tmp_path.glob("*.tar")), tmp_path)
    listing = told(tmp_path)
    for about in listing["tars"]:
        for new in ("version", "links", "notes"):
            del about[new]
    (tmp_path / "tars.json").write_text(json.dumps(listing))
    old = load_tars(tmp_path)
    assert old.fingerprint == tars.fingerprint
    assert list(samples_of(old)) == list(samples_of(tars))


def test_one_process_at_a_time_indexes_into_a_folder_and_its_lock_is_no_tar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    like_img2dataset(tmp_path, tars=1)
    (tmp_path / "tars.index").mkdir()
    (tmp_path / "tars.index" / f"x.npy.{os.uname().nodename}-999999999-0123abcd.tmp").touch()
    with one_writer(tmp_path):
        assert main(["index", str(tmp_path)]) == 2
        assert "is being written by process" in capsys.readouterr().err
    assert main(["index", str(tmp_path)]) == 0
    assert main(["index", str(tmp_path)]) == 0
    assert "25 samples of 1 tars" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.tmp"))
