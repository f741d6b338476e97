"""Verification of shards: every number and checksum of the manifest against the files, and every sample decoded."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from genre_dist.packing.shard_report import NO_FILE, NO_PICTURE, NOT_OPENED, Report, read_report, report_path
from genre_dist.packing.splits import RULE, split_of
from genre_dist.packing.tokenizer import token_name, tokenizer_of
from genre_dist.printable import printable
from genre_dist.progress import progress_bar
from genre_dist.storage import AnyPath, local_copy, sha256_of
from genre_dist.stream import tar
from genre_dist.stream.decode import decode_jpeg
from genre_dist.stream.index import FLAGS, RECORD, DamagedArrayError, index_path, load_array
from genre_dist.stream.manifest import FILE, SPLITS, Manifest, Shard
from genre_dist.stream.sample import MEMBER_OF, load_about, load_genres, load_tokens, read_members
from genre_dist.stream.sample_manifest import SampleShard
from genre_dist.stream.words import load_vectors

FAULTS = (ValueError, KeyError, OSError, EOFError)
_ROWS = 1 << 16
"""Word vectors checked at a time."""


def verify(manifest: Manifest) -> list[str]:
    """Check the whole manifest and every sample; returns one line for each fault, naming file and film.

    Faults are: changed, missing or cut files, an index, a report or a manifest that disagrees with the tar, missing or
    damaged members, bytes that belong to no sample, labels and tokens out of range, a film twice or in the wrong split.
    Raises ValueError for encodings: damaged ones are simply made again.
    """
    checker = _ShardChecker(manifest)
    faults = check_shards(manifest, RULE, checker.check)
    faults = faults or list(checker.check_genres())
    faults = faults or list(_check_reports(manifest))
    return [printable(fault) for fault in faults]


def check_shards(manifest: Manifest, rule: str, check: Callable[[AnyPath, Path, Any], Iterable[str]]) -> list[str]:
    """Faults of vocabulary and split rule, then those that `check` finds of each shard, its tar on this machine.

    Raises ValueError for encodings.
    """
    if manifest.encoding is not None:
        raise ValueError(f"{manifest.folder}: these are encodings; verify the shards they were made from")
    faults, samples = list(check_words(manifest)), manifest.declared.samples
    if manifest.split_rule != rule:
        faults.append(f"{FILE}: its split rule is not the one that {samples} are compared with here: {rule}")
    with progress_bar() as progress:
        for shard in progress.track(manifest.shards, description="verifying shards"):
            path = manifest.folder / shard.file
            try:
                with local_copy(path) as file:
                    shard_faults = list(check(path, file, shard))
            except FAULTS as error:
                fault = str(error)
                shard_faults = [fault if str(path.with_suffix("")) in fault else f"{path}: {fault}"]
            faults += shard_faults
    return faults


def repeated_films(manifest: Manifest) -> set[int]:
    """Films that the indexes name more than once, by sorting 8 bytes a film; a damaged index is skipped."""
    ids_of = [np.empty(0, np.int64)]
    for shard in manifest.shards:
        with suppress(*FAULTS):
            records = load_array(index_path(manifest.folder / shard.file))
            ids_of += [np.array(records["id"])] if records.dtype == RECORD and records.ndim == 1 else []
    ids = np.concatenate(ids_of)
    ids.sort()
    return set(ids[1:][ids[1:] == ids[:-1]].tolist())


def check_words(manifest: Manifest) -> Iterator[str]:
    """Faults of the vocabulary and its vectors."""
    text = manifest.text
    try:
        tokenizer = tokenizer_of(manifest.folder, text)
        if tokenizer.size != text["words"]:
            path = manifest.folder / text["vocabulary"]
            yield f"{path}: {tokenizer.size} {token_name(text)} where the manifest has {text['words']}"
    except FAULTS as error:
        yield str(error)
    try:
        vectors = load_vectors(manifest.folder, text)
    except FAULTS as error:
        yield str(error)
        return
    for start in range(0, 0 if vectors is None else len(vectors), _ROWS):
        rows = np.isfinite(vectors[start : start + _ROWS]).all(axis=1)  # type: ignore[index]
        if not rows.all():
            yield f"{manifest.folder}/{text['vectors']}: the vector of word {start + int(rows.argmin())} is no number"
            return


class _ShardChecker:
    """Checks one shard after the other and counts their genres."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._index_of_genre = {genre.id: number for number, genre in enumerate(manifest.genres)}
        self._genres = {split: np.zeros(len(manifest.genres), np.int64) for split in SPLITS}
        self._repeated = repeated_films(manifest)
        self._seen_repeated: set[int] = set()

    def check(self, path: AnyPath, local: Path, shard: Shard) -> Iterator[str]:
        """Compare a shard's files with each other and the manifest. `local` is its tar on this machine."""
        yield from check_file(path, local, shard)
        records = index_of_shard(path)
        if len(records) != shard.samples:
            yield f"{index_path(path)}: {len(records)} records where the manifest has {shard.samples} samples"
        for members in (*((name,) for name in FLAGS), tuple(FLAGS)):
            mask, wanted = self._manifest.mask(shard, members), self._manifest.count(shard, members)
            count = int(((records["has"] & mask) == mask).sum())
            if count != wanted:
                names = " and ".join(members)
                yield f"{path}: {count} samples with {names} where the manifest has {wanted}"
        with open(local, "rb") as file:
            for record in records:
                film, offset = int(record["id"]), int(record["offset"])
                faults = self._check_sample(file, record, shard)
                yield from (f"{path}: film {film} at byte {offset}: {fault}" for fault in faults)
            yield from (f"{path}: {fault}" for fault in check_layout(file, records))

    def _check_sample(self, file: IO[bytes], record: np.void, shard: Shard) -> list[str]:
        film, offset, size = (int(record[name]) for name in ("id", "offset", "size"))
        faults = []
        if film in self._seen_repeated:
            faults.append("the film is in the shards twice")
        if film in self._repeated:
            self._seen_repeated.add(film)
        if split_of(film) != shard.split:
            faults.append(f"the film belongs to {split_of(film)}, not {shard.split}")
        try:
            if offset < 0 or offset + size > file.seek(0, 2):
                raise ValueError(f"{size:,} bytes there are more than the tar has")
            file.seek(offset)
            members = read_members(file.read(size), film)
            faults += self._check_members(record, members, shard.split)
            if sum(tar.BLOCK + tar.padded(len(part)) for part in members.values()) != size:
                faults.append("there are bytes among its members that belong to none: links, or a member twice")
        except FAULTS as error:
            faults.append(f"no member .{error.args[0]}" if isinstance(error, KeyError) else str(error))
        return faults

    def _check_members(self, record: np.void, members: dict[str, memoryview], split: str) -> Iterator[str]:
        """Faults of one film's members, decoded as training decodes them."""
        manifest = self._manifest
        has = {name for name, flag in FLAGS.items() if record["has"] & flag}
        wanted = {"json"} | {MEMBER_OF[name] for name in has}
        if missing := sorted(wanted - members.keys()):
            yield f"no member .{', .'.join(missing)}"
        if strange := sorted(members.keys() - wanted):
            yield f"the index knows nothing of its member .{', .'.join(strange)}"
        if lacking := sorted(set(manifest.require) - has):
            yield f"it has no {' and no '.join(lacking)}, which the manifest requires"
        if "json" in members:
            yield from self._check_about(members["json"], int(record["id"]), split)
        if "tokens.npy" in members:
            tokens = load_tokens(members["tokens.npy"], manifest.text["words"])
            if min(len(tokens), 65_535) != record["tokens"]:
                yield f"{len(tokens)} tokens where the index has {record['tokens']}"
        if "jpg" in members:
            size = manifest.image["size"]
            decode_jpeg(members["jpg"], np.empty((size, size, 3), np.uint8))

    def _check_about(self, data: memoryview, film: int, split: str) -> Iterator[str]:
        for genre in load_genres(data):
            if genre in self._index_of_genre:
                self._genres[split][self._index_of_genre[genre]] += 1
            else:
                yield f"the genre {genre} is not in the manifest"
        if (other := load_about(data).get("tmdb_id", film)) != film:
            yield f"its .json tells of film {str(other)[:40]}"

    def check_genres(self) -> Iterator[str]:
        """Compare the manifest's counts of genres with the shards checked."""
        for split in SPLITS:
            if self._genres[split].tolist() != self._manifest.genre_counts[split]:
                yield f"{FILE}: genre_counts of {split} disagree with the shards"


