"""The Python of CONTRIBUTING.md: run as a reader would, from top to bottom, in a folder of its own."""

import re
import sys
from pathlib import Path

import pytest
from helpers import TESTS

from genre_dist.training import loss

TEXT = (TESTS.parent / "CONTRIBUTING.md").read_text()
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"# (\w+\.py)\n")


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block whose first line names a file is that file; the others share their names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(loss, "_TERMS", dict(loss._TERMS))
    names: dict[str, object] = {"__name__": "contributing"}
    for found in BLOCK.finditer(TEXT):
        code, line = found[1], TEXT.count("\n", 0, found.start(1))
        if file := FILE.match(code):
            Path(file[1]).write_text(code)
            monkeypatch.delitem(sys.modules, Path(file[1]).stem, raising=False)
        else:
            exec(compile("\n" * line + code, "CONTRIBUTING.md", "exec"), names)
    assert Path("runs/small_cnn/model.safetensors").is_file()  # the last file of a run, so the blocks were found


def test_the_files_it_names_are_there() -> None:
    named = set(re.findall(r"`((?:tests|config|training|parallel|models|benchmarks)/[\w/.]*)`", TEXT))
    assert named
    folders = (TESTS.parent, TESTS.parent / "genre_dist")
    assert [path for path in sorted(named) if not any((folder / path).exists() for folder in folders)] == []
