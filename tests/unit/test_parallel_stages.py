"""A study with several lanes: stages side by side, in order, each with its share of the machine. Real processes."""

import signal
import sys
from pathlib import Path

import pytest
from helpers import Processes, until
from study_tasks import failing, resources, task

from genre_dist.lock import Lock
from genre_dist.study.running import run_tasks

pytestmark = pytest.mark.timeout(120)


def environment(folder: Path, name: str) -> dict[str, str]:
    return eval((folder / f"{name}.environment").read_text())


def test_stages_run_side_by_side_and_each_after_those_it_needs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    chain = [
        task(tmp_path, "text", "poster.began"),  # alone each of them would wait for ever
        task(tmp_path, "poster", "text.began"),
        task(tmp_path, "both", "text.ended", "poster.ended", after=("text", "poster")),
    ]
    assert run_tasks(chain, resources(3, chain), tmp_path, Lock(None)) == 0
    said = capfd.readouterr().out
    assert said.index("poster: finished") < said.index("== 3/3 both:")
    assert said.index("text: finished") < said.index("== 3/3 both:")
    assert "\nthis is text\n" not in said
    assert (tmp_path / "logs" / "text.log").read_text() == "this is text\n"


def test_no_more_of_them_than_lanes(tmp_path: Path) -> None:
    first = task(tmp_path, "first", "second.began")
    chain = [first, task(tmp_path, "second", "first.ended"), task(tmp_path, "third", "second.ended")]

    def one_is_over() -> bool:
        assert (tmp_path / "first.ended").exists()
        return False

    chain[2] = chain[2]._replace(done=one_is_over)  # asked when its turn comes
    assert run_tasks(chain, resources(2, chain), tmp_path, Lock(None)) == 0


def test_what_is_done_is_passed_over_and_frees_those_that_need_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    chain = [task(tmp_path, "text")._replace(done=lambda: True), task(tmp_path, "both", after=("text",))]
    assert run_tasks(chain, resources(2, chain), tmp_path, Lock(None)) == 0
    assert "== 1/2 text: done" in capfd.readouterr().out
    assert not (tmp_path / "text.began").exists()
    assert (tmp_path / "both.ended").exists()


def test_no_two_stages_have_a_gpu_in_common(tmp_path: Path) -> None:
    """Three lanes, three GPUs: a stage of two ranks waits until it finds two."""
    chain = [task(tmp_path, name, processes=ranks) for name, ranks in (("a", 1), ("b", 1), ("c", 2), ("d", 1))]
    given = resources(3, chain, "4", "5", "6")
    shares = [given.take(chain[0]), given.take(chain[1])]
    assert shares == [{"CUDA_VISIBLE_DEVICES": "4"}, {"CUDA_VISIBLE_DEVICES": "5"}]
    assert not given.fits(chain[2])
    assert given.fits(chain[3])
    given.give_back(shares[0])
    assert given.take(chain[2]) == {"CUDA_VISIBLE_DEVICES": "6,4"}
    assert not given.fits(chain[3])


def test_a_stage_sees_its_gpus_only(tmp_path: Path) -> None:
    chain = [task(tmp_path, "text", "poster.began"), task(tmp_path, "poster", "text.began")]
    chain.append(task(tmp_path, "both", after=("text", "poster")))
    assert run_tasks(chain, resources(2, chain, "4", "5"), tmp_path, Lock(None)) == 0
    assert [environment(tmp_path, name)["CUDA_VISIBLE_DEVICES"] for name in ("text", "poster")] == ["4", "5"]
    assert environment(tmp_path, "both")["CUDA_VISIBLE_DEVICES"] in ("4", "5")


def test_without_gpus_they_share_the_cores_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = [task(tmp_path, "text"), task(tmp_path, "both", processes=2)]
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [resources(2, chain).take(each)["OMP_NUM_THREADS"] for each in chain] == ["4", "2"]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert resources(2, chain).take(chain[0]) == {}


def test_more_ranks_than_gpus_are_a_mistake(tmp_path: Path) -> None:
    chain = [task(tmp_path, "text", processes=3)]
    with pytest.raises(ValueError, match="text has 3 ranks for 2 GPUs"):
        resources(2, chain, "0", "1")


def test_one_lane_has_the_whole_machine_and_says_what_its_stage_says(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    chain = [task(tmp_path, "text"), task(tmp_path, "poster", "text.ended")]
    assert resources(1, chain, "0", "1").take(chain[0]) == {}
    assert run_tasks(chain, resources(1, chain), tmp_path, Lock(None)) == 0
    assert "this is text\n" in capfd.readouterr().out
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(("code", "expected"), [(2, 2), (7, 1)])
def test_one_that_fails_stops_those_beside_it_and_says_why(
    code: int, expected: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    chain = [
        task(tmp_path, "text", "never"),
        failing(tmp_path, "poster", "text.began", code=code),
        task(tmp_path, "both", after=("poster",)),
    ]
    assert run_tasks(chain, resources(2, chain), tmp_path, Lock(None)) == expected
    said = capfd.readouterr().err
    assert f"error: poster ended with exit code {code}; the end of {tmp_path / 'logs' / 'poster.log'}:" in said
    assert said.rstrip().endswith("  no film has a poster")
    assert (tmp_path / "text.asked").exists()
    assert not (tmp_path / "both.began").exists()


def test_a_mistake_found_when_a_stage_s_turn_comes_stops_the_others(tmp_path: Path) -> None:
    def refuse() -> bool:
        until(lambda: (tmp_path / "text.began").exists(), 60, "the other stage")
        raise ValueError("trained otherwise")

    chain = [task(tmp_path, "text", "never"), task(tmp_path, "poster")._replace(done=refuse)]
    with pytest.raises(ValueError, match="trained otherwise"):
        run_tasks(chain, resources(2, chain), tmp_path, Lock(None))
    assert (tmp_path / "text.asked").exists()


def test_asked_to_stop_it_asks_all_of_them(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from study_tasks import resources, task; "
        "from genre_dist.lock import Lock; from genre_dist.study.running import run_tasks; "
        "folder = Path(sys.argv[1]); "
        "chain = [task(folder, 'text', 'never'), task(folder, 'poster', 'never')]; "
        "sys.exit(run_tasks(chain, resources(2, chain), folder, Lock(None)))"
    )
    with Processes(tmp_path / "log") as study:
        child = study.start([sys.executable, "-c", code, str(tmp_path)])
        began = [tmp_path / f"{name}.began" for name in ("text", "poster")]
        until(lambda: all(path.exists() for path in began) or child.poll() is not None, 60, "both stages")
        child.send_signal(signal.SIGTERM)
        assert study.wait(60) == [75], study.output()
        assert "the same command goes on" in study.output()
    assert (tmp_path / "text.asked").exists()
    assert (tmp_path / "poster.asked").exists()