def index_of_shard(path: AnyPath) -> NDArray[np.void]:
    """The index beside a tar, RECORD [samples]. Raises ValueError for anything else."""
    try:
        records = load_array(index_path(path))
    except DamagedArrayError as error:
        raise ValueError(f"{index_path(path)}: {error}") from None
    if records.dtype != RECORD or records.ndim != 1:
        raise ValueError(f"{index_path(path)}: not an index of a shard")
    return records


def _check_reports(manifest: Manifest) -> Iterator[str]:
    """Compare the manifest with the reports that are still there, and so the films left out for their posters."""
    left_out: Counter[str] = Counter()
    missing = False
    for shard in manifest.shards:
        path = manifest.folder / shard.file
        try:
            report = read_report(path)
        except ValueError as error:
            yield str(error)
            return
        if report is None:
            missing = True
        elif report.shard != shard or _options(report) != _options(manifest):
            yield f"{report_path(path)}: tells of other counts, checksums or options than the manifest"
            return
        else:
            left_out.update(report.left_out)
    for reason in (NO_PICTURE, NO_FILE, NOT_OPENED):
        stated, count = manifest.left_out.get(reason, 0), left_out[reason]
        if stated != count and not (missing and stated > count):
            yield f"{FILE}: {stated} films left out with {reason} where the reports of the shards have {count}"


