"""The README's loops from Python, run as they stand there."""

import re
from pathlib import Path

import pytest
from helpers import TESTS, TINY, losses, rows

from genre_dist.config.files import parse_config, save_config

LOOPS = re.findall(r"```python\n(.*?)```", (TESTS.parent / "README.md").read_text(), flags=re.DOTALL)


@pytest.fixture
def project(sample_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a configuration where the README has it, of a small model for 12 steps."""
    more = ("--data.shards", str(sample_shards), "--run.dir", "runs/end_to_end", "--train.steps", "12")
    config = parse_config([*TINY, *more, "--data.global_batch", "8", "--data.workers", "0"]).config
    (tmp_path / "configs").mkdir()
    save_config(config, tmp_path / "configs" / "end_to_end.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_loop_of_ones_own_trains_as_fit_does(project: Path) -> None:
    for loop in LOOPS:
        exec(loop, {})
    assert len(LOOPS) == 2
    whole, mine = Path("runs/end_to_end"), Path("runs/mine")
    assert losses(whole) == losses(mine)
    assert [row["step"] for row in rows(whole, "val")] == [12]
    assert [row["step"] for row in rows(mine, "val")] == [10, 12]
    assert (mine / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_loop_of_ones_own_goes_on_where_it_was_left(project: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        exec(
            LOOPS[1].replace(
                "        trainer.stop_if_asked()", "        trainer.save()\n        1 / (5 - step.number)"
            ),
            {},
        )
    exec(LOOPS[1], {})
    assert sorted(losses(Path("runs/mine"))) == list(range(1, 13))
    exec(LOOPS[0], {})
    assert losses(Path("runs/mine")) == losses(Path("runs/end_to_end"))
