"""Word vectors, streamed from files of GloVe and word2vec, also compressed. Only the wanted rows are kept."""

import codecs
import gzip
import math
import re
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, count, islice, takewhile
from pathlib import PurePosixPath
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from genre_dist.printable import printable
from genre_dist.storage import AnyPath, exists, opened

LONGEST_LINE = 1 << 20  # bytes; a longer line is no line of vectors
LONGEST_WORD = 10_000  # bytes
CHUNK = 1 << 20
SETTLING = 20
"""Rows that decide the width of a text without a heading: the width of most of them."""
_ENDINGS = (".txt", ".vec", ".bin")
_HEAD = re.compile(rb"(\d{1,15}) (\d{1,9})")

Row = tuple[str, NDArray[np.float32]]


class WordVectors(NamedTuple):
    """The vectors that a file has for the wanted words."""

    file: str
    """The file's name, or that of the file in an archive."""
    by_word: dict[str, NDArray[np.float32]]  # [dim] each
    notes: list[str]
    """Warnings about the file, a line each."""

    @property
    def dim(self) -> int:
        return len(next(iter(self.by_word.values()), ()))


def read_vectors(path: AnyPath, wanted: Collection[str]) -> WordVectors:
    """The wanted words' vectors, float32 [dim], of any width, from a file or a URL.

    The formats are GloVe's and word2vec's text (`word number number ...` lines, with or without a heading `words
    width`) and word2vec's `.bin`, each also as `.gz` or alone in a `.zip`. The last `width` fields of a line are the
    vector, as words may have spaces; of a word's rows the first counts. Raises ValueError naming the line or the word's
    number where the file is damaged or cut short, and the files of an archive that has several.
    """
    vectors: dict[str, NDArray[np.float32]] = {}
    twice: set[str] = set()
    notes: list[str] = []
    keys = {word.encode() for word in wanted}
    try:
        with _opened(path) as (file, name):
            is_binary = name.lower().endswith(".bin")
            for word, vector in _binary_rows(file, path, keys) if is_binary else _text_rows(file, path, keys, notes):
                if vectors.setdefault(word, vector) is not vector:
                    twice.add(word)
    except Exception as error:  # for a damaged archive there are errors of many kinds
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: damaged, or not readable here ({printable(error)[:200]}); fetch it again") from None
    if twice:
        notes.append(
            f"{len(twice):,} words are there more than once, such as `{printable(min(twice))}`: the first row counts"
        )
    return WordVectors(name, vectors, notes)


def require_vectors(path: AnyPath) -> None:
    """Raise ValueError if there is no such file."""
    if not exists(path):
        raise ValueError(f"{path}: no such file of word vectors")


@contextmanager
def _opened(path: AnyPath) -> Iterator[tuple[IO[bytes], str]]:
    """The file, decompressed while it is read, and its name without the compression's ending."""
    require_vectors(path)
    if path.suffix.lower() == ".zip":
        with opened(path) as packed, zipfile.ZipFile(packed) as archive:
            name = _only_file(archive, path)
            with archive.open(name) as file:
                yield file, name
    elif path.suffix.lower() == ".gz":
        with opened(path) as packed, gzip.open(packed) as file:
            yield file, path.stem  # type: ignore[misc]
    else:
        with opened(path) as file:
            yield file, path.name


def _only_file(archive: zipfile.ZipFile, path: AnyPath) -> str:
    """The one file of vectors in an archive. Raises ValueError if there is none, or several to choose from."""
    named = [name for name in archive.namelist() if name.lower().endswith(_ENDINGS) and not _is_of_the_system(name)]
    fitting = [name for name in named if _may_hold_vectors(archive, name)] if len(named) > 1 else named
    if not fitting:
        endings = ", ".join(_ENDINGS)
        raise ValueError(f"{path}: no file of vectors ({endings}) in this archive; unpack them and name their file")
    if len(fitting) > 1:
        listed = ", ".join(map(printable, fitting[:10])) + (", ..." if len(fitting) > 10 else "")
        raise ValueError(
            f"{path}: {len(fitting)} files of this archive may be meant: {listed}; unpack the one you want and name it "
            "with --vectors"
        )
    return fitting[0]


def _is_of_the_system(name: str) -> bool:
    """Whether a name is a hidden file or one that macOS adds to archives."""
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def _may_hold_vectors(archive: zipfile.ZipFile, name: str) -> bool:
    """Whether a file begins with a row of numbers; a README does not."""
    with archive.open(name) as file:
        last = file.readline(LONGEST_LINE).split()[-1:]
    try:
        return bool(last) and math.isfinite(float(last[0][:100]))
    except ValueError:
        return False


