"""metrics.jsonl is the record; the console and W&B are views of it."""

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from genre_dist.config import Config, RunConfig, TrackingConfig
from genre_dist.training.tracking import Console, Record, open_record


class Seen:
    """A view that remembers."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.closed = False

    def show(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def close(self) -> None:
        self.closed = True


def train_row(step: int, loss: float = 0.5) -> dict[str, Any]:
    return {
        **{"kind": "train", "step": step, "epoch": 0, "loss": loss, "grad_norm": 1.0, "samples": 8, "bad_samples": 0},
        **{"samples_per_second": 16.0, "step_seconds": 0.5, "data_wait": 0.1, "mfu": 0.0, "memory_bytes": 1},
    }


def val_row(step: int, kind: str = "val") -> dict[str, Any]:
    told = {"kind": kind, "step": step, "epoch": 0, "loss": 0.7, "micro_f1": 0.1, "macro_f1": 0.2}
    return told | {"mean_average_precision": 0.3, "data_wait": 0.0}


def written(path: Path) -> list[tuple[str, int]]:
    return [(row["kind"], row["step"]) for row in map(json.loads, path.read_text().splitlines())]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A record of steps 1 to 4 with an evaluation after steps 2 and 4, and of a final one."""
    path = tmp_path / "metrics.jsonl"
    record = Record(path, 0, 4, [])
    for row in (train_row(1), train_row(2), val_row(2), train_row(3), train_row(4), val_row(4), val_row(4, "test")):
        record.write(row)
    record.close()
    return path


def test_each_row_is_one_line_of_json_on_disk_at_once_and_shown_in_every_view(tmp_path: Path) -> None:
    views = [Seen(), Seen()]
    record = Record(tmp_path / "metrics.jsonl", 0, 2, list(views))
    for step in (1, 2):
        record.write(train_row(step))
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[-1]) == train_row(step)
        assert len(lines) == step
    record.close()
    assert all(view.rows == [train_row(1), train_row(2)] and view.closed for view in views)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_what_json_has_no_number_for_is_null(tmp_path: Path, number: float) -> None:
    record = Record(tmp_path / "metrics.jsonl", 0, 1, [])
    record.write(train_row(1, loss=number))
    record.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))["loss"] is None


def test_resuming_drops_the_rows_after_the_step_it_resumes_from(path: Path) -> None:
    record = Record(path, 2, 4, [])
    record.write(train_row(3))
    record.close()
    assert written(path) == [("train", 1), ("train", 2), ("val", 2), ("train", 3)]


def test_resuming_from_the_last_step_makes_the_final_evaluations_again(path: Path) -> None:
    Record(path, 4, 4, []).close()
    assert written(path) == [("train", 1), ("train", 2), ("val", 2), ("train", 3), ("train", 4)]


def test_starting_from_nothing_drops_everything(path: Path) -> None:
    Record(path, 0, 4, []).close()
    assert written(path) == []


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_last_line_cut_short_by_a_kill_is_dropped(path: Path, cut: int) -> None:
    path.write_bytes(path.read_bytes()[:-cut])
    record = Record(path, 4, 8, [])
    record.write(train_row(5))
    record.close()
    found = written(path)
    assert found[-1] == ("train", 5)
    assert ("val", 4) in found
    assert (("test", 4) in found) == (cut == 1)  # only the line's end was missing


def test_it_is_known_after_which_steps_the_split_was_evaluated(path: Path) -> None:
    record = Record(path, 3, 8, [])
    assert record.validated == {2}
    record.close()


def test_the_console_shows_a_row_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(10)
    console.show(train_row(3, loss=0.25))
    console.show(val_row(3))
    first, second = capsys.readouterr().out.splitlines()
    assert "step 3/10" in first
    assert "loss 0.2500" in first
    assert "data wait 10%" in first
    assert "0:00:03 left" in first  # 7 steps of half a second
    assert second.startswith("val after step 3")


def test_without_wandb_nothing_of_it_is_written(tmp_path: Path) -> None:
    config = Config(run=RunConfig(dir=str(tmp_path)), tracking=TrackingConfig(wandb="off"))
    open_record(config, tmp_path, 0, 1).close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


# --- W&B, offline


def datastore(path: Path) -> Iterator[bytes]:
    """The records of a .wandb file: a 7-byte header, then a LevelDB log of 32 KiB blocks."""
    data = path.read_bytes()
    ident, magic, version = struct.unpack("<4sHB", data[:7])
    assert (ident, magic, version) == (b":W&B", 0xBEE1, 0)
    position, block, parts = 7, 32768, []
    while position < len(data):
        left = block - position % block
        if left < 7:
            assert not any(data[position : position + left]), "a block's trailer is not zero"
            position += left
            continue
        checksum, length, kind = struct.unpack("<IHB", data[position : position + 7])
        piece = data[position + 7 : position + 7 + length]
        assert len(piece) == length, "the last record is cut short"
        assert checksum == zlib.crc32(piece, zlib.crc32(bytes([kind])))
        assert kind in (1, 2, 3, 4)  # full, first, middle, last
        assert bool(parts) == (kind in (3, 4))
        parts.append(piece)
        if kind in (1, 4):
            yield b"".join(parts)
            parts = []
        position += 7 + length
    assert not parts


def history(folder: Path) -> list[dict[str, Any]]:
    """The rows that W&B keeps of an offline run."""
    from wandb.proto.wandb_internal_pb2 import Record as Stored

    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    found = []
    for data in datastore(path):
        stored = Stored()
        stored.ParseFromString(data)
        if stored.WhichOneof("record_type") == "history":
            items = stored.history.item
            found.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return found


def test_an_offline_run_of_wandb_holds_the_same_losses_at_the_same_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no key in ~/.netrc: offline by itself
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    config = Config(run=RunConfig(dir=str(tmp_path / "run")), tracking=TrackingConfig(project="test", group="group"))
    (tmp_path / "run").mkdir()
    rows = [row for step in range(1, 401) for row in (train_row(step, loss=1 / step),)]
    rows.insert(100, val_row(100))
    try:
        record = open_record(config, tmp_path / "run", 0, 400)
        for row in rows:
            record.write(row)
        record.close()
    finally:
        wandb.teardown()
    found = history(tmp_path / "run")
    losses = {row["global_step"]: row["train/loss"] for row in found if "train/loss" in row}
    assert losses == {step: pytest.approx(1 / step) for step in range(1, 401)}
    (evaluated,) = [row for row in found if "val/loss" in row]
    assert (evaluated["global_step"], evaluated["val/loss"], evaluated["val/macro_f1"]) == (100, 0.7, 0.2)
    assert len(found) == len(rows)
    assert (tmp_path / "run" / "wandb_id").read_text() in next((tmp_path / "run" / "wandb").glob("offline-run-*")).name
