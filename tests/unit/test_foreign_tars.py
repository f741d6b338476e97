"""Anyone's WebDataset tars: indexed as they are, read in our order, by ranks and workers, stopped and continued."""

import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign_decoder import length_of
from foreign_tars import like_img2dataset, write_tar
from hypothesis import given
from hypothesis import strategies as st
from range_server import serve_folder
from webdataset.tariterators import base_plus_ext

from genre_dist.cli import main
from genre_dist.stream import TarReader, TrainStream, evaluation_stream, index_tars, load_tars
from genre_dist.stream.foreign import Tars
from genre_dist.stream.indexing import sample_id, split_name


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tars, dict[str, dict[str, bytes]]]:
    """100 samples in 4 tars, listed beside them. Read only."""
    folder = tmp_path_factory.mktemp("foreign")
    made = like_img2dataset(folder)
    return index_tars(sorted(folder.glob("*.tar")), folder), made


def stream_of(tars: Tars, world: int = 1, rank: int = 0, workers: int = 0, **options: Any) -> TrainStream:
    reader = TarReader(tars, ("jpg", "txt"), **options)
    return TrainStream(reader, global_batch=12, micro_batch=2, seed=5, block=4, world=world, rank=rank, workers=workers)


def keys(step: list[Any]) -> list[str]:
    return [sample["__key__"] for batch in step for sample in batch.samples]


def test_samples_come_with_the_bytes_of_their_members_each_once_an_epoch(
    foreign: tuple[Tars, dict[str, dict[str, bytes]]],
) -> None:
    tars, made = foreign
    wanted = {key: members for key, members in made.items() if "txt" in members}
    seen = {sample.pop("__key__"): sample for step in stream_of(tars) for b in step for sample in b.samples}
    assert seen == wanted
    assert tars.extensions == {"jpg": 100, "json": 100, "txt": 64}


def test_the_order_is_the_same_on_any_number_of_ranks_and_workers_and_goes_on_from_a_state(
    foreign: tuple[Tars, dict[str, dict[str, bytes]]],
) -> None:
    tars, _ = foreign
    alone = [sorted(keys(step)) for step in stream_of(tars)]
    ranks = [iter(stream_of(tars, world=3, rank=rank, workers=rank)) for rank in range(3)]
    together = []
    for parts in zip(*ranks, strict=True):
        together.append(sorted(key for part in parts for key in keys(part)))
    assert together == alone
    stopped = stream_of(tars)
    steps = iter(stopped)
    next(steps), next(steps)
    goes_on = stream_of(tars)
    goes_on.load_state_dict(stopped.state_dict())
    assert [sorted(keys(step)) for step in goes_on] == alone[2:]


def test_a_decoder_runs_in_the_workers_and_what_it_refuses_is_a_fault(
    foreign: tuple[Tars, dict[str, dict[str, bytes]]],
) -> None:
    tars, made = foreign
    reader = TarReader(tars, ("jpg",), decode=length_of)
    batches = list(evaluation_stream(reader, batch=16, workers=2))
    found = [sample for batch in batches for sample in batch.samples]
    assert len(found) == 100
    assert dict(sample for sample in found if sample) == {
        key: len(members["jpg"]) for key, members in made.items() if key != "000010007"
    }
    assert [fault for batch in batches for fault in batch.faults] == [
        f"{tars.folder}/00001.tar: sample 000010007 at byte {offset_of(tars, 10007)}: this one is no good"
    ]


def offset_of(tars: Tars, number: int) -> int:
    for tar in tars.tars:
        records = np.load(Path(str(tars.folder)) / tar.index_file)
        if number in records["id"]:
            return int(records["offset"][records["id"] == number][0])
    raise AssertionError


