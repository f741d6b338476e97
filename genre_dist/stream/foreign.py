"""Anyone's WebDataset tars: an index of what lies where in them, so that they can be read in our order.

The tars stay as they are, wherever they are. For each there are two small files in the folder of the listing: the index
(24 bytes a sample, as for our own shards; `has` holds a bit for every extension of that tar) and what the listing says
about it. `tars.json`, written last, lists them all.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from genre_dist.atomic import atomic_file
from genre_dist.storage import Place, file_size, inside, is_remote, local_copy, place, read_bytes
from genre_dist.stream.index import RECORD, save_array
from genre_dist.stream.tar import mapped, members, padded

FILE = "tars.json"
FOLDER = "tars.index"
SCHEMA = 1
MOST_EXTENSIONS = 16  # bits of the index's `has`
_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")  # WebDataset's rule: the key ends at the first dot of the name


@dataclass(frozen=True, kw_only=True)
class Tar:
    """One tar: how many samples it has, and with which extensions."""

    file: str
    """Relative to the listing's folder, or absolute, or a URL."""
    index_file: str
    identity: str
    """Checksum of the index and of the address: a name for the tar's bytes."""
    samples: int
    bytes: int
    extensions: tuple[str, ...]
    """In the order of the bits of `has`."""
    has: dict[str, int]
    """Samples by their value of `has`, written as a decimal number."""

    def mask(self, members: tuple[str, ...]) -> int:
        """These extensions as bits of `has`; one that this tar never has is a bit that no sample has."""
        places = [self.extensions.index(name) if name in self.extensions else MOST_EXTENSIONS for name in members]
        return sum(1 << bit for bit in set(places))

    def count(self, members: tuple[str, ...]) -> int:
        """How many samples have all of these extensions."""
        mask = self.mask(members)
        return sum(count for has, count in self.has.items() if int(has) & mask == mask)


@dataclass(frozen=True, kw_only=True)
class Tars:
    """What `tars.json` holds, and the folder it lies in."""

    folder: Place
    tars: tuple[Tar, ...]

    def shards_of(self, split: str) -> tuple[Tar, ...]:
        """The tars whose address fits a pattern such as `*/train-*.tar`; `*` is all of them."""
        return tuple(tar for tar in self.tars if fnmatch(tar.file, split))

    @property
    def extensions(self) -> Counter[str]:
        """Extension -> samples that have it."""
        names = dict.fromkeys(name for tar in self.tars for name in tar.extensions)
        return Counter({name: sum(tar.count((name,)) for tar in self.tars) for name in names})

    @property
    def fingerprint(self) -> str:
        """Identifies the data."""
        return hashlib.sha256(json.dumps([tar.identity for tar in self.tars]).encode()).hexdigest()[:16]


def load_tars(folder: Place | str) -> Tars:
    """Read the listing that `genre-dist index` made. Raises ValueError if there is none or it is another version's."""
    folder = place(folder)
    path = folder / FILE
    try:
        told = json.loads(read_bytes(path))
        if told["schema"] != SCHEMA:
            raise ValueError(f"schema {told['schema']}, this version reads {SCHEMA}")
        tars = tuple(Tar(**tar | {"extensions": tuple(tar["extensions"])}) for tar in told["tars"])
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"no listing in {folder} ({FILE} is missing): genre-dist index TARS --out {folder}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a listing of tars ({error}); run `genre-dist index` again") from None
    return Tars(folder=folder, tars=tars)


def find_tars(named: Sequence[Place]) -> list[Place]:
    """Tars by themselves as they are named, those of folders in the order of their names.

    Raises ValueError for a folder without tars, and for one whose files cannot be listed.
    """
    found: list[Place] = []
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


def index_tars(tars: Sequence[Place], out: Place, workers: int = 1) -> Tars:
    """Index WebDataset tars and list them in `out`, in the given order; those that are indexed already are left alone.

    Raises ValueError naming the tar, and where it can the byte, for what is no tar, compressed, damaged, or no samples.
    """
    from genre_dist.progress import progress_bar  # readers of tars, which import this module, show no progress

    jobs = [(path, _address(path, out), out) for path in tars]
    twice = [address for address, count in Counter(job[1] for job in jobs).items() if count > 1]
    if twice:
        raise ValueError(f"{twice[0]} is named twice")
    if not jobs:
        raise ValueError("no tars to index")
    if not is_remote(out):
        (Path(str(out)) / FOLDER).mkdir(parents=True, exist_ok=True)
    done: dict[str, Tar] = {}
    with progress_bar() as progress:
        task = progress.add_task("indexing tars", total=len(jobs))
        for tar in _indexed(jobs, workers):
            done[tar.file] = tar
            progress.advance(task)
    found = Tars(folder=out, tars=tuple(done[address] for _, address, _ in jobs))
    told = {"format": "genre_dist tars", "schema": SCHEMA, "tars": [asdict(tar) for tar in found.tars]}
    with atomic_file(out / FILE, "w") as file:
        json.dump(told, file, indent=1)
    return found


