"""launch/torchrun.sh, multinode.sh and deepspeed.sh start the ranks they promise."""

from pathlib import Path

from helpers import TESTS, Processes, free_port, losses, options, rows

LAUNCH = TESTS.parent / "launch"
SHORT = ("--data.global_batch", 8, "--train.steps", 3, "--data.workers", 0)


def test_torchrun_sh_starts_as_many_ranks_as_asked_and_one_where_there_is_no_gpu(
    sample_shards: Path, tmp_path: Path
) -> None:
    for ranks, expected in (({"RANKS": "2"}, 2), ({"CUDA_VISIBLE_DEVICES": ""}, 1)):
        run = tmp_path / f"run-{expected}"
        with Processes(tmp_path / f"log-{expected}") as started:
            started.start(["bash", str(LAUNCH / "torchrun.sh"), *options(sample_shards, run, *SHORT)], **ranks)
            started.succeed(120)
            assert f"on {expected} x" in started.output()
        assert len(losses(run)) == 3


def test_multinode_sh_joins_nodes_that_start_apart(sample_shards: Path, tmp_path: Path) -> None:
    run, head = tmp_path / "run", f"127.0.0.1:{free_port()}"
    command = ["bash", str(LAUNCH / "multinode.sh"), *options(sample_shards, run, *SHORT)]
    with Processes(tmp_path / "log") as nodes:
        for _ in range(2):
            nodes.start(command, HEAD=head, NODES="2", RANKS="1")
        nodes.succeed(120)
        assert "on 2 x" in nodes.output()
    assert len(losses(run)) == 3


def test_deepspeed_sh_joins_the_nodes_of_a_hostfile(sample_shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (tmp_path / "hostfile").write_text("# two machines\nnode1 slots=1\nnode2 slots=1\n")
    command = ["bash", str(LAUNCH / "deepspeed.sh"), *options(sample_shards, run, *SHORT)]
    with Processes(tmp_path / "log") as nodes:
        port = free_port()
        for node in range(2):
            environment = {"HOSTFILE": str(tmp_path / "hostfile"), "HEAD": f"127.0.0.1:{port}", "NODE_RANK": str(node)}
            nodes.start([*command, "--parallel.strategy", "zero2"], **environment, DS_ACCELERATOR="cpu")
        nodes.succeed(120)
        assert "on 2 x" in nodes.output()
    assert [row["samples"] for row in rows(run)] == [8, 8, 8]
