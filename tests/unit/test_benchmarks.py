"""benchmarks/gpu.py runs anywhere, says what failed, and needs nothing that a GPU machine may lack."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
LACKING = ("webdataset", "deepspeed", "wandb", "jsonargparse")


def test_the_gpu_benchmark_runs_on_a_cpu_without_the_libraries_a_gpu_machine_may_lack(tmp_path: Path) -> None:
    blocked = f"import sys; sys.modules.update(dict.fromkeys({LACKING!r}))\n"  # importing any of them fails
    options = ["gpu.py", "--quick", "--json", str(tmp_path / "rows.json")]
    script = f"sys.argv[:] = {options!r}; sys.path.insert(0, 'benchmarks')"
    run = "import runpy; runpy.run_path('benchmarks/gpu.py', run_name='__main__')"
    command = [sys.executable, "-c", f"{blocked}{script}\n{run}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=290)
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "rows.json").read_text(), parse_constant=pytest.fail)  # NaN is no JSON
    rows = {row["claim"]: row["value"] for row in told}
    assert not [claim for claim in rows if "failed" in claim or "skipped" in claim], done.stdout
    for word in (
        "frozen,",
        "frozen-cached,",
        "end to end,",
        "heads batched",
        "loader alone",
        "model alone",
        "both",
        "fsdp",
    ):
        assert any(word in claim for claim in rows), word
    if not torch.cuda.is_available():
        assert rows["JPEG decoding on the GPU"] is None
    assert "| claim | value |" in done.stdout
