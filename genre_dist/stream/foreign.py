"""A listing of any WebDataset tars: an index of each, so that a stream can read their samples in its order.

The tars themselves stay unchanged, local or remote. The listing's folder has two small files for each: the index (24
bytes a sample, as for packed shards; `has` holds a bit for every extension of that tar) and its metadata. `tars.json`,
written last, lists them all.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Interval, Len, Predicate
from numpy.typing import NDArray
from typing_extensions import TypedDict

from genre_dist.atomic import atomic_file
from genre_dist.storage import AnyPath, any_path, file_version, inside, is_remote, local_copy, read_bytes
from genre_dist.stream.index import DamagedArrayError, load_array, save_array
from genre_dist.stream.indexing import MOST_EXTENSIONS, TarIndex, read_index
from genre_dist.stream.manifest_base import chosen_count
from genre_dist.stream.tar_manifest import FOLDER, TarShard
from genre_dist.validation import LARGEST_BYTES, Address, Count, FileName, Sha256, is_address, parse_json
from genre_dist.workers import in_processes

FILE = "tars.json"
SCHEMA = 1
LARGEST_LISTING = 1 << 30
"""Bytes of `tars.json`: half a KB a tar."""
_REMEDY = "this is no listing that `genre-dist index` wrote; run it again"


def _is_bits(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 5 and int(text) < 1 << MOST_EXTENSIONS


@dataclass(frozen=True, kw_only=True)
class Tar:
    """One tar: its samples and their extensions."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (no field)

    file: Address
    """Relative to the listing's folder, or absolute, or a URL."""
    index_file: FileName
    identity: Sha256
    """Checksum of the index and of the address, which identifies the tar's bytes."""
    samples: Annotated[int, Interval(ge=1, le=2**32)]
    bytes: Count
    extensions: Annotated[tuple[Annotated[str, Predicate(str.isprintable)], ...], Len(1, MOST_EXTENSIONS)]
    """In the order of the bits of `has`."""
    has: dict[Annotated[str, Predicate(_is_bits)], Count]
    """Samples by their value of `has`, written as a decimal number."""
    version: str = ""
    """Changes with the tar: its modification time, or the server's version tag."""
    links: Count = 0
    """Members that are links; a file of its own beside the index has their targets."""
    notes: tuple[Annotated[str, Predicate(str.isprintable)], ...] = ()
    """A line for each kind of skipped entry and each oddity."""

    def __post_init__(self) -> None:
        if sum(self.has.values()) != self.samples:
            raise ValueError(f"{self.file} has {self.samples:,} samples, but {sum(self.has.values()):,} by extensions")
        if len(set(self.extensions)) != len(self.extensions):
            raise ValueError(f"{self.file} has an extension twice")

    @property
    def links_file(self) -> str:
        """Name of the file with the targets of its links, int64 [links, 3] (`TarIndex.links`)."""
        return f"{self.index_file.removesuffix('.npy')}.links.npy"

    def mask(self, members: tuple[str, ...]) -> int:
        """These extensions as bits of `has`; an extension that this tar lacks is a bit that no sample has."""
        bits = {self.extensions.index(name) if name in self.extensions else MOST_EXTENSIONS for name in members}
        return sum(1 << bit for bit in bits)

    def count(self, members: tuple[str, ...], any_of: bool = False) -> int:
        """How many samples have all of these extensions, or one of them."""
        return chosen_count({int(has): count for has, count in self.has.items()}, self.mask(members), any_of)