def _text_rows(file: IO[bytes], path: AnyPath, keys: set[bytes], notes: list[str]) -> Iterator[Row]:
    """Wanted words of a text file. Every line is checked, few are parsed."""
    lines = _lines(file, path)
    first = list(islice(lines, 1 + SETTLING))
    head = _HEAD.fullmatch(first[0]) if first else None
    if head:
        del first[0]
    dim = int(head[2]) if head else _usual_width(first)
    rows = phrases = first_phrase = 0
    for number, line in enumerate(chain(first, lines), 2 if head else 1):
        rows += 1
        spaces = line.count(b" ")
        if spaces < dim or dim < 1:
            raise ValueError(
                f"{path} line {number}: {spaces} values where there should be {max(dim, 1)}; the file is damaged or "
                "cut short, fetch it again or remove the line"
            )
        word, *values = line.split(b" ", 1) if spaces == dim else line.rsplit(b" ", dim)
        if spaces > dim and _is_number(word.rpartition(b" ")[2]):
            phrases, first_phrase = phrases + 1, first_phrase or number
        if word in keys:
            yield word.decode(), _numbers(b" ".join(values), dim, f"{path} line {number}", word)
    if head and rows != int(head[1]):
        raise ValueError(f"{path} line {rows + 1}: the end after {rows:,} of {int(head[1]):,} words; fetch it again")
    if phrases:
        notes.append(
            f"{phrases:,} rows have more than {dim} numbers, the first is line {first_phrase}: the last {dim} are the "
            "vector, what is before them is a word with spaces"
        )


def _lines(file: IO[bytes], path: AnyPath) -> Iterator[bytes]:
    """Lines of a text without their line endings. Raises ValueError for a line longer than LONGEST_LINE."""
    for number in count(1):
        line = file.readline(LONGEST_LINE)
        if not line:
            return
        if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
            raise ValueError(f"{path} line {number}: longer than {LONGEST_LINE:,} bytes; this is no text of vectors")
        line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        yield line.rstrip(b"\r\n").rstrip(b" ")


def _usual_width(lines: list[bytes]) -> int:
    """The number of numbers at the end of a row, by majority of these rows."""
    widths = Counter(sum(1 for _ in takewhile(_is_number, line.split(b" ")[:0:-1])) for line in lines)
    return max(widths, key=widths.__getitem__, default=0)


def _numbers(values: bytes, dim: int, where: str, word: bytes) -> NDArray[np.float32]:
    try:
        with np.errstate(over="ignore"):
            vector = np.array(values.split(b" "), np.float32)
    except ValueError:
        vector = np.full(dim, np.nan, np.float32)
    return _finite(vector, where, word)


def _finite(vector: NDArray[np.float32], where: str, word: bytes) -> NDArray[np.float32]:
    if not np.isfinite(vector).all():
        raise ValueError(f"{where}: a value of `{printable(word.decode())}` is no number; fetch the file again")
    return vector


def _is_number(text: bytes) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _binary_rows(file: IO[bytes], path: AnyPath, keys: set[bytes]) -> Iterator[Row]:
    """Wanted words of word2vec's binary form: `words width`, then each word, a space and its float32 numbers."""
    head = file.readline(100).split()
    if len(head) != 2 or not all(part.isdigit() for part in head) or not 1 <= int(head[1]) <= 100_000:
        raise ValueError(f"{path}: does not begin as a .bin of word2vec, with a line of two numbers")
    words, dim = int(head[0]), int(head[1])
    buffer, start = b"", 0
    for number in range(1, words + 1):
        space = buffer.find(b" ", start)
        while space < 0 or len(buffer) - space - 1 < 4 * dim:
            if space < 0 and len(buffer) - start > LONGEST_WORD:
                raise ValueError(f"{path} word {number:,}: no end of the word; the file is damaged, fetch it again")
            more = file.read(CHUNK)
            if not more:
                raise ValueError(f"{path} word {number:,} of {words:,}: the file ends here; fetch it again")
            buffer, start = buffer[start:] + more, 0
            space = buffer.find(b" ")
        word = buffer[start:space].lstrip(b"\n")  # the original tool ends every vector with a line ending
        if word in keys:
            vector = np.frombuffer(buffer, "<f4", dim, space + 1).astype(np.float32)
            yield word.decode(), _finite(vector, f"{path} word {number:,}", word)
        start = space + 1 + 4 * dim


def matrix_for(words: list[str], vectors: Mapping[str, NDArray[np.float32]], seed: int = 0) -> NDArray[np.float32]:
    """A vector for every word, float32 [words, dim].

    Words without a vector get normal draws with the standard deviation of the file's vectors, <pad> gets zeros.
    """
    dim = len(next(iter(vectors.values())))
    spread = float(np.std(np.stack(list(vectors.values())[:10_000])))
    matrix = np.random.default_rng(seed).normal(0, spread, (len(words), dim)).astype(np.float32)
    matrix[0] = 0
    for row, word in enumerate(words):
        if word in vectors:
            matrix[row] = vectors[word]
    return matrix
