"""The quickstart over seeds: each seed runs once, in its own folder; the quickstart ends with what went wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import quickstart_seeds  # noqa: E402

SCRIPT = """
mkdir -p report/quickstart
echo "$SEED" >>runs_of_this_seed
echo '{"headline": {"value": 0.02, "low": -0.01, "high": 0.05, "films": 150, "measure": "micro_f1_fitted",
    "verdict": "open", "word": "Not shown"}}' >report/quickstart/comparison.json
"""
PYTHON = """#!/bin/sh
case "$*" in
    "-c "*) exit 1 ;;
    *runs/quickstart/text*) echo "error: the text is at fault" >&2; exit 2 ;;
esac
"""


def test_each_seed_runs_once_and_its_answer_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "script.sh").write_text(SCRIPT)
    monkeypatch.setattr(quickstart_seeds, "SCRIPT", tmp_path / "script.sh")
    for seeds in (1, 2):
        command = ["quickstart_seeds", "--out", tmp_path / "out", "--json", tmp_path / "rows.json", "--seeds", seeds]
        monkeypatch.setattr(sys, "argv", [str(part) for part in command])
        assert quickstart_seeds.main() == 0
    assert [(tmp_path / f"out/seed{seed}/runs_of_this_seed").read_text() for seed in (0, 1)] == ["0\n", "1\n"]
    assert [row["seed"] for row in json.loads((tmp_path / "rows.json").read_text())] == [0, 1]
    printed = capsys.readouterr().out
    assert "| 1 | +2.0 | -1.0 | +5.0 | 150 | Not shown |" in printed
    assert "2 seeds: Not shown 2" in printed


def test_the_quickstart_ends_with_the_error_of_a_training_that_ran_beside_another(tmp_path: Path) -> None:
    for name, content in {"python": PYTHON, "genre-dist": "#!/bin/sh\n"}.items():
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    command, path = ["bash", str(ROOT / "launch" / "quickstart.sh")], f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.endswith("error: the text is at fault\nruns/quickstart/text.log has all of it\n")
    assert "4/4" not in done.stdout
