"""The reader: what was packed comes out, damage costs one film and a line, and only a few batches are in flight."""

import io
import itertools
import json
import os
import re
import signal
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray

from genre_dist.catalogue.catalogue import CatalogueWriter, read_rows
from genre_dist.genres import INDEX_OF_ID
from genre_dist.packing.pack import pack
from genre_dist.stream import ring, tar
from genre_dist.stream.batch import Batch, Seconds
from genre_dist.stream.index import RECORD, index_path
from genre_dist.stream.loader import TrainStream, evaluation_stream
from genre_dist.stream.manifest import load_manifest, save_manifest
from genre_dist.stream.order import Rows, evaluation_batches
from genre_dist.stream.reader import ShardReader
from genre_dist.stream.tar import members

BOTH = ("poster", "overview")
Film = dict[str, bytes]  # members by extension


@pytest.fixture(scope="module")
def mixed_shards(sample_catalogue: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of the whole sample: some films have no poster, some no text. Read only."""
    folder = tmp_path_factory.mktemp("mixed")
    pack(sample_catalogue, folder, require=(), size=32, shard_size=60)
    return folder


def reader(folder: Path, split: str = "train", wanted: tuple[str, ...] = BOTH, max_tokens: int = 200) -> ShardReader:
    return ShardReader(load_manifest(folder), split, wanted, max_tokens)


def packed(folder: Path, split: str = "train") -> dict[int, Film]:
    """The films of a split in stored order, read by Python's own tarfile."""
    films: dict[int, Film] = {}
    for shard in load_manifest(folder).shards_of(split):
        with tarfile.open(folder / shard.file) as archive:
            for member in archive:
                key, extension = member.name.split(".", 1)
                content = archive.extractfile(member)
                assert content is not None
                films.setdefault(int(key), {})[extension] = content.read()
    return films


def everything(source: ShardReader) -> Batch:
    """All films of the reader's split in one batch."""
    sizes = source.index.sizes
    shard = np.repeat(np.arange(len(sizes)), sizes)
    row = np.concatenate([np.arange(size) for size in sizes])
    return source.read(Rows(shard, row))


def same(one: Batch, other: Batch) -> bool:
    """Whether two batches hold the same, padding included."""

    def contents(batch: Batch) -> dict[str, bytes]:
        arrays = {"ids": batch.ids, "labels": batch.labels, "weights": batch.weights} | batch.arrays
        return {name: f"{array.dtype} {array.shape}".encode() + array.tobytes() for name, array in arrays.items()}

    return contents(one) == contents(other) and (one.faults, one.samples) == (other.faults, other.samples)


# ---- what comes out --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_the_reader_returns_what_was_packed(sample_shards: Path, split: str) -> None:
    films, batch = packed(sample_shards, split), everything(reader(sample_shards, split))
    assert batch.ids.tolist() == list(films)
    assert batch.weights.tolist() == [1] * len(films)
    assert batch.faults == []
    assert batch.images is not None
    assert batch.tokens is not None
    assert batch.lengths is not None
    assert batch.images.shape == (len(films), 72, 72, 3)
    for number, film in enumerate(films.values()):
        genres = {INDEX_OF_ID[genre] for genre in json.loads(film["json"])["genre_ids"]}
        assert set(np.flatnonzero(batch.labels[number])) == genres
        tokens = np.load(io.BytesIO(film["tokens.npy"]))
        assert batch.lengths[number] == len(tokens)
        assert batch.tokens[number, : len(tokens)].tolist() == tokens.tolist()
        assert not batch.tokens[number, len(tokens) :].any()
        assert np.array_equal(batch.images[number], simplejpeg.decode_jpeg(film["jpg"], colorspace="RGB"))


@pytest.mark.parametrize("wanted", [("poster",), ("overview",), BOTH])
def test_only_films_that_have_what_is_wanted_are_read(mixed_shards: Path, wanted: tuple[str, ...]) -> None:
    needed = {{"poster": "jpg", "overview": "tokens.npy"}[name] for name in wanted}
    films = [film for film, has in packed(mixed_shards).items() if needed <= has.keys()]
    batch = everything(reader(mixed_shards, wanted=wanted))
    assert batch.ids.tolist() == films
    assert len(films) < len(packed(mixed_shards))
    assert batch.faults == []
    assert (batch.images is not None) == ("poster" in wanted)
    assert (batch.tokens is not None) == (batch.lengths is not None) == ("overview" in wanted)


def test_films_without_poster_or_text_are_read_where_neither_is_wanted(mixed_shards: Path) -> None:
    assert everything(reader(mixed_shards, wanted=())).ids.tolist() == list(packed(mixed_shards))


@pytest.mark.parametrize("most", [1, 7])
def test_texts_are_cut_at_max_tokens(sample_shards: Path, most: int) -> None:
    whole, cut = everything(reader(sample_shards)), everything(reader(sample_shards, max_tokens=most))
    assert whole.lengths is not None
    assert whole.tokens is not None
    assert cut.lengths is not None
    assert cut.lengths.tolist() == np.minimum(whole.lengths, most).tolist()
    assert np.array_equal(cut.tokens, whole.tokens[:, :most])


def test_a_batch_of_no_films_has_arrays_of_no_rows(sample_shards: Path) -> None:
    nothing = np.empty(0, np.int64)
    batch = reader(sample_shards).read(Rows(nothing, nothing))
    assert batch.images is not None
    assert batch.tokens is not None
    assert (len(batch.ids), batch.labels.shape, batch.images.shape) == (0, (0, 19), (0, 72, 72, 3))
    assert batch.tokens.shape == (0, 1)


# ---- damage ----------------------------------------------------------------------------------------------------------

VICTIM = 3  # the row of the first train shard that gets damaged


class Damaged:
    """The first train shard of a folder, to be changed in place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / load_manifest(folder).shards_of("train")[0].file
        self.data = bytearray(self.path.read_bytes())
        self.index = np.load(index_path(self.path))
        self.film, self.offset = int(self.index["id"][VICTIM]), int(self.index["offset"][VICTIM])

    def member(self, extension: str) -> slice:
        """Where the content of one of the film's members lies."""
        piece = bytes(self.data[self.offset : self.offset + int(self.index["size"][VICTIM])])
        found = next(member for member in members(piece) if member.name == f"{self.film}.{extension}")
        return slice(self.offset + found.start, self.offset + found.start + found.size)

    def overwrite(self, extension: str, content: bytes, at: int = 0) -> None:
        start = self.member(extension).start + at
        self.data[start : start + len(content)] = content

    def rename(self, extension: str, name: bytes) -> None:
        header = self.member(extension).start - 512
        self.data[header : header + 100] = name.ljust(100, b"\0")

    def set_tokens(self, value: int) -> None:
        where = self.member("tokens.npy")
        self.data[where.stop - 4 : where.stop] = np.int32(value).tobytes()

    def swap_rows(self) -> None:
        """The index of another packing: the film's id stands at another film's place."""
        for column in ("offset", "size"):
            self.index[column][VICTIM] = self.index[column][VICTIM + 1]
        self.offset = int(self.index["offset"][VICTIM])

    def write(self) -> None:
        self.path.write_bytes(self.data)
        np.save(index_path(self.path), self.index)


DAMAGES: dict[str, tuple[Callable[[Damaged], Any], str]] = {
    "image cut": (lambda shard: shard.overwrite("jpg", bytes(400), at=400), ""),
    "image no JPEG": (lambda shard: shard.overwrite("jpg", b"not a picture"), ""),
    "tokens no array": (lambda shard: shard.overwrite("tokens.npy", b"garbage!"), "no NumPy array"),
    "tokens a zip": (lambda shard: shard.overwrite("tokens.npy", b"PK\x03\x04"), "no NumPy array"),
    "tokens header": (lambda shard: shard.overwrite("tokens.npy", b"((((", at=12), "no NumPy array"),
    "tokens float": (lambda shard: shard.overwrite("tokens.npy", b"<f4", at=21), "int32"),
    "token too high": (lambda shard: shard.set_tokens(10**6), "1000000 is outside the vocabulary"),
    "token negative": (lambda shard: shard.set_tokens(-1), "-1 is outside the vocabulary"),
    "no image": (lambda shard: shard.rename("jpg", b"%d.png" % shard.film), r"no member \.jpg"),
    "no tokens": (lambda shard: shard.rename("tokens.npy", b"%d.txt" % shard.film), r"no member \.tokens\.npy"),
    "no json": (lambda shard: shard.rename("json", b"%d.xml" % shard.film), r"no member \.json"),
    "json broken": (lambda shard: shard.overwrite("json", b"{{"), ""),
    "json a list": (lambda shard: shard.overwrite("json", b"[]".ljust(_length(shard, "json"))), "no labels"),
    "json without genres": (lambda shard: shard.overwrite("json", b"{}".ljust(_length(shard, "json"))), "genre_ids"),
    "unknown genre": (
        lambda shard: shard.overwrite("json", b'{"genre_ids": [4711]}'.ljust(_length(shard, "json"))),
        "genre 4711 is not in the manifest",
    ),
    "header": (
        lambda shard: shard.data.__setitem__(slice(shard.offset, shard.offset + 512), b"x" * 512),
        "no tar header",
    ),
    "another film": (lambda shard: shard.swap_rows(), "index is of another tar"),
}


def _length(shard: Damaged, extension: str) -> int:
    where = shard.member(extension)
    return where.stop - where.start


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_film_weighs_nothing_gets_one_line_and_leaves_the_others_alone(shards_copy: Path, kind: str) -> None:
    whole = everything(reader(shards_copy))
    damage, reason = DAMAGES[kind]
    shard = Damaged(shards_copy)
    damage(shard)
    shard.write()
    batch = everything(reader(shards_copy))
    assert batch.ids.tolist() == whole.ids.tolist()
    assert np.flatnonzero(batch.weights == 0).tolist() == [VICTIM]
    (line,) = batch.faults
    assert line.startswith(f"{shard.path}: film {shard.film} at byte {shard.offset}: ")
    assert "\n" not in line
    assert len(line) > len(f"{shard.path}: film {shard.film} at byte {shard.offset}: ")
    assert re.search(reason, line)
    others = np.arange(len(batch.ids)) != VICTIM
    assert np.array_equal(batch.labels[others], whole.labels[others])
    assert batch.images is not None
    assert whole.images is not None
    assert np.array_equal(batch.images[others], whole.images[others])
    assert (batch.images[VICTIM] == 128).all()
    assert batch.lengths is not None
    assert whole.lengths is not None
    assert np.array_equal(batch.lengths[others], whole.lengths[others])


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "about", [b"[" * 200_000, b'{"genre_ids": ' + b"[" * 200_000, b"\xff" * 100], ids=["list", "genres", "text"]
)
def test_a_member_that_cannot_be_parsed_is_a_fault_of_its_film_alone_and_readers_live_on(
    shards_copy: Path, about: bytes, workers: int
) -> None:
    shard = Damaged(shards_copy)
    begin = shard.member("json").start - 512
    member = tar.header(f"{shard.film}.json", len(about)) + about.ljust(tar.padded(len(about)), b"\0")
    end = begin + 512 + tar.padded(_length(shard, "json"))
    longer = len(member) - (end - begin)
    shard.data[begin:end] = member
    shard.index["size"][VICTIM] += longer
    shard.index["offset"][VICTIM + 1 :] += longer
    shard.write()
    manifest = load_manifest(shards_copy)
    first = replace(manifest.shards[0], bytes=len(shard.data))
    save_manifest(replace(manifest, shards=(first, *manifest.shards[1:])))
    source = reader(shards_copy)
    with closing(ring.batches(source, map(source.refs, places(source, 10)), samples=10, workers=workers)) as found:
        told = [(batch.faults, len(batch.ids)) for batch in found]
    assert sum(films for _, films in told) == source.index.samples
    (line,) = [line for faults, _ in told for line in faults]
    assert line.startswith(f"{shard.path}: film {shard.film} at byte {shard.offset}: ")
    assert line.isprintable()