def _indexed(jobs: list[tuple[Place, str, Place]], workers: int) -> Iterator[Tar]:
    """Tars as they get indexed, on several processes if there are several."""
    if workers <= 1 or len(jobs) <= 1:
        yield from (_index_one(*job) for job in jobs)
        return
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from multiprocessing import get_context

    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(_index_one, *job) for job in jobs]
        try:
            yield from (future.result() for future in as_completed(waiting))
        finally:
            pool.shutdown(cancel_futures=True)


def _address(path: Place, out: Place) -> str:
    """How the listing names a tar: relative if it lies below it, so that both can be moved together."""
    if is_remote(path) or is_remote(out):
        text, base = str(path), f"{str(out).rstrip('/')}/"
        return text.removeprefix(base)
    whole, base_folder = Path(str(path)).resolve(), Path(str(out)).resolve()
    return str(whole.relative_to(base_folder)) if whole.is_relative_to(base_folder) else str(whole)


def _index_one(path: Place, address: str, out: Place) -> Tar:
    """Index one tar, unless that is done and the tar has the same size."""
    try:
        size = file_size(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such tar") from None
    name = f"{path.name.removesuffix('.tar')}-{hashlib.sha256(address.encode()).hexdigest()[:8]}"
    about = out / FOLDER / f"{name}.json"
    try:
        told = json.loads(read_bytes(about))
        known = Tar(**told | {"extensions": tuple(told["extensions"])})
        if known.bytes == size and file_size(inside(out, known.index_file)):
            return known
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        pass  # not yet, or not whole
    try:
        with local_copy(path) as local:
            records, extensions = read_index(local)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    index_file = f"{FOLDER}/{name}.npy"
    with atomic_file(out / FOLDER / f"{name}.npy") as file:
        save_array(records, file)
    values, counts = np.unique(records["has"], return_counts=True)
    tar = Tar(
        file=address,
        index_file=index_file,
        identity=hashlib.sha256(records.tobytes() + address.encode()).hexdigest(),
        samples=len(records),
        bytes=size,
        extensions=extensions,
        has={str(value): count for value, count in zip(values.tolist(), counts.tolist(), strict=True)},
    )
    with atomic_file(about, "w") as file:
        json.dump(asdict(tar), file)
    return tar


def read_index(path: Path) -> tuple[NDArray[np.void], tuple[str, ...]]:
    """The index of one tar, RECORD [samples], and its extensions in the order of the bits of `has`.

    Only headers are read. Raises ValueError for what cannot be read as samples.
    """
    bits: dict[str, int] = {}
    records = np.array(list(_records(path, bits)), RECORD)
    if not len(records):
        raise ValueError("no samples in it: members are named KEY.EXTENSION")
    values, counts = np.unique(records["id"], return_counts=True)
    if counts.max(initial=1) > 1:
        raise ValueError(
            f"the sample {values[counts > 1][0]} is there twice, or its members lie apart; they must follow each other"
        )
    return records, tuple(bits)


def _records(path: Path, bits: dict[str, int]) -> Iterator[tuple[int, int, int, int, int]]:
    """A record for each run of members that share a key; fills `bits` with the extensions' bits."""
    named = ((split_name(member.name), member) for member in members(mapped(path)))
    for key, group in groupby((pair for pair in named if pair[0]), key=lambda pair: pair[0] and pair[0][0]):
        assert key
        has, first, end = 0, -1, 0
        for name, member in group:
            assert name
            bit = 1 << bits.setdefault(name[1], len(bits))
            if has & bit:
                raise ValueError(f"two members {member.name} in one sample, the second at byte {member.header}")
            has |= bit
            first = member.header if first < 0 else first
            end = member.start + padded(member.size)
        if len(bits) > MOST_EXTENSIONS:
            raise ValueError(f"more than {MOST_EXTENSIONS} kinds of members: {', '.join(bits)}")
        if end - first >= 1 << 32:
            raise ValueError(f"the sample {key} has {end - first:,} bytes; 4 GiB is the most")
        yield sample_id(key), first, end - first, 0, has


def split_name(name: str) -> tuple[str, str] | None:
    """Key and extension of a member as WebDataset sees them; None for one that is part of no sample."""
    match = _NAME.fullmatch(name.removeprefix("./"))
    return (match[1], match[2].lower()) if match else None


def sample_id(key: str) -> int:
    """A sample's id: the number that its key is (`000000012` is 12), or a hash of the key."""
    base = key.rpartition("/")[2]
    if base == key and base.isascii() and base.isdecimal() and len(base) <= 18:
        return int(base)
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big") >> 1