@pytest.mark.slow
def test_the_verb_lists_tars_in_place_and_urls_elsewhere_and_leaves_what_is_indexed_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    like_img2dataset(tmp_path / "tars", tars=2)
    assert main(["index", str(tmp_path / "tars"), "--workers", "2"]) == 0
    assert "50 samples of 2 tars listed" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "tars" / "tars.index").iterdir()}
    assert main(["index", str(tmp_path / "tars"), "--workers", "1"]) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "tars" / "tars.index").iterdir()} == before
    with serve_folder(tmp_path / "tars") as server:
        urls = [f"{server.url}/0000{number}.tar" for number in range(2)]
        assert main(["index", *urls, "--out", str(tmp_path / "listing"), "--workers", "1"]) == 0
        here = [keys(step) for step in stream_of(load_tars(tmp_path / "tars"))]
        assert [keys(step) for step in stream_of(load_tars(tmp_path / "listing"))] == here
        assert [keys(step) for step in stream_of(load_tars(server.url))] == here


def test_moved_tars_and_a_pattern_of_their_names(tmp_path: Path) -> None:
    like_img2dataset(tmp_path / "tars", tars=2)
    index_tars(sorted((tmp_path / "tars").glob("*.tar")), tmp_path / "tars")
    (tmp_path / "tars").rename(tmp_path / "elsewhere")
    reader = TarReader(load_tars(tmp_path / "elsewhere"), ("jpg",), tars="*00001.tar")
    assert {sample["__key__"][:5] for b in evaluation_stream(reader, batch=9, workers=0) for sample in b.samples} == {
        "00001"
    }
    with pytest.raises(ValueError, match=r"no sample of \* has mp3; there are 50 \.j"):
        TarReader(load_tars(tmp_path / "elsewhere"), ("mp3",))


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_keys_with_folders_long_names_and_compound_extensions(tmp_path: Path, form: int) -> None:
    long = "a" * 90
    names = [f"x/{long}/one.JPG", f"x/{long}/one.seg.png", f"y/{long}/one.jpg", "README", "y/.hidden", "two.jpg"]
    write_tar(tmp_path / "a.tar", names, format=form)
    tars = index_tars([tmp_path / "a.tar"], tmp_path)
    found = [sample for b in evaluation_stream(TarReader(tars, ("jpg",)), batch=9, workers=0) for sample in b.samples]
    assert [sample["__key__"] for sample in found] == [f"x/{long}/one", f"y/{long}/one", "two"]
    assert found[0]["seg.png"] == names[1].encode()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.jpg", "b.jpg", "a.txt"], r"is there twice, or its members lie apart"),
        (["a.jpg", "a.jpg"], r"two members 'a\.jpg' in one sample, the second at byte \d+"),
        (["README"], r"no samples in it"),
        ([f"a.x{number}" for number in range(17)], r"more than 16 kinds of members"),
    ],
)
def test_what_cannot_be_read_as_samples_is_refused(tmp_path: Path, names: list[str], message: str) -> None:
    tar = write_tar(tmp_path / "bad.tar", names)
    with pytest.raises(ValueError, match=rf"bad\.tar: .*{message}"):
        index_tars([tar], tmp_path)
    assert not (tmp_path / "tars.json").exists()


def test_compressed_cut_and_missing_tars_are_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "z.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
    with pytest.raises(ValueError, match=r"z\.tar: it is compressed"):
        index_tars([tmp_path / "z.tar"], tmp_path)
    whole = write_tar(tmp_path / "c.tar", ["a.jpg", "b.jpg"]).read_bytes()
    (tmp_path / "c.tar").write_bytes(whole[:1500])
    with pytest.raises(ValueError, match=r"c\.tar: .* at byte \d+"):
        index_tars([tmp_path / "c.tar"], tmp_path)
    with pytest.raises(ValueError, match=r"nowhere\.tar: no such tar"):
        index_tars([tmp_path / "nowhere.tar"], tmp_path)


# ---- names -----------------------------------------------------------------------------------------------------------


@given(st.text("ab./_0", max_size=12).filter(lambda name: "/." not in name and not name.startswith("./")))
def test_names_are_split_as_webdataset_splits_them(name: str) -> None:
    key, extension = base_plus_ext(name)
    assert split_name(name) == (None if key is None or not extension else (key, extension.lower()))


def test_numbers_are_ids_and_other_keys_get_one() -> None:
    assert sample_id("000000012") == 12
    assert sample_id("folder/12") != 12
    assert 0 <= sample_id("ä/b") < 1 << 63