def test_damage_is_replaced_in_the_same_way_every_time(shards_copy: Path) -> None:
    shard = Damaged(shards_copy)
    shard.overwrite("jpg", bytes(400), at=400)
    shard.write()
    assert same(everything(reader(shards_copy)), everything(reader(shards_copy)))


def test_films_behind_the_end_of_a_truncated_shard_are_faults_and_those_before_it_are_not(shards_copy: Path) -> None:
    shard = Damaged(shards_copy)
    del shard.data[shard.offset + 700 :]
    shard.write()
    batch = everything(reader(shards_copy))
    lost = len(shard.index) - VICTIM
    assert np.flatnonzero(batch.weights == 0).tolist() == list(range(VICTIM, VICTIM + lost))
    assert len(batch.faults) == lost
    assert all("truncated" in line for line in batch.faults)


def test_the_films_of_a_missing_shard_are_faults(shards_copy: Path) -> None:
    shard = Damaged(shards_copy)
    shard.path.unlink()
    batch = everything(reader(shards_copy))
    assert int((batch.weights == 0).sum()) == len(batch.faults) == len(shard.index)


# ---- reading ahead ---------------------------------------------------------------------------------------------------


def places(source: ShardReader, size: int) -> list[Rows]:
    return list(evaluation_batches(source.index.sizes, 1, 0, size))


