"""One pack on several nodes: the parts know nothing of each other, and together make the bytes of one pack."""

import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from test_pack import catalogue_of, command, files, python, temporary, wait_for

from genre_dist.cli import main
from genre_dist.packing.pack import merge_parts, pack, pack_part
from genre_dist.packing.parts import parse_part
from genre_dist.stream.manifest import FILE

OPTIONS = {"size": 72, "shard_size": 50}


def whole(folder: Path) -> dict[str, bytes]:
    assert temporary(folder) == []
    return files(folder)


# ---- which part ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["0/4", "4/4", "1/1", "0/1", "15/16"])
def test_parts_count_from_0_or_from_1(text: str) -> None:
    assert "/".join(map(str, parse_part(text))) == text


@pytest.mark.parametrize("text", ["", "3", "5/4", "-1/4", "1/0", "0/0", "a/b", "1/2/3", "1.5/4"])
def test_a_part_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--part takes i/n"):
        parse_part(text)


def slurm(task: int, count: int, first: int, **more: int) -> dict[str, str]:
    values = {"ID": task, "COUNT": count, "MIN": first} | {name.upper(): value for name, value in more.items()}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


@pytest.mark.parametrize(
    ("environment", "part"),
    [
        (slurm(0, 4, 0), (0, 4)),
        (slurm(3, 4, 0, max=3, step=1), (3, 4)),
        (slurm(1, 4, 1, max=4, step=1), (0, 4)),
        (slurm(104, 3, 100, max=104, step=2), (2, 3)),
    ],
)
def test_slurm_tells_the_part(environment: dict[str, str], part: tuple[int, int]) -> None:
    assert parse_part("slurm", environment) == part


@pytest.mark.parametrize(
    "environment", [slurm(7, 3, 1), slurm(3, 3, 1, max=7, step=1), slurm(2, 3, 1, max=5, step=2), {}]
)
def test_a_slurm_array_that_gives_no_parts_is_refused(environment: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="--array=0-15"):
        parse_part("slurm", environment)


def test_the_command_takes_its_part_from_slurm(
    sample_catalogue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for task in (1, 2):
        for name, value in slurm(task, 2, 1, max=2, step=1).items():
            monkeypatch.setenv(name, value)
        assert main([*command(sample_catalogue, tmp_path / "slurm"), "--part=slurm"]) == 0
    assert main([*command(sample_catalogue, tmp_path / "slurm"), "--merge"]) == 0


# ---- together the bytes of one pack ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "parts"), [(0, 1), (0, 3), (1, 3), (0, 50)])
def test_parts_in_any_order_make_the_bytes_of_one_pack(
    sample_catalogue: Path, sample_shards: Path, tmp_path: Path, first: int, parts: int
) -> None:
    out = tmp_path / "parts"
    made = [pack_part(sample_catalogue, out, (part, parts), **OPTIONS) for part in range(first, first + parts)[::-1]]
    assert not (out / FILE).exists()
    assert sum(made) == len(list(out.glob("*.tar"))) == len(list(sample_shards.glob("*.tar")))
    merge_parts(sample_catalogue, out, **OPTIONS)
    assert whole(out) == files(sample_shards)


@pytest.mark.slow
def test_parts_at_the_same_time_one_killed_and_run_again_make_the_bytes_of_one_pack(
    sample_catalogue: Path, tmp_path: Path
) -> None:
    out, reference = tmp_path / "parts", tmp_path / "whole"
    options = ["--shard_size=1", "--size=200"]
    parts = [python([*command(sample_catalogue, out), *options, f"--part={part}/3"]) for part in range(3)]
    # part 1 is started twice at once, as when SLURM starts a task again whose node is not quite dead: one is refused,
    # or finds all done if it came that late
    running = [subprocess.Popen(part, start_new_session=True, stdout=subprocess.DEVNULL) for part in [*parts, parts[1]]]
    try:
        wait_for(lambda: any(out.glob("*.report.json")))
        running[0].kill()
        assert running[0].wait() == -signal.SIGKILL
        assert sorted(process.wait(timeout=60) for process in running[1:]) in ([0, 0, 2], [0, 0, 0])
    finally:
        for process in running:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    (out / "train-000000.tar.node1-77-ab.tmp").write_bytes(b"half, left by the killed part")
    assert main([*command(sample_catalogue, out), *options, "--merge"]) == 2
    assert subprocess.run(parts[0], stdout=subprocess.DEVNULL).returncode == 0
    assert main([*command(sample_catalogue, out), *options, "--merge"]) == 0
    pack(sample_catalogue, reference, shard_size=1, size=200)
    assert whole(out) == files(reference)


def test_a_plain_pack_finishes_what_parts_left(sample_catalogue: Path, sample_shards: Path, tmp_path: Path) -> None:
    pack_part(sample_catalogue, tmp_path / "out", (1, 2), **OPTIONS)
    pack(sample_catalogue, tmp_path / "out", **OPTIONS)
    assert whole(tmp_path / "out") == files(sample_shards)


def test_a_part_leaves_the_shards_of_others_alone(sample_catalogue: Path, tmp_path: Path) -> None:
    out = tmp_path / "parts"
    pack_part(sample_catalogue, out, (0, 2), **OPTIONS)
    there = {path: path.stat().st_mtime_ns for path in out.glob("*-*.*")}
    pack_part(sample_catalogue, out, (1, 2), **OPTIONS | {"size": 16})
    pack_part(sample_catalogue, out, (0, 2), **OPTIONS)
    assert {path: path.stat().st_mtime_ns for path in there} == there


# ---- the merge -------------------------------------------------------------------------------------------------------


def test_a_merge_names_the_parts_that_are_missing(
    sample_catalogue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "parts"
    for part in (0, 2):
        pack_part(sample_catalogue, out, (part, 3), **OPTIONS)
    (out / "train-000003.report.json").unlink()
    before = files(out)
    assert main([*command(sample_catalogue, out), "--merge"]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "3 of 6 shards are not finished" in error
    assert "--part 1/3" in error
    assert "--part 0/3" in error
    assert "--part 2/3" not in error
    assert files(out) == before


def test_a_merge_with_other_options_than_the_parts_is_refused(sample_catalogue: Path, tmp_path: Path) -> None:
    pack_part(sample_catalogue, tmp_path / "out", (0, 1), **OPTIONS)
    with pytest.raises(ValueError, match=r"6 of 6 shards are not finished, or packed with other options"):
        merge_parts(sample_catalogue, tmp_path / "out", size=80, shard_size=50)


def test_merging_what_is_merged_changes_nothing(sample_catalogue: Path, shards_copy: Path) -> None:
    before = files(shards_copy)
    assert main([*command(sample_catalogue, shards_copy), "--part=0/2"]) == 0
    assert main([*command(sample_catalogue, shards_copy), "--merge"]) == 0
    assert whole(shards_copy) == before


def test_parts_extend_a_finished_folder_as_one_pack_does(sample_catalogue: Path, tmp_path: Path) -> None:
    fewer = catalogue_of(sample_catalogue, tmp_path / "fewer", lambda row: row if row["tmdb_id"] % 3 else None)
    pack(fewer, tmp_path / "one", **OPTIONS)
    shutil.copytree(tmp_path / "one", tmp_path / "parts")
    pack(sample_catalogue, tmp_path / "one", **OPTIONS)
    for part in range(2):
        pack_part(sample_catalogue, tmp_path / "parts", (part, 2), **OPTIONS)
    merge_parts(sample_catalogue, tmp_path / "parts", **OPTIONS)
    assert whole(tmp_path / "parts") == files(tmp_path / "one")
