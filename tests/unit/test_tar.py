"""Tar pieces: read as Python's tarfile reads them, written the same on every machine."""

import io
import subprocess
import tarfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genre_dist.stream import tar

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT}
Files = list[tuple[str, bytes]]


def archive(files: Files, kind: int, **fields: object) -> bytes:
    """A tar made by Python's tarfile."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as out:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for field, value in fields.items():
                setattr(info, field, value)
            out.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def contents(data: bytes) -> Files:
    return [(member.name, data[member.start : member.start + member.size]) for member in tar.members(data)]


def one(name: str, data: bytes) -> bytes:
    return tar.header(name, len(data)) + data + bytes(tar.padded(len(data)) - len(data))


# ---- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    "name",
    ["7.jpg", "a" * 99, "a" * 100, "folder/" * 20 + "7.tokens.npy", "d" * 120 + "/" + "n" * 90, "ÄÖ/映画.json"],
)
def test_names_and_bytes_are_those_that_tarfile_wrote(kind: str, name: str) -> None:
    files = [(name, b"poster" * 100), ("8.jpg", b"")]
    data = archive(files, FORMATS[kind])
    with tarfile.open(fileobj=io.BytesIO(data)) as same:
        assert [member.name for member in same] == [name for name, _ in files]
    assert contents(data) == files


@pytest.mark.parametrize("kind", ["pax", "gnu"])
def test_names_longer_than_ustar_allows_are_whole(kind: str) -> None:
    files = [("x" * 300 + ".jpg", b"1"), ("short.jpg", b"2"), ("ключ" * 100, b"3")]
    assert contents(archive(files, FORMATS[kind])) == files


def test_a_pax_header_for_every_member_as_webdataset_writes_them() -> None:
    files = [("1.jpg", b"abc"), ("1.json", b"{}"), ("2.jpg", b"d" * 1000)]
    data = archive(files, tarfile.PAX_FORMAT, mtime=1700000000.25)
    assert data.count(b"mtime=") == 3
    assert contents(data) == files


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.text("abcé文.1", min_size=1, max_size=150), st.binary(max_size=1500)), max_size=6),
    st.sampled_from(["pax", "gnu"]),
)
def test_any_archive_is_read_as_tarfile_reads_it(files: Files, kind: str) -> None:
    data = archive(files, FORMATS[kind])
    with tarfile.open(fileobj=io.BytesIO(data)) as same:
        wanted = [(member.name, same.extractfile(member).read()) for member in same if member.isfile()]  # type: ignore[union-attr]
    assert contents(data) == wanted


def test_folders_and_links_are_passed_over() -> None:
    data = archive([("folder", b"")], tarfile.USTAR_FORMAT, type=tarfile.DIRTYPE)[:512]
    data += archive([("link", b"")], tarfile.USTAR_FORMAT, type=tarfile.SYMTYPE, linkname="/etc/passwd")[:512]
    assert contents(data + one("9.jpg", b"file")) == [("9.jpg", b"file")]


def test_a_piece_of_an_archive_needs_no_end_marker() -> None:
    piece = one("1.jpg", b"a") + one("1.json", b"b")
    assert contents(piece) == contents(piece + tar.END) == contents(piece + tar.END + b"left over" * 100)


@pytest.mark.parametrize("zeros", [512, 1024, 10240, 3 << 20])
def test_an_archive_behind_another_one_is_read_on(zeros: int) -> None:
    one_after_another = one("1.jpg", b"a") + bytes(zeros) + one("2.jpg", b"b") + tar.END
    assert contents(one_after_another) == [("1.jpg", b"a"), ("2.jpg", b"b")]


@pytest.mark.parametrize("kind", FORMATS)
def test_links_have_no_content_whatever_size_they_tell_and_name_their_target(kind: str) -> None:
    target = "t" * 90 if kind == "ustar" else "folder/" * 30 + "t.jpg"
    for link, name in ((tarfile.LNKTYPE, "hard link"), (tarfile.SYMTYPE, "symbolic link")):
        info = tarfile.TarInfo("link.jpg")
        info.type, info.linkname = link, target
        data = info.tobuf(format=FORMATS[kind]) + one("1.jpg", b"a")
        entries = list(tar.entries(data))
        assert [(entry.kind, entry.target) for entry in entries] == [(name, target), ("file", "")]
        assert contents(data) == [("1.jpg", b"a")]


def gnu_tar(folder: Path, *options: str) -> bytes:
    subprocess.run(["tar", "-c", "-f", folder / "x.tar", *options], cwd=folder, check=True)
    return (folder / "x.tar").read_bytes()


@pytest.mark.parametrize("form", ["gnu", "posix"])
def test_sparse_files_are_told_and_what_follows_them_is_read(tmp_path: Path, form: str) -> None:
    with open(tmp_path / "1.bin", "wb") as file:
        for hole in range(40):  # a map that is longer than a header takes
            file.seek(hole * 65_536)
            file.write(b"x" * 4096)
    (tmp_path / "2.jpg").write_bytes(b"poster")
    data = gnu_tar(tmp_path, "--sparse", f"--format={form}", "1.bin", "2.jpg")
    assert [(entry.name, entry.kind) for entry in tar.entries(data)] == [("1.bin", "sparse file"), ("2.jpg", "file")]
    assert contents(data) == [("2.jpg", b"poster")]


@pytest.mark.parametrize("size", ["7", "600"])
def test_a_size_in_a_pax_record_counts(size: str) -> None:
    record = f"{len(size) + (8 if len(size) == 1 else 9)} size={size}\n".encode()
    extension = bytearray(tar.header("pax", len(record)))
    extension[156] = ord("x")
    content = b"c" * int(size)
    member = tar.header("1.jpg", 0) + content + bytes(tar.padded(len(content)) - len(content))
    data = bytes(extension) + record.ljust(512, b"\0") + member + one("2.jpg", b"b")
    assert contents(data) == [("1.jpg", content), ("2.jpg", b"b")]


@pytest.mark.parametrize("kind", [b"x", b"L", b"K"])
def test_an_extension_of_gigabytes_is_refused_before_memory_is_taken(kind: bytes) -> None:
    extension = bytearray(tar.header("pax", 0))
    extension[124:136], extension[156] = b"%011o\0" % (4 << 20), kind[0]
    with pytest.raises(ValueError, match="extension at byte 0 has 4,194,304 bytes, over 1,048,576"):
        list(tar.entries(bytes(extension) + bytes(4 << 20)))


# ---- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 100, 511, 512, 600, 1011])
def test_a_piece_cut_short_is_refused_with_the_byte_where_its_last_member_begins(cut: int) -> None:
    whole = one("1.json", b"{}") + one("1.jpg", b"j" * 500)
    with pytest.raises(ValueError, match="byte 1024"):
        list(tar.members(whole[: 1024 + cut]))


def test_a_piece_cut_in_the_padding_has_all_its_bytes() -> None:
    assert contents(one("1.jpg", b"abc")[:600]) == [("1.jpg", b"abc")]


@pytest.mark.parametrize("garbage", [b"x" * 2048, b" " * 512, b"\xff" * 512, b"\xff\xd8\xff\xe0JFIF" * 100])
def test_what_is_no_tar_is_refused_with_its_byte(garbage: bytes) -> None:
    with pytest.raises(ValueError, match="no tar header at byte 0"):
        list(tar.members(garbage))
    with pytest.raises(ValueError, match="no tar header at byte 1024"):
        list(tar.members(one("1.jpg", b"a") + garbage))


@pytest.mark.parametrize("size", [b"zzzz", b"-0000001130\0", b"77777777777\0", b"\xff" * 12])
def test_a_size_that_cannot_be_is_refused(size: bytes) -> None:
    header = bytearray(one("1.jpg", b"abc"))
    header[124 : 124 + len(size)] = size
    with pytest.raises(ValueError, match="byte 0"):
        list(tar.members(header))


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_damage_anywhere_gives_members_or_a_value_error(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
    piece = bytearray(archive([("ä" * 60, b"a" * 30), ("1.json", b"{}")], kind))[:4096]
    for place in data.draw(st.lists(st.integers(0, len(piece) - 1), max_size=4)):
        piece[place] = data.draw(st.sampled_from([0, 0x20, 0x2D, 0x30, 0x37, 0x78, 0xFF]))
    with suppress(ValueError):
        assert all(0 <= member.start + member.size <= len(piece) for member in tar.members(piece))


@pytest.mark.parametrize("record", [b"0 path=x\n", b"-9 path=x\n", b"99 path=x\n", b"path=x\n", b"\xff\xfe"])
def test_a_damaged_pax_record_is_refused(record: bytes) -> None:
    header = bytearray(tar.header("pax", len(record)))
    header[156] = ord("x")
    with pytest.raises(ValueError):  # noqa: PT011 - whatever is wrong with it
        list(tar.members(bytes(header) + record.ljust(512, b"\0") + one("1.jpg", b"a")))


# ---- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size"), [("1.jpg", 0), ("123456789.tokens.npy", 12345), ("d" * 90 + "/" + "n" * 90, 1)]
)
def test_a_header_is_tarfiles_own_without_time_and_owner(name: str, size: int) -> None:
    header = tar.header(name, size)
    assert header == tar.header(name, size) == archive([(name, bytes(size))], tarfile.USTAR_FORMAT)[:512]
    info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
    assert (info.name, info.size, info.mtime, info.uid, info.gid, info.uname, info.gname) == (
        name,
        size,
        0,
        0,
        0,
        "",
        "",
    )
    assert header[257:265] == b"ustar\x0000"


def test_an_archive_of_our_headers_is_read_by_tarfile() -> None:
    files = [("1.json", b"{}"), ("1.jpg", b"x" * 513), ("2.jpg", b"")]
    data = b"".join(one(name, content) for name, content in files) + tar.END
    with tarfile.open(fileobj=io.BytesIO(data)) as same:
        assert [(member.name, same.extractfile(member).read()) for member in same] == files  # type: ignore[union-attr]


@pytest.mark.parametrize(("size", "space"), [(0, 0), (1, 512), (512, 512), (513, 1024)])
def test_members_take_whole_blocks(size: int, space: int) -> None:
    assert tar.padded(size) == space
