"""The search for posters: what films say finds all that can be a poster, and the rest is counted with an example."""

import gzip
import io
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from genre_dist.catalogue import poster_search
from genre_dist.catalogue.left_out import LeftOut
from genre_dist.catalogue.poster_search import Look, TarMember, find_posters, poster_key, refuse_compressed

JPEG = b"\xff\xd8\xff\xe0 a JPEG"
PAGE = b"<html>404</html>"
SIX = {"1", "2", "3", "4", "5", "6"}


def found(place: Path, keys: set[str] = SIX) -> tuple[list[tuple[str, bytes]], list[str]]:
    """The posters on offer, and what was left out (paths below `place`'s folder)."""
    left_out = LeftOut()
    posters = [(poster.key, poster.read()) for poster in find_posters(place, keys, left_out)]
    return posters, [line.replace(f"{place.parent}/", "") for line in left_out.lines()]


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def tar_of(path: Path, *members: tuple[str, bytes | str], links: bytes = tarfile.LNKTYPE, **options: Any) -> Path:
    """A tar; a member whose content is a text is a link to that name."""
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = links, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


# ---- names


@pytest.mark.parametrize(
    "text",
    [
        *("abc", "abc.jpg", "/abc.JPG", "posters/abc.png", "C:\\posters\\abc.webp", "./a/abc.jpeg", "abc.jfif", "abc/"),
        *("https://image.tmdb.org/t/p/w500/abc.jpg", "http://host/abc.jpg?width=500#top", "abc.jpg.1", " abc.tiff "),
    ],
)
def test_paths_names_and_urls_are_compared_by_their_last_part_without_the_ending_of_a_picture(text: str) -> None:
    assert poster_key(text) == "abc"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("dr. strangelove", "dr. strangelove"),
        ("dr. strangelove.jpg", "dr. strangelove"),
        ("6.0", "6"),
        ("1.5.jpg", "1.5"),
        ("https://host/a%20b.png", "a b"),
        ("Ame\u0301lie.jpg", "Am\u00e9lie"),
        ("", ""),
        (".jpg", ".jpg"),
    ],
)
def test_only_the_ending_of_a_picture_is_taken_off(text: str, key: str) -> None:
    assert poster_key(text) == key


def test_a_file_may_end_in_anything_but_numbers(tmp_path: Path) -> None:
    write(tmp_path / "p", {"1.poster": JPEG, "2": JPEG, "3.jpg.1": JPEG, "4.5": JPEG, "5.5.jpg": JPEG})
    posters, left_out = found(tmp_path / "p")
    assert [key for key, _ in posters] == ["1", "2", "3"]
    assert left_out == ["2 posters without a row, left out, such as p/4.5"]


# ---- content


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xd8\xff\xe1Exif",
        b"\x89PNG\r\n\x1a\n....",
        b"RIFF\x10\x00\x00\x00WEBPVP8 ",
        b"GIF89a",
        b"BM\x46\x00\x00\x00\x00\x00\x00\x00\x36\x00",
        b"II*\0",
        b"MM\0*",
    ],
    ids=["JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF", "TIFF, big endian"],
)
@pytest.mark.parametrize("name", ["1.jpg", "1.JFIF", "1", "1.image"])
def test_pictures_are_told_by_their_content_whatever_they_are_called(tmp_path: Path, name: str, data: bytes) -> None:
    left_out = LeftOut()
    (poster,) = find_posters(write(tmp_path, {name: data}), SIX, left_out)
    assert (poster.key, poster.look, left_out.lines()) == ("1", Look.PICTURE, [])


def test_what_is_no_picture_is_counted_with_an_example(tmp_path: Path) -> None:
    write(tmp_path / "p", {"1.txt": b"BMW", "1.json": b"{}", "._2.jpg": b"mac", ".DS_Store": b"mac", "README": b""})
    assert found(tmp_path / "p") == ([], ["5 files that are no picture, such as p/.DS_Store"])


