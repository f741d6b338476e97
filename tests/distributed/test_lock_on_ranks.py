"""One launch a run's folder: all ranks of a second one are refused, as long as a rank of the first is left."""

import signal
import subprocess
import sys
from pathlib import Path

from helpers import Processes, free_port, losses, options, snapshot, step_reached, until
from test_survival import rank_processes

TRAIN = ("--data.global_batch", 8, "--data.workers", 0, "--train.steps", 50000, "--train.eval_every_steps", 50000)


def refusals(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("error: ") and "is being written by" in line]


def test_a_second_torchrun_is_refused_on_all_ranks_and_leaves_the_first_ones_files_alone(
    sample_shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with Processes(tmp_path / "first") as first, Processes(tmp_path / "second") as second:
        first.start_torchrun(2, options(sample_shards, run, *TRAIN))
        until(lambda: step_reached(run, 3) or first.over(), 120, "step 3")
        (holder, _) = rank_processes(first.children[0].pid)
        second.start_torchrun(2, options(sample_shards, run, *TRAIN, "--run.overwrite", "true"))
        assert second.wait() == [1]  # torchrun knows no other code
        lines = refusals(second.output())
        assert 1 <= len(lines) <= 2, second.output()  # torchrun ends the other rank with the first
        assert all(f"process {holder} on " in line for line in lines)
        assert not (run / "exit_code").exists()
        seen = max(losses(run))
        until(lambda: step_reached(run, seen + 3) or first.over(), 60, "steps after it")
        first.children[0].send_signal(signal.SIGINT)
        first.wait()
        assert (run / "exit_code").read_text() == "75\n"
        assert list(losses(run)) == list(range(1, max(losses(run)) + 1))


def test_the_folder_is_locked_as_long_as_any_rank_lives(sample_shards: Path, tmp_path: Path) -> None:
    """Rank 0 is killed, and rank 1 stopped, so that it does not notice."""
    run = tmp_path / "run"
    arguments = options(sample_shards, run, *TRAIN)
    with Processes(tmp_path / "first") as first, Processes(tmp_path / "second") as second:
        first.start_ranks(2, arguments)
        until(lambda: step_reached(run, 3) or first.over(), 120, "step 3")
        first.children[1].send_signal(signal.SIGSTOP)
        first.children[0].kill()
        first.children[0].wait(30)
        second.start_ranks(2, arguments)
        assert second.wait() == [2, 2]
        assert len(refusals(second.output())) == 2
        assert all(f"process {first.children[0].pid} on " in line for line in refusals(second.output()))


def test_a_second_start_by_the_same_script_at_the_same_port_is_refused_too(sample_shards: Path, tmp_path: Path) -> None:
    """Its ranks look like those of the first: they must not join them."""
    run, port = tmp_path / "run", str(free_port())
    command = [sys.executable, "-m", "genre_dist.train", *options(sample_shards, run, *TRAIN)]
    where = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with Processes(tmp_path / "first") as first, Processes(tmp_path / "second") as second:
        for rank in ("0", "1"):
            first.start(command, RANK=rank, **where)
        until(lambda: step_reached(run, 3) or first.over(), 120, "step 3")
        for rank in ("1", "0"):
            second.start(command, RANK=rank, **where)
        assert second.wait() == [2, 2], second.output()
        assert not first.over()


def test_a_start_is_refused_before_it_has_imported_torch(sample_shards: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from genre_dist.train import main; code = main(sys.argv[1:]); "
        "sys.exit('torch was imported' if 'torch' in sys.modules else code)"
    )
    holding = "import sys, pathlib; from genre_dist.lock import one_writer\n" + (
        "with one_writer(pathlib.Path(sys.argv[1])): print(flush=True); input()"
    )
    (tmp_path / "run").mkdir()
    with subprocess.Popen([sys.executable, "-c", holding, tmp_path / "run"], stdin=-1, stdout=-1, text=True) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        before = snapshot(tmp_path / "run")
        command = [sys.executable, "-c", script, *options(sample_shards, tmp_path / "run")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
        assert snapshot(tmp_path / "run") == before
        holder.kill()
