"""Tar headers, read in place from a buffer and written without extensions.

The module covers what a shard needs: regular files, with names and sizes from USTAR, from PAX records (webdataset's
writer makes one for every member) or from GNU long names. See POSIX.1-2017, pax, "ustar Interchange Format".
"""

import mmap
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

BLOCK = 512
END = bytes(2 * BLOCK)


FILE, HARD_LINK, SYMBOLIC_LINK = "file", "hard link", "symbolic link"
KINDS = {
    **dict.fromkeys((b"0", b"\0", b"7"), FILE),
    b"1": HARD_LINK,
    b"2": SYMBOLIC_LINK,
    b"3": "device",
    b"4": "device",
    b"5": "folder",
    b"6": "pipe",
    b"S": "sparse file",
}
LONGEST_EXTENSION = 1 << 20
"""Bytes of PAX records or of a long name."""


class Member(NamedTuple):
    """One entry of a tar: its name and the offset of its content in the buffer."""

    name: str
    start: int
    size: int
    header: int
    """Offset of its first header, which may be one that extends it."""
    kind: str = FILE
    target: str = ""
    """Target of a link: a hard link names a member, a symbolic link a path relative to its own folder."""


def padded(size: int) -> int:
    """Bytes a member's content takes in a tar: up to the next whole block."""
    return -(-size // BLOCK) * BLOCK


def header(name: str, size: int) -> bytes:
    """The 512-byte USTAR header of a regular file with mtime 0 and no owner, the same on every machine.

    (A sample has three; tarfile takes 27 us for one, this function 4.) Raises ValueError if name or size do not fit.
    """
    encoded = name.encode()
    if len(encoded) > 100 or size >> 33:  # the name must be split, or nothing fits
        import tarfile  # imported here: readers do not need it

        info = tarfile.TarInfo(name)
        info.size = size
        return info.tobuf(format=tarfile.USTAR_FORMAT)
    number, spaces = b"0000000", b" " * 8  # the checksum sums all bytes, its own eight as spaces
    block = _WRITTEN.pack(encoded, b"0000644", number, number, b"%011o" % size, b"0" * 11, spaces, b"0", b"ustar\x0000")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def members(buffer: bytes | memoryview) -> Iterator[Member]:
    """Regular files in a part of a tar that begins at a header. Raises ValueError as `entries` does."""
    return (entry for entry in entries(buffer) if entry.kind == FILE)


def entries(buffer: bytes | memoryview) -> Iterator[Member]:
    """All entries (files, links, folders, ...) in a part of a tar that begins at a header.

    Reading continues behind an end mark (zeros) if another tar follows (`cat a.tar b.tar`), as `tar --ignore-zeros`
    does. Raises ValueError with the offset at which the bytes are no tar, or end inside a header or a member.
    """
    view = memoryview(buffer)
    position, first = 0, 0
    fields: dict[str, str] = {}  # of the next member, from extension headers
    while position + BLOCK <= len(view):
        name, digits, kind, link, magic, prefix = _HEADER.unpack_from(
            view, position
        )  # one call, as this is the hot path
        if name[0] == 0 and view[position : position + BLOCK] == _ZEROS:
            position = first = behind_zeros(view, position)
            if view[position + 257 : position + 262] != b"ustar":
                return
            fields = {}
            continue
        if magic[:5] != b"ustar":  # the same in USTAR, PAX and GNU headers
            raise ValueError(f"no tar header at byte {position}")
        size, start = _number(digits, position), position + BLOCK
        extension = _EXTENSIONS.get(kind)
        is_plain = kind == b"0" and not fields
        if not is_plain and extension is None:
            size = 0 if kind in _WITHOUT_CONTENT else _decimal(fields["size"], position) if "size" in fields else size
            start = _behind_sparse_map(view, position) if kind == b"S" else start
        if size < 0 or start + size > len(view):
            raise ValueError(f"the member at byte {position} should have {size} bytes, {len(view) - start} are there")
        if is_plain:
            yield Member(_name(name, prefix if magic == b"ustar\0" else b""), start, size, first)
        elif extension is not None:
            if size > LONGEST_EXTENSION:
                raise ValueError(f"the extension at byte {position} has {size:,} bytes, over {LONGEST_EXTENSION:,}")
            fields |= extension(bytes(view[start : start + size]), position)
            position = start + padded(size)
            continue
        else:
            described = "sparse file" if "sparse" in fields else KINDS.get(kind, "entry of an unknown kind")
            plain_name = _name(name, prefix if magic == b"ustar\0" else b"")
            target = fields.get("linkpath") or _text(link)
            yield Member(fields.get("path") or plain_name, start, size, first, described, target)
            fields = {}
        position = first = start + padded(size)
    if position < len(view) and any(view[position:]):
        raise ValueError(f"the tar header at byte {position} is cut short")


def behind_zeros(view: memoryview, position: int) -> int:
    """Offset of the next block that is not all zeros; the end if there is none."""
    while position < len(view):
        chunk = view[position : position + _CHUNK]
        if rest := len(bytes(chunk).lstrip(b"\0")):
            return position + (len(chunk) - rest) // BLOCK * BLOCK
        position += len(chunk)
    return position


def _behind_sparse_map(view: memoryview, position: int) -> int:
    """Offset of a sparse file's content: its map may take more blocks than the header."""
    start, more = position + BLOCK, view[position + 482]
    while more and start + BLOCK <= len(view):
        more = view[start + 504]
        start += BLOCK
    return start


def mapped(path: Path) -> memoryview:
    """A local tar's bytes, mapped. Raises ValueError if it is empty or compressed."""
    with open(path, "rb") as file:
        if not path.stat().st_size:
            raise ValueError("the file is empty")
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    if bytes(data[:6]).startswith(_COMPRESSED):
        raise ValueError("it is compressed; samples can only be found in plain tars, so decompress it first")
    return data


_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ")  # gzip, bzip2, zstd, xz
_HEADER = struct.Struct("100s24x12s20xc100s6s82x155s12x")  # name, size, kind, link, magic, the prefix of a long name
_WRITTEN = struct.Struct("100s8s8s8s12s12s8ss100x8s247x")  # name, mode, owner, group, size, time, sum, kind, magic
_ZEROS = bytes(BLOCK)
_CHUNK = 1 << 20
_WITHOUT_CONTENT = b"123456"  # links, devices, folders, pipes: their size field has no meaning


def _number(digits: bytes, position: int) -> int:
    """A header's octal number, or GNU's base-256 one for sizes of 8 GiB and more."""
    if digits[0] & 0x80:
        return int.from_bytes(digits[1:], "big")
    try:
        return int(digits.strip(b" \0") or b"0", 8)
    except ValueError:
        raise ValueError(f"no tar header at byte {position}") from None


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _name(name: bytes, prefix: bytes) -> str:
    return f"{_text(prefix)}/{_text(name)}" if prefix[:1] > b"\0" else _text(name)


def _decimal(text: str, position: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise ValueError(f"the size of the member at byte {position} is no number")
    return int(text)


def _pax_records(data: bytes, position: int) -> dict[str, str]:
    """The used fields of PAX records: lines of `LENGTH KEY=VALUE\\n`, where LENGTH counts the whole line."""
    records, begin = {}, 0
    try:
        while begin < len(data):
            space = data.index(b" ", begin, begin + 8)
            end = begin + int(data[begin:space])
            if not space < end <= len(data):
                raise ValueError("a record of another length")
            key, _, value = data[space + 1 : end - 1].partition(b"=")
            if key in _RECORDS:
                records[_RECORDS[key]] = value.decode("utf-8", "surrogateescape")
            elif b"GNU.sparse." in key:
                records["sparse"] = ""
            begin = end
    except ValueError:
        raise ValueError(f"the PAX records at byte {position} are damaged") from None
    return records


_RECORDS = {b"path": "path", b"linkpath": "linkpath", b"size": "size", b"GNU.sparse.name": "path"}
_EXTENSIONS: dict[bytes, Callable[[bytes, int], dict[str, str]]] = {
    **dict.fromkeys((b"x", b"X"), _pax_records),
    b"g": lambda data, position: {},  # fields of the whole tar: times, comments
    b"L": lambda data, position: {"path": _text(data)},
    b"K": lambda data, position: {"linkpath": _text(data)},
}
"""Kind of extension header -> parser of its fields for the next member: path, linkpath, size, sparse."""
