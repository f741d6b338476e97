"""The search for posters, in folders (recursively) and in tars, by the keys in their file names.

Import and predict both search here, so that they find the same posters. The content decides whether a file is an image,
whatever its name ends in. Every file is either a candidate or counted as left out.
"""

import os
import posixpath
import re
import stat
import tarfile
import unicodedata
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from enum import IntEnum
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, NamedTuple
from urllib.parse import unquote

from genre_dist.catalogue.cells import whole_number
from genre_dist.catalogue.left_out import LeftOut
from genre_dist.printable import printable
from genre_dist.schema import TMDB, Schema, plural, with_article
from genre_dist.storage import opened

ENDINGS = (
    *("jpg", "jpeg", "jpe", "jfif", "pjpeg", "pjp", "png", "webp", "gif", "bmp", "dib", "tif", "tiff"),
    *("avif", "heic", "heif", "jp2", "jxl", "svg"),  # not readable, but reported
)
_MAGIC = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF....WEBP|GIF8[79]a|BM....\0\0\0\0|II\*\0|MM\0\*",
    re.DOTALL,
)
_ENDING = re.compile(rf"(?<=[^/\\])\.({'|'.join(ENDINGS)})(\.[0-9]+)?$", re.IGNORECASE)  # `.jpg.1` is wget's
HEAD_BYTES = 16
LARGEST_BYTES = 64 << 20
MOST_LINKS = 8
"""Longest chain of links that is followed."""


class Look(IntEnum):
    """The quality of a file as a poster: of several files for one film, the first of the best quality is used."""

    EMPTY = 0
    NO_PICTURE = 1
    PICTURE = 2


class TarMember(NamedTuple):
    """A file in an uncompressed tar."""

    tar: Path
    offset: int
    """The byte at which its first header begins."""

    def __str__(self) -> str:
        return f"{self.tar}, byte {self.offset}"

    def read_bytes(self) -> bytes:
        """The file's content. Raises ValueError if the tar has changed since the search."""
        with _damage_at(self.tar, f"byte {self.offset}"), open(self.tar, "rb") as file:
            file.seek(self.offset)
            with tarfile.TarFile(fileobj=file) as tar:
                member = tar.next()
                if member is None or member.size > LARGEST_BYTES:
                    raise tarfile.ReadError("no poster there")
                return _content(tar, member).read()


class Poster(NamedTuple):
    """A candidate for a film's poster. Its file is open until the iterator advances."""

    key: str
    look: Look
    source: Path | TarMember
    where: str
    """The source in words, for messages."""
    file: IO[bytes]

    def read(self) -> bytes:
        """The file's content. Raises ValueError if its tar is damaged there."""
        path = self.source if isinstance(self.source, Path) else self.source.tar
        with _damage_at(path, self.where):
            return self.file.read()


class _File(NamedTuple):
    name: str
    size: int
    source: Path | TarMember
    where: str
    open: Callable[[], IO[bytes]]


def poster_key(text: str) -> str:
    """The key of a file name or a table's cell: its last path component, without the ending of an image.

    `abc`, `/abc.jpg`, `posters/abc.PNG` and `https://host/w500/abc.jpg?v=2` have the same key.
    """
    if "://" in text:
        text = unquote(re.split("[?#]", text.partition("://")[2])[0])
    last = re.split(r"[/\\]", text.rstrip("/\\"))[-1].strip()
    return unicodedata.normalize("NFC", whole_number(_ENDING.sub("", last)))


def further_files(declared: Schema) -> str:
    """The reason under which all files of a sample but the best are left out."""
    return f"further files for {declared.samples} that have {with_article(declared.image)}, left out"


def find_posters(
    source: Path,
    keys: Container[str],
    left_out: LeftOut,
    progress: Callable[[], None] = lambda: None,
    declared: Schema = TMDB,
) -> Iterator[Poster]:
    """The files of a folder or tar that are named by one of the keys, always in the same order.

    `progress` is called for every file; `declared` has the words for what is left out. Raises ValueError, naming the
    byte, when it reaches damage in a tar.
    """
    posters = plural(declared.image)
    in_tar = partial(_tar_files, source, keys, left_out, declared.sample)
    for file in _folder_files(source, left_out) if source.is_dir() else in_tar():
        progress()
        key = _key_among(file.name, keys)
        is_named_so = _ENDING.search(file.name) is not None and not posixpath.basename(file.name).startswith(".")
        if key is None and is_named_so:
            left_out.add(f"{posters} without a row, left out", file.where)
            continue
        try:
            content = file.open()
            head = content.peek(HEAD_BYTES)  # type: ignore[attr-defined]  # all are buffered
        except Exception as error:
            if isinstance(file.source, TarMember):
                raise _damaged(file.source.tar, file.where, error) from error
            left_out.add("files that cannot be read", f"{file.where} ({error})")
            continue
        with content:
            look = Look.EMPTY if not file.size else Look.PICTURE if _MAGIC.match(head) else Look.NO_PICTURE
            if look is not Look.PICTURE and not is_named_so:
                left_out.add("files that are no picture", file.where)
            elif key is None:
                left_out.add(f"{posters} without a row, left out", file.where)
            elif file.size > LARGEST_BYTES:
                left_out.add(f"{posters} of more than {LARGEST_BYTES >> 20} MiB, left out", file.where)
            else:
                if look is Look.NO_PICTURE:
                    left_out.add(
                        "files that are named like pictures but are none, taken where there is nothing better",
                        file.where,
                    )
                yield Poster(key, look, file.source, file.where, content)