def test_pages_named_like_posters_and_empty_files_look_worse_than_pictures(tmp_path: Path) -> None:
    left_out = LeftOut()
    posters = find_posters(write(tmp_path, {"1.jpg": b"", "2.jpg": PAGE, "3.jpg": JPEG}), SIX, left_out)
    assert [poster.look for poster in posters] == [Look.EMPTY, Look.NO_PICTURE, Look.PICTURE]
    assert left_out.lines() == [
        "1 files that are named like pictures but are none, taken where there is nothing better, "
        f"such as {tmp_path}/2.jpg"
    ]


@pytest.mark.parametrize("pack", [lambda folder: folder, lambda folder: tar_of_folder(folder)], ids=["folder", "tar"])
def test_a_file_too_large_for_a_poster_is_not_read(
    tmp_path: Path, pack: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poster_search, "LARGEST_BYTES", 1 << 20)
    place = pack(write(tmp_path / "p", {"1.jpg": JPEG + bytes(1 << 20), "2.jpg": JPEG}))
    posters, (line,) = found(place)
    assert [key for key, _ in posters] == ["2"]
    assert line.startswith("1 posters of more than 1 MiB, left out, such as p")


def tar_of_folder(folder: Path) -> Path:
    return tar_of(folder.with_suffix(".tar"), *((path.name, path.read_bytes()) for path in sorted(folder.iterdir())))


# ---- folders


def test_links_to_files_and_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    write(
        tmp_path, {"p/1.jpg": JPEG, "real/2.jpg": JPEG + b"2", "real/deep/3.jpg": JPEG + b"3", "other/x": JPEG + b"4"}
    )
    (tmp_path / "p/more").symlink_to(tmp_path / "real")
    (tmp_path / "real/deep/up").symlink_to(tmp_path / "p")
    (tmp_path / "p/4.jpg").symlink_to(tmp_path / "other/x")
    (tmp_path / "p/5.jpg").symlink_to(tmp_path / "nowhere")
    posters, left_out = found(tmp_path / "p")
    assert posters == [("1", JPEG), ("4", JPEG + b"4"), ("2", JPEG + b"2"), ("3", JPEG + b"3")]
    assert left_out == ["1 places that cannot be read (No such file or directory), such as p/5.jpg"]


def test_pipes_and_closed_folders_are_counted_and_nothing_waits_for_them(tmp_path: Path) -> None:
    write(tmp_path / "p", {"closed/1.jpg": JPEG, "2.jpg": JPEG})
    os.mkfifo(tmp_path / "p/3.jpg")
    (tmp_path / "p/closed").chmod(0)
    try:
        posters, left_out = found(tmp_path / "p")
        is_closed = not os.access(tmp_path / "p/closed", os.R_OK)
    finally:
        (tmp_path / "p/closed").chmod(0o700)
    assert "1 things that are neither file nor folder, such as p/3.jpg" in left_out
    assert [key for key, _ in posters] == (["2"] if is_closed else ["2", "1"])
    assert ("1 places that cannot be read (Permission denied), such as p/closed" in left_out) == is_closed


# ---- tars


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE], ids=["hard", "symbolic"])
@pytest.mark.parametrize("compressed", [False, True])
def test_links_in_a_tar_give_what_they_lead_to(tmp_path: Path, kind: bytes, compressed: bool) -> None:
    members = [("./p/1.jpg", JPEG), ("p/2.jpg", "p/1.jpg" if kind == tarfile.LNKTYPE else "1.jpg"), ("p/9.jpg", "x")]
    members += [("p/3.jpg", "p/2.jpg" if kind == tarfile.LNKTYPE else "../p/2.jpg"), ("p/4.jpg", "/etc/passwd")]
    path = tar_of(tmp_path / "p.tar", *members, ("p/5.jpg", "p/5.jpg"), links=kind)
    if compressed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    posters, left_out = found(path)
    assert posters == [("1", JPEG), ("2", JPEG), ("3", JPEG)]
    assert left_out == [
        "2 links to what is not in their tar, such as p.tar, member 'p/4.jpg'",
        "1 links that no film is named after, such as p.tar, member 'p/9.jpg'",
    ]