@dataclass(frozen=True, kw_only=True)
class Tars:
    """The contents of `tars.json`, and its folder."""

    folder: AnyPath
    tars: tuple[Tar, ...]

    def shards_of(self, split: str) -> tuple[Tar, ...]:
        """The tars whose address matches a pattern such as `*/train-*.tar`; `*` matches all."""
        return tuple(tar for tar in self.tars if fnmatch(tar.file, split))

    def mask(self, tar: Any, fields: tuple[str, ...]) -> int:
        """These extensions as bits of a tar's `has`."""
        return int(tar.mask(fields))

    def count(self, tar: Any, fields: tuple[str, ...], any_of: bool = False) -> int:
        """How many samples of a tar have all of these extensions, or one of them."""
        return int(tar.count(fields, any_of))

    @property
    def extensions(self) -> Counter[str]:
        """Extension -> samples that have it."""
        names = dict.fromkeys(name for tar in self.tars for name in tar.extensions)
        return Counter({name: sum(tar.count((name,)) for tar in self.tars) for name in names})

    @property
    def fingerprint(self) -> str:
        """Identifies the data."""
        return hashlib.sha256(json.dumps([tar.identity for tar in self.tars]).encode()).hexdigest()[:16]


class _Listing(TypedDict):
    format: Literal["genre_dist tars"]
    schema: Literal[1]
    tars: tuple[Tar, ...]


_Listing.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[attr-defined]


def load_tars(folder: AnyPath | str) -> Tars:
    """Read the listing that `genre-dist index` made.

    Raises ValueError if there is none, another version wrote it, or a value in it is invalid.
    """
    folder = any_path(folder)
    path = folder / FILE
    try:
        written = read_bytes(path, LARGEST_LISTING)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"no listing in {folder} ({FILE} is missing): genre-dist index TARS --out {folder}") from None
    return Tars(folder=folder, tars=parse_json(_Listing, written, path, _REMEDY)["tars"])


def find_tars(named: Sequence[AnyPath]) -> list[AnyPath]:
    """Paths of tars in the order given, those of a folder sorted by name.

    Raises ValueError for a folder without tars, and for one that cannot be listed.
    """
    found: list[AnyPath] = []
    for path in named:
        if path.name.endswith(".tar"):
            found.append(path)
            continue
        try:
            inside_it = sorted((tar for tar in path.glob("*.tar")), key=str)
        except (OSError, NotImplementedError, ValueError) as error:
            raise ValueError(f"{path}: its files cannot be listed ({error}); name the tars themselves") from None
        if not inside_it:
            raise ValueError(f"{path}: no *.tar in this folder; name tars, or a folder of them")
        found += inside_it
    return found


def index_tars(tars: Sequence[AnyPath], out: AnyPath, workers: int = 1) -> Tars:
    """Index WebDataset tars and list them in `out`, in the given order; tars with a current index are skipped.

    Raises ValueError with the tar, and the byte if known, if it is no tar, compressed, damaged, or without samples.
    """
    from genre_dist.progress import progress_bar  # tar readers import this module and need no progress bar

    jobs = [(path, address, out) for path, address in zip(tars, addresses(tars, out), strict=True)]
    done: dict[str, Tar] = {}
    with progress_bar() as progress:
        task = progress.add_task("indexing tars", total=len(jobs))
        for _, tar in in_processes(_index_one, jobs, workers, "indexing tars"):
            done[tar.file] = tar
            progress.advance(task)
    listing = Tars(folder=out, tars=tuple(done[address] for _, address, _ in jobs))
    content = {"format": "genre_dist tars", "schema": SCHEMA, "tars": [asdict(tar) for tar in listing.tars]}
    with atomic_file(out / FILE, "w") as file:
        json.dump(content, file, indent=1)
    return listing


def addresses(tars: Sequence[AnyPath], out: AnyPath) -> list[str]:
    """The addresses of tars in a listing, for whose indexes a folder is made.

    Raises ValueError if there are no tars, one is there twice, or cannot be named.
    """
    found = [_address(path, out) for path in tars]
    if again := [address for address, count in Counter(found).items() if count > 1]:
        raise ValueError(f"{again[0]} is named twice")
    if not found:
        raise ValueError("no tars to index")
    if unfit := [address for address in found if not is_address(address)]:
        raise ValueError(f"{unfit[0]!r} cannot be listed: no `..` and no control characters in the address of a tar")
    if not is_remote(out):
        (Path(str(out)) / FOLDER).mkdir(parents=True, exist_ok=True)
    return found