def refuse_compressed(tar: Path) -> None:
    """Raise ValueError for a file that is no plain tar, the only kind that allows random access."""
    try:
        with tarfile.open(tar, "r:"):
            return
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise ValueError(
            f"{tar} is no plain tar ({printable(error)}): decompress or unpack it, or import it and predict the "
            "catalogue"
        ) from None


def _key_among(name: str, keys: Container[str]) -> str | None:
    """The key in a file's name; the name may also end in something that is no image's ending."""
    key = poster_key(name)
    stem, _, ending = key.rpartition(".")
    if key in keys:
        return key
    return stem if stem in keys and not ending.isdecimal() and not _ENDING.search(name) else None


def _folder_files(folder: Path, left_out: LeftOut) -> Iterator[_File]:
    """The files below a folder, links followed; each folder is visited once."""
    seen: set[tuple[int, int]] = set()

    def unreadable(error: OSError) -> None:
        left_out.add(f"places that cannot be read ({error.strerror})", error.filename)

    for parent, folders, names in os.walk(folder, followlinks=True, onerror=unreadable):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()  # of two equally good files the first is used: the order must not vary
        for name in sorted(names):
            path = Path(parent, name)
            try:
                status = path.stat()
            except OSError as error:
                unreadable(error)
                continue
            if stat.S_ISREG(status.st_mode):
                yield _File(name, status.st_size, path, str(path), partial(opened, path))
            else:
                left_out.add("things that are neither file nor folder", path)


def _tar_files(path: Path, keys: Container[str], left_out: LeftOut, sample: str) -> Iterator[_File]:
    """The files of a tar, in order, then the targets of its links under the links' names. No name becomes a path."""
    links: dict[str, list[str]] = {}  # target -> names of the links to it
    for tar, member in _members(path, left_out):
        if member.isreg():
            yield _tar_file(path, tar, member, member.name)
        elif member.islnk() or member.issym():
            if _key_among(member.name, keys) is None:
                left_out.add(f"links that no {sample} is named after", f"{path}, member {member.name!r}")
            else:
                links.setdefault(_target(member), []).append(member.name)
        elif not member.isdir():
            left_out.add("things that are neither file nor folder", f"{path}, member {member.name!r}")
    lost: list[str] = []
    for _ in range(MOST_LINKS):
        if not links:
            break
        further: dict[str, list[str]] = {}
        for tar, member in _members(path):
            names = links.pop(posixpath.normpath(member.name), [])
            if names and not member.isreg():
                further.setdefault(_target(member), []).extend(names)
            for name in names if member.isreg() else ():
                yield _tar_file(path, tar, member, name)
        lost.extend(chain(*links.values()))
        links = further
    for name in chain(lost, *links.values()):
        left_out.add("links to what is not in their tar", f"{path}, member {name!r}")


def _target(member: tarfile.TarInfo) -> str:
    """The member that a link leads to: hard links hold its name, symbolic ones a relative path."""
    base = posixpath.dirname(member.name) if member.issym() else ""
    return posixpath.normpath(posixpath.join(base, member.linkname))


def _tar_file(path: Path, tar: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> _File:
    where = f"{path}, member {name!r} (byte {member.offset})"
    return _File(name, member.size, TarMember(path, member.offset), where, partial(_content, tar, member))


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(member)
    if file is None:
        raise tarfile.ReadError("no file there")
    return file


def _members(path: Path, left_out: LeftOut | None = None) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The members of a tar, and of further tars appended to it with `cat`."""
    where = "its beginning"
    try:
        archive = tarfile.open(path)  # noqa: SIM115 (the with below; an archive that cannot be opened is another error)
    except Exception as error:
        raise ValueError(
            f"{path} is no tar, or cut off at its start; unpack other archives and give the folder"
        ) from error
    with archive as tar:
        reached = -1
        while True:
            with _damage_at(path, where):
                member, end = tar.next(), tar.offset
                if member is None and not _goes_on(tar):
                    if left_out is not None and tar.offset - end > tarfile.RECORDSIZE + 2 * tarfile.BLOCKSIZE:
                        left_out.add("tars with more zeros at their end than tar writes: not copied whole?", path)
                    return
                if member is not None and (member.size < 0 or member.offset <= reached):
                    raise tarfile.ReadError(f"no tar header at byte {member.offset}")
            if member is not None:
                reached = member.offset
                where = f"member {member.name!r} (byte {member.offset})"
                yield tar, member
            tar.members.clear()  # type: ignore[attr-defined]  # tarfile remembers every member: memory that would grow with the archive


def _goes_on(tar: tarfile.TarFile) -> bool:
    """Step over an end mark; returns False if only zeros follow.

    Raises ReadError without an end mark: tarfile takes a damaged or missing header for the end of the archive.
    """
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"no end mark at byte {tar.offset}")
    tar.offset += tarfile.BLOCKSIZE
    while (block := tar.fileobj.read(tarfile.BLOCKSIZE)) == bytes(tarfile.BLOCKSIZE):
        tar.offset += tarfile.BLOCKSIZE
    if block.strip(b"\0"):
        tar.fileobj.seek(tar.offset)
        return True
    return False


@contextmanager
def _damage_at(path: Path, where: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # for damaged archives tarfile raises errors of many kinds
        raise _damaged(path, where, error) from error


def _damaged(path: Path, where: str, error: Exception) -> ValueError:
    where = where.removeprefix(f"{path}, ")
    return ValueError(f"{path} is damaged at or after {printable(where)} ({printable(error)}); fetch it again")