@pytest.mark.parametrize(
    "options", [{"format": tarfile.PAX_FORMAT}, {"format": tarfile.GNU_FORMAT}], ids=["PAX", "GNU"]
)
def test_long_names_are_read_and_every_place_can_be_read_again_by_itself(tmp_path: Path, options: Any) -> None:
    long = f"{'folder/' * 40}{'é' * 60}/2.jpg"
    path = tar_of(tmp_path / "p.tar", ("1.jpg", JPEG), (long, JPEG + b"2"), ("3.jpg", long), **options)
    places = {poster.key: poster.source for poster in find_posters(path, SIX, LeftOut())}
    assert {key: place.read_bytes() for key, place in places.items()} == {
        "1": JPEG,
        "2": JPEG + b"2",
        "3": JPEG + b"2",
    }


def test_more_zeros_at_a_tars_end_than_tar_writes_are_told(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "p.tar", ("1.jpg", JPEG))
    assert found(path) == ([("1", JPEG)], [])
    with open(path, "ab") as file:
        file.write(bytes(30_720))  # as where a copy has made room and broken off
    assert found(path)[1] == ["1 tars with more zeros at their end than tar writes: not copied whole?, such as p.tar"]


@pytest.mark.parametrize("pack", [lambda folder: folder, lambda folder: tar_of_folder(folder)], ids=["folder", "tar"])
def test_every_file_that_is_looked_at_is_progress(tmp_path: Path, pack: Callable[[Path], Path]) -> None:
    place, calls = pack(write(tmp_path / "p", {f"unwanted-{number}.jpg": JPEG for number in range(5)})), []
    assert list(find_posters(place, SIX, LeftOut(), lambda: calls.append(1))) == []
    assert len(calls) == 5


def test_a_sparse_member_has_its_holes(tmp_path: Path) -> None:
    data = JPEG + bytes(1 << 20) + b"end"
    with open(tmp_path / "1.jpg", "wb") as file:
        file.write(JPEG)
        file.seek(1 << 20, os.SEEK_CUR)
        file.write(b"end")
    assert (tmp_path / "1.jpg").read_bytes() == data
    for number, form in enumerate(("gnu", "posix")):
        path = tmp_path / f"{number}.tar"
        made = subprocess.run(["tar", f"--format={form}", "-S", "-C", tmp_path, "-cf", path, "1.jpg"], check=False)
        if made.returncode:
            pytest.skip("no GNU tar here")
        assert found(path)[0] == [("1", data)]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("zeros", [0, 10_240])
def test_tars_that_were_put_together_are_read_to_their_end(tmp_path: Path, compressed: bool, zeros: int) -> None:
    pieces = [tar_of(tmp_path / f"{n}.tar", (f"{n}.jpg", JPEG + b"%d" % n)).read_bytes() for n in range(1, 4)]
    joined = bytes(zeros).join(pieces)
    (tmp_path / "p.tar").write_bytes(gzip.compress(joined) if compressed else joined)
    assert found(tmp_path / "p.tar") == ([(str(n), JPEG + b"%d" % n) for n in range(1, 4)], [])


@pytest.mark.parametrize(
    ("tail", "problem"),
    [(b"\0" * 700, None), (b"no tar" * 200, r"no end mark at byte 10240"), (b"x", r"no end mark at byte 10240")],
    ids=["zeros", "something else", "a byte"],
)
def test_behind_the_end_mark_there_is_nothing_but_zeros_or_another_tar(
    tmp_path: Path, tail: bytes, problem: str | None
) -> None:
    path = tar_of(tmp_path / "p.tar", ("1.jpg", JPEG))
    path.write_bytes(path.read_bytes() + tail)
    if problem is None:
        assert found(path) == ([("1", JPEG)], [])
        return
    with pytest.raises(ValueError, match=rf"p\.tar is damaged at or after member '1\.jpg' .*{problem}"):
        found(path)


def test_a_plain_tar_can_be_looked_up_and_a_compressed_one_is_refused(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "p.tar", ("1.jpg", JPEG))
    refuse_compressed(path)
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(ValueError, match=r"p\.tar is no plain tar .*: decompress or unpack it, or import it"):
        refuse_compressed(path)


def test_a_tar_that_changed_since_it_was_searched_is_told(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "p.tar", ("1.jpg", JPEG), ("2.jpg", JPEG))
    with pytest.raises(ValueError, match=r"p\.tar is damaged at or after byte 700 "):
        TarMember(path, 700).read_bytes()
