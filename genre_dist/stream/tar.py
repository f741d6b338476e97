"""Tar headers, read in place from a buffer and written without extensions.

Only what a shard needs: regular files, with names and sizes from USTAR, from PAX records (webdataset's own writer makes
one for every member) or from GNU long names. See POSIX.1-2017, pax, "ustar Interchange Format".
"""

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

BLOCK = 512
END = bytes(2 * BLOCK)


class Member(NamedTuple):
    """One regular file of a tar: its name and where its bytes lie in the buffer."""

    name: str
    start: int
    size: int
    header: int
    """Where its first header begins, those that extend it included."""


def padded(size: int) -> int:
    """Bytes a member's content takes in a tar: up to the next whole block."""
    return -(-size // BLOCK) * BLOCK


def header(name: str, size: int) -> bytes:
    """The 512-byte USTAR header of a regular file with mtime 0 and no owner, the same on every machine."""
    import tarfile  # not for those who only read

    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(format=tarfile.USTAR_FORMAT)


def members(buffer: bytes | memoryview) -> Iterator[Member]:
    """Regular files in a piece of a tar that begins at a header.

    Raises ValueError naming the offset where the piece is no tar, or ends inside a header or a member.
    """
    view = memoryview(buffer)
    position, first, long_name, long_size = 0, 0, None, None
    while position + BLOCK <= len(view):
        name, digits, kind, magic, prefix = _HEADER.unpack_from(view, position)  # one call: this is the hot path
        if name[0] == 0:  # the end marker: two blocks of zeros
            return
        if magic[:5] != b"ustar":  # the same in USTAR, PAX and GNU headers
            raise ValueError(f"no tar header at byte {position}")
        size = _number(digits, position)
        if long_size is not None and kind not in b"xgL":
            size = long_size
        start = position + BLOCK
        if size < 0 or start + size > len(view):
            raise ValueError(f"the member at byte {position} should have {size} bytes, {len(view) - start} are there")
        if kind == b"x":
            records = _pax_records(view[start : start + size].tobytes())
            long_name = records.get("path", long_name)
            long_size = int(records["size"]) if "size" in records else long_size
        elif kind == b"L":
            long_name = _text(view[start : start + size].tobytes())
        else:
            if kind in (b"0", b"\0"):
                yield Member(long_name or _name(name, prefix if magic == b"ustar\0" else b""), start, size, first)
            first, long_name, long_size = start + padded(size), None, None
        position = start + padded(size)
    if position < len(view) and view[position]:
        raise ValueError(f"the tar header at byte {position} is cut short")


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
_HEADER = struct.Struct("100s24x12s20xc100x6s82x155s12x")  # name, size, kind, magic, and the prefix of a long name


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


def _pax_records(data: bytes) -> dict[str, str]:
    """PAX records: lines of `LENGTH KEY=VALUE\\n`, LENGTH counting the whole line."""
    records = {}
    while data:
        length = int(data[: data.index(b" ")])
        if not 0 < length <= len(data):
            raise ValueError(f"a PAX record of {length} bytes where {len(data)} are left")
        key, _, value = data[data.index(b" ") + 1 : length - 1].partition(b"=")
        records[key.decode()] = value.decode("utf-8", "surrogateescape")
        data = data[length:]
    return records