def _address(path: AnyPath, out: AnyPath) -> str:
    """A tar's address in the listing: relative if it lies below it, so that both can be moved together."""
    if is_remote(path) or is_remote(out):
        text, base = str(path), f"{str(out).rstrip('/')}/"
        return text.removeprefix(base)
    absolute, base_folder = Path(str(path)).resolve(), Path(str(out)).resolve()
    return str(absolute.relative_to(base_folder)) if absolute.is_relative_to(base_folder) else str(absolute)


def version_of_tar(path: AnyPath) -> tuple[int, str]:
    """Size and version of a tar, see `file_version`. Raises ValueError if it is missing."""
    try:
        return file_version(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such tar") from None


def name_of_index(path: AnyPath, address: str) -> str:
    """The name of a tar's files in the listing, another one for each address."""
    stem = "".join(letter if letter.isprintable() and letter != "\\" else "_" for letter in path.name)
    return f"{stem.removesuffix('.tar')[:100]}-{hashlib.sha256(address.encode()).hexdigest()[:8]}"


def _index_one(job: tuple[AnyPath, str, AnyPath]) -> Tar:
    """Index one tar, unless an index exists and the tar's size and version are unchanged."""
    path, address, out = job
    size, version = version_of_tar(path)
    name = name_of_index(path, address)
    index_file = f"{FOLDER}/{name}.npy"
    known = _known(out / FOLDER / f"{name}.json", out)
    if known and (known.file, known.index_file, known.bytes, known.version) == (address, index_file, size, version):
        return known
    try:
        with local_copy(path) as local:
            index = read_index(local)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    values, counts = np.unique(index.records["has"], return_counts=True)
    tar = Tar(
        file=address,
        index_file=index_file,
        identity=_identity(index.records, index.links, address),
        samples=len(index.records),
        bytes=size,
        extensions=index.extensions,
        has={str(value): count for value, count in zip(values.tolist(), counts.tolist(), strict=True)},
        version=version,
        links=len(index.links),
        notes=index.notes,
    )
    _save(tar, index, out)
    return tar


def _save(tar: Tar, index: TarIndex, out: AnyPath) -> None:
    """Write a tar's index, its links if it has some, and last its metadata."""
    with atomic_file(out / tar.index_file) as file:
        save_array(index.records, file)
    if tar.links:
        with atomic_file(out / tar.links_file) as file:
            save_array(index.links, file)
    with atomic_file((out / tar.index_file).with_suffix(".json"), "w") as file:
        json.dump(asdict(tar), file)


def _known(about: AnyPath, out: AnyPath) -> Tar | None:
    """The metadata of a tar with an index; None if there is none, or the index is damaged."""
    try:
        tar = parse_json(Tar, read_bytes(about, LARGEST_BYTES), about, _REMEDY)
        records, links = load_array(out / tar.index_file), load_links(out, tar)
    except (FileNotFoundError, ValueError):
        return None
    return tar if _identity(records, links, tar.file) == tar.identity else None


def _identity(records: NDArray[np.void], links: NDArray[np.int64], address: str) -> str:
    return hashlib.sha256(records.tobytes() + links.tobytes() + address.encode()).hexdigest()


def load_links(folder: AnyPath, tar: Tar | TarShard) -> NDArray[np.int64]:
    """Targets of a tar's links, int64 [links, 3]. Raises ValueError or OSError if the file cannot be read."""
    if not tar.links:
        return np.empty((0, 3), np.int64)
    path = inside(folder, tar.links_file)
    links = load_array(path)
    _, start, size = links.T if links.shape == (tar.links, 3) and links.dtype == np.int64 else np.full((3, 1), -1)
    if not ((start >= 0) & (size >= 0) & (start <= tar.bytes) & (size <= tar.bytes - start)).all():
        raise DamagedArrayError(f"{path}: not the {tar.links:,} links of the tar; `genre-dist index` makes it again")
    return np.array(links)  # a copy holds no file open
