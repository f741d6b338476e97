"""Looking into a folder of shards: what is there, and whether it is whole."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from genre_dist.prepare.splits import split_of
from genre_dist.prepare.vocabulary import load_words
from genre_dist.progress import progress_bar
from genre_dist.storage import Place, local_copy, read_bytes
from genre_dist.stream.decode import decode_jpeg
from genre_dist.stream.index import FLAGS, RECORD, index_path, load_array
from genre_dist.stream.manifest import SPLITS, Manifest, Shard
from genre_dist.stream.order import steps_per_epoch
from genre_dist.stream.sample import MEMBER_OF, load_genres, load_tokens, read_members

BATCHES = (32, 64, 256, 1024)  # global batches for which inspect prints the steps of an epoch


def print_summary(manifest: Manifest) -> None:
    """Counts, sizes, text lengths, genres and steps per epoch."""
    console = Console()
    text, image = manifest.text, manifest.image
    console.print(f"[bold]{manifest.folder}[/]  fingerprint {manifest.fingerprint}")
    console.print(f"posters {image['size']} x {image['size']} ({image['fit']}), text: {text['source']}")
    vectors = f"vectors of {text['dim']} numbers" if text["vectors"] else "no word vectors"
    console.print(f"vocabulary {text['words']:,} words, {vectors}")
    left_out = ", ".join(f"{count:,} with {reason}" for reason, count in manifest.left_out.items()) or "none"
    console.print(f"films left out: {left_out}")
    table = Table("split", "shards", "films", "poster", "text", "both", "MB", "words: median", "95 %", "most")
    for split in SPLITS:
        shards = manifest.shards_of(split)
        lengths = _lengths(manifest, shards)
        table.add_row(
            split,
            f"{len(shards):,}",
            *(f"{manifest.samples(split, members):,}" for members in ((), ("poster",), ("overview",))),
            f"{manifest.samples(split, ('poster', 'overview')):,}",
            f"{sum(shard.bytes for shard in shards) / 1e6:,.1f}",
            *(f"{value:,.0f}" for value in lengths),
        )
    console.print(table)
    steps = Table("steps an epoch, global batch", *map(str, BATCHES))
    for members in (("poster", "overview"), ("overview",), ("poster",)):
        samples = manifest.samples("train", members)
        steps.add_row(" + ".join(members), *(f"{steps_per_epoch(samples, batch):,}" for batch in BATCHES))
    console.print(steps)
    genres = Table("genre", *SPLITS)
    for number, genre in enumerate(manifest.genres):
        genres.add_row(genre.name, *(f"{manifest.genre_counts[split][number]:,}" for split in SPLITS))
    console.print(genres)


def _lengths(manifest: Manifest, shards: tuple[Shard, ...]) -> tuple[float, float, float]:
    """Median, 95th percentile and maximum of the texts' lengths, from counts of each length."""
    counts = np.zeros(65_536, np.int64)
    for shard in shards:
        records = load_array(index_path(manifest.folder / shard.file))
        counts += np.bincount(records["tokens"][(records["has"] & FLAGS["overview"]) > 0], minlength=65_536)
    if not counts.any():
        return 0, 0, 0
    ends = np.cumsum(counts)
    median, high = (int(np.searchsorted(ends, share * ends[-1])) for share in (0.5, 0.95))
    return median, high, int(np.flatnonzero(counts)[-1])


def verify(manifest: Manifest) -> list[str]:
    """Check every checksum and every sample; returns one line for each fault, naming file and film.

    Found are: changed, missing or cut files, an index or a manifest that disagrees with the tar, missing or damaged
    members, labels and tokens out of range, a film twice or in the wrong split.
    """
    words = len(load_words(manifest.folder / manifest.text["vocabulary"]))
    faults = list(_check_vocabulary(manifest, words))
    twice = films_there_twice(manifest)
    seen: set[int] = set()
    genres = {split: np.zeros(len(manifest.genres), np.int64) for split in SPLITS}
    with progress_bar() as progress:
        for shard in progress.track(manifest.shards, description="verifying shards"):
            path = manifest.folder / shard.file
            try:
                with local_copy(path) as file:
                    found = list(_check_file(path, file, shard))
                    found += _check_samples(manifest, file, shard, words, twice, seen, genres[shard.split])
            except (ValueError, OSError, EOFError) as error:
                found = [f"{path}: {error}"]
            faults += found
    if not faults:
        faults += [
            f"manifest.json: genre_counts of {split} disagree with the shards"
            for split in SPLITS
            if genres[split].tolist() != manifest.genre_counts[split]
        ]
    return faults


