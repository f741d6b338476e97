"""Word vectors, read as a stream: GloVe's and word2vec's files, also compressed. Only the wanted rows are kept."""

import gzip
import hashlib
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from genre_dist.storage import Place, exists, opened

LONGEST_LINE = 1 << 20  # bytes; what is longer is no line of text
LONGEST_WORD = 10_000  # bytes
CHUNK = 1 << 20

Row = tuple[str, NDArray[np.float32]]


def read_vectors(path: Place, wanted: Mapping[str, int] | set[str]) -> dict[str, NDArray[np.float32]]:
    """The wanted words' vectors, float32 [dim], of any width, from a file or a URL's place.

    Read are GloVe's and word2vec's text (`word number number ...` lines, with or without a first line `words width`),
    word2vec's `.bin`, each also as `.gz`, and the first `.txt` in a `.zip`. Raises ValueError naming the line or the
    word's number where the file is damaged or cut short.
    """
    found: dict[str, NDArray[np.float32]] = {}
    try:
        with _opened(path) as (file, name):
            rows = _binary_rows(file, path, wanted) if name.endswith(".bin") else _text_rows(file, path, wanted)
            for word, vector in rows:
                found.setdefault(word, vector)
    except (zipfile.BadZipFile, zlib.error, EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: damaged or cut short ({error}); fetch it again") from None
    return found


def file_sha256(path: Place) -> str:
    """The SHA-256 of a file of word vectors. Raises ValueError if there is none."""
    _require(path)
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _require(path: Place) -> None:
    if not (path.is_file() if isinstance(path, Path) else exists(path)):
        raise ValueError(f"{path}: no such file of word vectors")


@contextmanager
def _opened(path: Place) -> Iterator[tuple[IO[bytes], str]]:
    """The file's content, decompressed on the way, and its name without the compression's ending."""
    _require(path)
    if path.suffix == ".zip":
        with opened(path) as packed, zipfile.ZipFile(packed) as archive:
            names = [name for name in archive.namelist() if name.endswith(".txt")]
            if not names:
                raise ValueError(f"{path}: no .txt in this archive; unpack the vectors and name their file")
            with archive.open(names[0]) as file:
                yield file, names[0]
    elif path.suffix == ".gz":
        with opened(path) as packed, gzip.open(packed) as file:
            yield file, path.stem  # type: ignore[misc]
    else:
        with opened(path) as file:
            yield file, path.name


def _text_rows(file: IO[bytes], path: Place, wanted: Iterable[str]) -> Iterator[Row]:
    """Wanted words of a text file. The first line sets the width; every line is checked, few are parsed."""
    keys = {word.encode() for word in wanted}
    told, dim, rows, number = None, 0, 0, 0
    while line := file.readline(LONGEST_LINE):
        number += 1
        line = line.rstrip(b"\r\n").rstrip(b" ")
        spaces = line.count(b" ")
        if number == 1 and spaces == 1 and line.replace(b" ", b"").isdigit():
            told = [int(part) for part in line.split()]
            continue
        dim = dim or (told[1] if told else spaces)
        rows += 1
        if spaces < dim or dim < 1:
            raise ValueError(
                f"{path} line {number}: {spaces} values where there should be {max(dim, 1)}; the file is damaged or "
                "cut short, fetch it again or remove the line"
            )
        parts = line.rsplit(b" ", dim) if spaces > dim else line.split(b" ", 1)
        word = parts[0]  # with spaces in GloVe 840B
        if spaces > dim and _is_number(word.rsplit(b" ", 1)[-1]):
            raise ValueError(f"{path} line {number}: {spaces} values where there should be {dim}; fetch the file again")
        if word in keys:
            yield word.decode(), _numbers(b" ".join(parts[1:]), dim, f"{path} line {number}", word)
    if told and rows != told[0]:
        raise ValueError(f"{path} line {number}: the end after {rows:,} of {told[0]:,} words; fetch the file again")


def _numbers(values: bytes, dim: int, where: str, word: bytes) -> NDArray[np.float32]:
    try:
        vector = np.array(values.split(b" "), np.float32)
    except ValueError:
        vector = np.full(dim, np.nan, np.float32)
    return _finite(vector, where, word)


def _finite(vector: NDArray[np.float32], where: str, word: bytes) -> NDArray[np.float32]:
    if not np.isfinite(vector).all():
        raise ValueError(f"{where}: a value of `{word.decode(errors='replace')}` is no number; fetch the file again")
    return vector


def _is_number(text: bytes) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return b"." in text and any(48 <= character < 58 for character in text)


def _binary_rows(file: IO[bytes], path: Place, wanted: Iterable[str]) -> Iterator[Row]:
    """Wanted words of word2vec's binary form: `words width`, then for each a word, a space and float32 numbers."""
    keys = {word.encode() for word in wanted}
    head = file.readline(100).split()
    if len(head) != 2 or not all(part.isdigit() for part in head) or not 1 <= int(head[1]) <= 100_000:
        raise ValueError(f"{path}: does not begin as a .bin of word2vec, with a line of two numbers")
    words, dim = int(head[0]), int(head[1])
    buffer, place = b"", 0
    for number in range(1, words + 1):
        space = buffer.find(b" ", place)
        while space < 0 or len(buffer) - space - 1 < 4 * dim:
            if space < 0 and len(buffer) - place > LONGEST_WORD:
                raise ValueError(f"{path} word {number:,}: no end of the word; the file is damaged, fetch it again")
            more = file.read(CHUNK)
            if not more:
                raise ValueError(f"{path} word {number:,} of {words:,}: the file ends here; fetch it again")
            buffer, place = buffer[place:] + more, 0
            space = buffer.find(b" ")
        word = buffer[place:space].lstrip(b"\n")  # the original tool ends every vector with a line ending
        if word in keys:
            vector = np.frombuffer(buffer, "<f4", dim, space + 1).astype(np.float32)
            yield word.decode(), _finite(vector, f"{path} word {number:,}", word)
        place = space + 1 + 4 * dim


def matrix_for(words: list[str], found: Mapping[str, NDArray[np.float32]], seed: int = 0) -> NDArray[np.float32]:
    """A vector for every word, float32 [words, dim].

    The file's where there is one, zeros for <pad>, and for the others draws with the file's own deviation.
    """
    dim = len(next(iter(found.values())))
    spread = float(np.std(np.stack(list(found.values())[:10_000])))
    matrix = np.random.default_rng(seed).normal(0, spread, (len(words), dim)).astype(np.float32)
    matrix[0] = 0
    for row, word in enumerate(words):
        if word in found:
            matrix[row] = found[word]
    return matrix