def _options(source: Report | Manifest) -> tuple[Any, ...]:
    """The options that a manifest and a report both record."""
    if isinstance(source, Report):
        recipe = source.recipe
        return recipe.size, recipe.fit, recipe.quality, recipe.text, recipe.require, recipe.vocabulary_sha256
    image, text = source.image, source.text
    return image["size"], image["fit"], image["quality"], text["source"], source.require, text["vocabulary_sha256"]


def check_file(path: AnyPath, local: Path, shard: Shard | SampleShard) -> Iterator[str]:
    """Faults of a tar's size and checksum."""
    if (size := local.stat().st_size) != shard.bytes:
        yield f"{path}: {size:,} bytes where the manifest has {shard.bytes:,}"
    if sha256_of(local) != shard.sha256:
        yield f"{path}: the checksum differs from the manifest's; fetch or pack it again"


def check_layout(file: IO[bytes], records: NDArray[np.void]) -> Iterator[str]:
    """Faults of the layout: samples follow each other without gaps from byte 0, and the end mark follows the last."""
    ends = records["offset"] + records["size"]
    away = np.flatnonzero(records["offset"] != np.concatenate([[0], ends[:-1]]))
    if len(away):
        yield f"film {records['id'][away[0]]} does not begin where the sample before it ends"
    end = int(ends[-1]) if len(ends) else 0
    size = file.seek(0, 2)
    if end > size:
        return
    file.seek(end)
    if size - end < len(tar.END):
        yield f"the end mark at byte {end} is missing; the tar was cut"
    elif any(part.strip(b"\0") for part in iter(lambda: file.read(1 << 20), b"")):
        yield f"{size - end:,} bytes behind the last sample, at byte {end}, are not the end mark of a tar"