def films_there_twice(manifest: Manifest) -> set[int]:
    """Films that the indexes name more than once, found by sorting 8 bytes a film; a damaged index is skipped."""
    ids = np.zeros(sum(shard.samples for shard in manifest.shards), np.int64)
    place = 0
    for shard in manifest.shards:
        with suppress(ValueError, OSError, EOFError, IndexError):
            found = load_array(index_path(manifest.folder / shard.file))["id"][: shard.samples]
            ids[place : place + len(found)] = found
            place += len(found)
    ids = ids[:place]
    ids.sort()
    return set(ids[1:][ids[1:] == ids[:-1]].tolist())


def _check_vocabulary(manifest: Manifest, words: int) -> Iterator[str]:
    path = manifest.folder / manifest.text["vocabulary"]
    if hashlib.sha256(read_bytes(path)).hexdigest() != manifest.text["vocabulary_sha256"]:
        yield f"{path}: not the vocabulary the shards were packed with"
    if words != manifest.text["words"]:
        yield f"{path}: {words} words where the manifest has {manifest.text['words']}"


def _check_file(path: Place, local: Path, shard: Shard) -> Iterator[str]:
    with open(local, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.tell()
    if size != shard.bytes:
        yield f"{path}: {size:,} bytes where the manifest has {shard.bytes:,}"
    if digest != shard.sha256:
        yield f"{path}: the checksum differs from the manifest's; fetch or pack it again"


def _check_samples(
    manifest: Manifest,
    local: Path,
    shard: Shard,
    words: int,
    twice: set[int],
    seen: set[int],
    genres: NDArray[Any],
) -> Iterator[str]:
    """Every sample against the index, the manifest and the vocabulary; films of `twice` are noted in `seen`."""
    path = manifest.folder / shard.file
    records = load_array(index_path(path))
    if records.dtype != RECORD or records.ndim != 1:
        raise ValueError(f"{index_path(path)}: not an index of a shard")
    if len(records) != shard.samples:
        yield f"{index_path(path)}: {len(records)} records where the manifest has {shard.samples} samples"
    counts: Counter[str] = Counter()
    with open(local, "rb") as file:
        for record in records:
            film, offset = int(record["id"]), int(record["offset"])
            has = {name for name, flag in FLAGS.items() if record["has"] & flag}
            counts.update(has)
            faults = []
            if film in seen:
                faults.append("the film is in the shards twice")
            if film in twice:
                seen.add(film)
            if split_of(film) != shard.split:
                faults.append(f"the film belongs to {split_of(film)}, not {shard.split}")
            try:
                file.seek(offset)
                parts = read_members(file.read(int(record["size"])), film)
                faults += _check_members(manifest, parts, has, int(record["tokens"]), words, genres)
            except (ValueError, KeyError) as error:
                faults.append(str(error))
            yield from (f"{path}: film {film} at byte {offset}: {fault}" for fault in faults)
    for name in FLAGS:
        if counts[name] != shard.count((name,)):
            yield f"{path}: {counts[name]} samples with {name} where the manifest has {shard.count((name,))}"


def _check_members(
    manifest: Manifest, parts: dict[str, memoryview], has: set[str], length: int, words: int, genres: NDArray[Any]
) -> Iterator[str]:
    """One film's members, decoded as training decodes them."""
    wanted = {"json"} | {MEMBER_OF[name] for name in has}
    if missing := sorted(wanted - parts.keys()):
        yield f"no member .{', .'.join(missing)}"
    if strange := sorted(parts.keys() - wanted):
        yield f"the index knows nothing of its member .{', .'.join(strange)}"
    if "json" in parts:
        places = {genre.id: number for number, genre in enumerate(manifest.genres)}
        for genre in load_genres(parts["json"]):
            if genre in places:
                genres[places[genre]] += 1
            else:
                yield f"the genre {genre} is not in the manifest"
    if "tokens.npy" in parts:
        tokens = load_tokens(parts["tokens.npy"], words)
        if min(len(tokens), 65_535) != length:
            yield f"{len(tokens)} tokens where the index has {length}"
    if "jpg" in parts:
        size = int(manifest.image["size"])
        decode_jpeg(parts["jpg"], np.empty((size, size, 3), np.uint8))