def kept(batch: Batch) -> Batch:
    """A batch that stays valid: its arrays are views of memory that is filled again."""
    return replace(batch.each(np.copy), seconds=Seconds())


def reader_processes() -> list[int]:
    """The processes that this one started to read."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text().split():
            if "genre_dist.stream.worker" in Path(f"/proc/{child}/cmdline").read_text():
                found.append(int(child))
    return found


@pytest.mark.parametrize(("workers", "prefetch", "hold"), [(0, 2, 1), (0, 2, 3), (1, 1, 1), (3, 2, 1), (2, 4, 3)])
def test_batches_come_in_the_order_of_their_places_with_the_bytes_of_a_reader_without_workers(
    sample_shards: Path, workers: int, prefetch: int, hold: int
) -> None:
    source = reader(sample_shards)
    wanted = [kept(source.read(rows)) for rows in places(source, 10)]
    with closing(
        ring.batches(
            source, map(source.refs, places(source, 10)), samples=10, workers=workers, prefetch=prefetch, hold=hold
        )
    ) as found:
        assert all(same(kept(batch), other) for batch, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("hold", [1, 3])
def test_a_batch_stays_as_it_is_until_hold_later_ones_are_asked_for(
    sample_shards: Path, workers: int, hold: int
) -> None:
    source = reader(sample_shards)
    wanted = [kept(source.read(rows)) for rows in places(source, 10)]
    held: list[Batch] = []
    with closing(
        ring.batches(source, map(source.refs, places(source, 10)), samples=10, workers=workers, hold=hold)
    ) as found:
        for number, batch in enumerate(found):
            held = [*held, batch][-hold:]
            for older, other in zip(held, wanted[: number + 1][-hold:], strict=True):
                assert same(kept(older), other)


@pytest.mark.parametrize(("workers", "most"), [(0, 2), (2, 5)])
def test_batches_lie_in_the_same_memory_again(sample_shards: Path, workers: int, most: int) -> None:
    source = reader(sample_shards)
    rows = itertools.islice(itertools.cycle(places(source, 6)), 40)
    with closing(ring.batches(source, map(source.refs, rows), samples=6, workers=workers, prefetch=3, hold=2)) as found:
        assert len({batch.ids.ctypes.data for batch in found}) <= most


def test_a_reader_process_reads_and_listens_and_starts_no_other_threads(sample_shards: Path) -> None:
    source = reader(sample_shards)
    with closing(ring.batches(source, map(source.refs, places(source, 6)), samples=6, workers=1)) as found:
        next(found)
        (process,) = reader_processes()
        assert len(list(Path(f"/proc/{process}/task").iterdir())) == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_pictures_lie_where_the_decoder_writes_through_the_caches(sample_shards: Path, workers: int) -> None:
    source = reader(sample_shards)
    with closing(ring.batches(source, map(source.refs, places(source, 6)), samples=6, workers=workers)) as found:
        assert {batch.images.ctypes.data % 32 for batch in found} == {16}
    assert source.read(places(source, 6)[0]).images.ctypes.data % 32 == 16


@pytest.mark.parametrize(("prefetch", "hold"), [(1, 1), (4, 2)])
def test_only_so_many_batches_exist_at_a_time(sample_shards: Path, prefetch: int, hold: int) -> None:
    source, taken = reader(sample_shards), 0

    def counted() -> Iterator[Rows]:
        nonlocal taken
        for rows in itertools.cycle(places(source, 6)):
            taken += 1
            yield rows

    with closing(
        ring.batches(source, map(source.refs, counted()), samples=6, workers=2, prefetch=prefetch, hold=hold)
    ) as found:
        for number, _ in zip(range(40), found, strict=False):
            assert taken <= number + prefetch + hold


@pytest.mark.parametrize("workers", [0, 2])
def test_faults_come_with_their_batch(shards_copy: Path, workers: int) -> None:
    shard = Damaged(shards_copy)
    shard.overwrite("jpg", bytes(400), at=400)
    shard.write()
    source = reader(shards_copy)
    with closing(ring.batches(source, map(source.refs, places(source, 2)), samples=2, workers=workers)) as found:
        faults = [len(batch.faults) for batch in found]
    assert [number for number, count in enumerate(faults) if count] == [VICTIM // 2]


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_closing_early_leaves_no_process(sample_shards: Path, taken: int) -> None:
    stream = TrainStream(reader(sample_shards), global_batch=8, micro_batch=4, seed=0, workers=2, prefetch=4)
    batches = stream.batches()
    for _ in range(taken):
        next(batches)
    assert len(reader_processes()) == (2 if taken else 0)
    batches.close()
    assert reader_processes() == []


def test_a_killed_reader_process_is_told_instead_of_waited_for(sample_shards: Path) -> None:
    with closing(TrainStream(reader(sample_shards), global_batch=8, micro_batch=8, seed=0).batches()) as batches:
        next(batches)
        os.kill(reader_processes()[0], signal.SIGKILL)
        with pytest.raises(ChildProcessError, match=r"reader process .* was killed by signal 9"):
            list(batches)
    assert reader_processes() == []


# ---- the training stream ---------------------------------------------------------------------------------------------


def steps(source: ShardReader, count: int, position: int = 0, **options: Any) -> list[list[Batch]]:
    stream = TrainStream(source, **({"global_batch": 12, "micro_batch": 4, "seed": 5, "workers": 0} | options))
    with closing(stream.batches(position)) as batches:
        return [[kept(batch) for batch in micro] for micro in itertools.islice(batches, count)]


def joined(micro: list[Batch]) -> tuple[list[int], NDArray[Any], NDArray[Any]]:
    """Ids, labels and pixels of micro-batches side by side."""
    images = [batch.images for batch in micro if batch.images is not None]
    return (
        [int(film) for batch in micro for film in batch.ids],
        np.concatenate([batch.labels for batch in micro]),
        np.concatenate(images),
    )


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_nothing(sample_shards: Path, workers: int) -> None:
    source = reader(sample_shards)
    alone, helped = steps(source, 30, workers=0), steps(source, 30, workers=workers)
    assert all(same(a, b) for one, other in zip(alone, helped, strict=True) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("position", [1, 7, 13, 14, 29])
def test_a_stream_goes_on_from_any_position(sample_shards: Path, position: int) -> None:
    source = reader(sample_shards)
    through, resumed = steps(source, position + 2), steps(source, 2, position)
    for one, other in zip(through[position:], resumed, strict=True):
        assert all(same(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("world", "micro"), [(1, 12), (2, 6), (2, 4), (3, 2), (4, 1), (12, 1)])
def test_the_micro_batches_of_all_ranks_are_the_global_step(sample_shards: Path, world: int, micro: int) -> None:
    source = reader(sample_shards)
    stream = TrainStream(source, global_batch=12, micro_batch=micro, seed=5)
    count = stream.steps_per_epoch + 1  # over the smaller last step of the epoch
    ranks = [steps(source, count, micro_batch=micro, world=world, rank=rank) for rank in range(world)]
    whole = steps(source, count, micro_batch=12)
    for step in range(count):
        found = joined([batch for rank in ranks for batch in rank[step]])
        wanted = joined(whole[step])
        assert found[0] == wanted[0] == stream.step_ids(step).tolist()
        assert all(np.array_equal(a, b) for a, b in zip(found[1:], wanted[1:], strict=True))
        assert len({len(rank[step]) for rank in ranks}) == 1  # as many micro-batches on every rank


def test_an_epoch_trains_on_every_film_once(sample_shards: Path) -> None:
    source = reader(sample_shards)
    stream = TrainStream(source, global_batch=12, micro_batch=12, seed=5)
    for epoch in (0, 1):
        places = range(epoch * stream.steps_per_epoch, (epoch + 1) * stream.steps_per_epoch)
        ids = [film for place in places for film in stream.step_ids(place).tolist()]
        assert sorted(ids) == sorted(packed(sample_shards))


def test_a_split_is_evaluated_once_over_all_ranks_in_equally_many_batches(sample_shards: Path) -> None:
    source = reader(sample_shards, "val")
    ranks = [
        [batch.ids.tolist() for batch in evaluation_stream(source, batch=4, world=3, rank=rank, workers=rank)]
        for rank in range(3)
    ]
    ids = [film for batches in ranks for batch in batches for film in batch]
    assert ids == list(packed(sample_shards, "val"))
    assert len({len(batches) for batches in ranks}) == 1


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_training_on_a_medium_that_no_film_has_is_refused(sample_catalogue: Path, tmp_path: Path) -> None:
    with CatalogueWriter(tmp_path / "catalogue") as writer:
        for row in read_rows(sample_catalogue):
            writer.add(row | {"poster_status": "none"})
    pack(tmp_path / "catalogue", tmp_path / "shards", require=("overview",))
    with pytest.raises(ValueError, match="no film of the train split has poster and overview"):
        TrainStream(reader(tmp_path / "shards"), global_batch=4, micro_batch=4, seed=0)


@pytest.mark.parametrize("last_batch", ["keep", "drop"])
def test_a_global_batch_larger_than_the_data_is_kept_or_refused(
    sample_shards: Path, last_batch: Literal["keep", "drop"]
) -> None:
    def stream() -> TrainStream:
        return TrainStream(reader(sample_shards), global_batch=1000, micro_batch=10, seed=0, last_batch=last_batch)

    if last_batch == "keep":
        assert sorted(stream().step_ids(0).tolist()) == sorted(packed(sample_shards))
    else:
        with pytest.raises(ValueError, match=r"do not fill one global batch of 1000; lower data\.global_batch"):
            stream()


def test_ranks_that_cannot_share_the_global_batch_are_refused(sample_shards: Path) -> None:
    with pytest.raises(ValueError, match="5 ranks cannot share a global batch of 12"):
        TrainStream(reader(sample_shards), global_batch=12, micro_batch=2, seed=0, world=5)


def test_a_record_of_the_index_takes_24_bytes() -> None:
    assert RECORD.itemsize == 24
