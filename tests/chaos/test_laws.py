"""The laws see what they are for: each is broken once."""

import json
import os
import random
import signal
import sys
from pathlib import Path

import laws
import pytest
from faults import disk, draw_fault, limited, role, victims
from helpers import Processes, until
from stages import ALL, READERS, TRAINING

RUN = {
    "metrics.jsonl": "\n".join(json.dumps({"step": step, "loss": 1 / step, "seconds": 0.1}) for step in (1, 2, 3)),
    "comparison.json": '{"answers": ["It took 0.0 s and 1.5 min, and has 0.1 points less."]}',
    "weights": "abc",
    "config.yaml": "dir: RUN",
    "checkpoints/step-00000003/COMPLETE": "",
}


def write_run(folder: Path, **changes: str) -> Path:
    for name, text in (RUN | changes).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text.replace("RUN", str(folder)))
    return folder


@pytest.fixture
def expected(tmp_path: Path) -> dict:
    return laws.contents(write_run(tmp_path / "expected"))


def test_the_same_run_in_another_folder_at_another_time_is_the_same_result(tmp_path: Path, expected: dict) -> None:
    slower = RUN["metrics.jsonl"].replace("0.1", "0.7")
    answers = RUN["comparison.json"].replace("0.0 s", "12.1 min")
    files = {"metrics.jsonl": slower, "comparison.json": answers, "checkpoints/step-00000002/COMPLETE": ""}
    run = write_run(tmp_path / "run", **files)
    assert laws.same_result(run, expected) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"metrics.jsonl": RUN["metrics.jsonl"] + '\n{"step": 3, "loss": 0.3}'}, "metrics.jsonl differs: 4 rows for 3"),
        ({"metrics.jsonl": RUN["metrics.jsonl"].replace("0.5", "0.6")}, "metrics.jsonl differs[1].loss: 0.6 for 0.5"),
        ({"weights": "abd"}, "weights differs: 3 bytes for 3"),
        (
            {"comparison.json": RUN["comparison.json"].replace("0.1 points", "0.2 points")},
            "comparison.json differs.answers[0]: 'It took some time and some time, and has 0.2 points less.'"
            " for 'It took some time and some time, and has 0.1 points less.'",
        ),
        ({"weights.host-1-ab.tmp": ""}, "weights.host-1-ab.tmp is left behind"),
        ({"checkpoints/step-00000002/x.tmp": ""}, "checkpoints/step-00000002/x.tmp is left behind"),
    ],
)
def test_a_step_twice_another_loss_other_weights_and_temporary_files_are_seen(
    changes: dict[str, str], told: str, tmp_path: Path, expected: dict
) -> None:
    assert laws.same_result(write_run(tmp_path / "run", **changes), expected) == [told]


def test_a_missing_file_and_an_empty_work_folder_are_seen(tmp_path: Path, expected: dict) -> None:
    run = write_run(tmp_path / "run")
    (run / "weights").unlink()
    (run / ".packing").mkdir()
    assert laws.same_result(run, expected) == ["weights is missing", ".packing/ is left behind"]


def test_a_process_that_outlives_its_command_is_seen_in_a_session_of_its_own_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(laws, "LEAVE_SECONDS", 0.2)
    mark = f"CHAOS={tmp_path}".encode()
    with Processes(tmp_path / "log") as processes:
        child = processes.start(["bash", "-c", "setsid sleep 60 & echo started"], CHAOS=str(tmp_path))
        child.wait(10)
        # a process that is about to become another program has no environment for a moment
        until(lambda: [laws.command_of(pid) for pid in laws.marked(mark)] == ["sleep 60"], 10, "sleep to be alone")
        (left,) = laws.marked(mark)
        assert laws.nothing_runs(mark) == [f"process {left} still runs: sleep 60"]
        os.kill(left, signal.SIGKILL)
        assert laws.nothing_runs(mark) == []


def test_a_traceback_counts_if_a_frame_of_it_is_ours() -> None:
    ours = f'  File "{laws.PACKAGE}/train.py", line 1, in main\n    train()'
    theirs = '  File "/site-packages/torch/run.py", line 1, in main\n    run()'
    said = [f"Traceback (most recent call last):\n{frame}\nKeyError: 'a'\n" for frame in (theirs, ours)]
    assert laws.ended_as_promised(1, said[0], (0, 1), False) == []
    (told,) = laws.ended_as_promised(1, "".join(said), (0, 1), False)
    assert told == "a traceback of ours: KeyError: 'a' (File \"genre_dist/train.py\", line 1, in main)"


def test_an_end_is_a_documented_code_and_an_error_in_one_line() -> None:
    assert laws.ended_as_promised(2, "error: no space left", (0, 2), True) == []
    assert laws.ended_as_promised(3, "odd", (0, 2), False) == ["it ended with 3: odd"]
    assert laws.ended_as_promised(2, "oh", (0, 2), True) == [
        "it ended with 2 without a line that begins with `error: `"
    ]


def test_a_seed_draws_the_same_faults_again_and_every_kind_of_them() -> None:
    drawn = [[draw_fault(random.Random(seed), TRAINING, READERS, True) for seed in range(200)] for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert {fault.kind for fault in drawn[0]} == set(TRAINING) > set(ALL)
    assert {fault.target for fault in drawn[0] if fault.is_signal} == set(READERS)


def test_a_signal_finds_the_rank_it_is_for(tmp_path: Path) -> None:
    with Processes(tmp_path / "log") as processes:
        program = "import subprocess, os; subprocess.run(['sleep', '60'], env=os.environ | {'RANK': '1'})"
        child = processes.start([sys.executable, "-c", program], CHAOS=str(tmp_path))
        mark = f"CHAOS={tmp_path}".encode()
        until(lambda: "rank" in [role(pid, child.pid) for pid in laws.marked(mark)], 20, "the rank")
        fault = draw_fault(random.Random(0), ("SIGKILL",), ("rank",), False)
        (rank,) = victims(fault, child.pid, mark, random.Random(0))
        assert laws.command_of(rank) == "sleep 60"


@pytest.mark.parametrize("mounted", [True, False])
def test_a_small_disk_is_full_and_later_is_not_with_and_without_the_right_to_mount_one(
    mounted: bool, tmp_path: Path
) -> None:
    with disk(tmp_path / "out", own=mounted) as place:
        limit = place.leave_room(16384)
        write = ["dd", "if=/dev/zero", f"of={place.folder / 'file'}", "bs=4096", "count=100"]
        with Processes(tmp_path / "log") as processes:
            processes.start(limited(write, limit))
            assert processes.wait(20) != [0]
        assert (place.folder / "file").stat().st_size == 16384
        place.leave_plenty()
        (place.folder / "file").write_bytes(bytes(100_000))
