"""Tar pieces: read as Python's tarfile reads them, written the same on every machine."""

import io
import tarfile
from contextlib import suppress

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


def test_a_piece_of_an_archive_needs_no_end_marker_and_ends_at_one() -> None:
    piece = one("1.jpg", b"a") + one("1.json", b"b")
    assert contents(piece) == contents(piece + tar.END) == contents(piece + tar.END + one("2.jpg", b"c"))


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
