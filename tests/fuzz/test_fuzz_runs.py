"""Damaged files of a run: what reads them says so in one line with the file's name, or the result is right."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fuzzing import damaged, odd_json, told_or_read
from hypothesis import given
from hypothesis import strategies as st
from one_label import ARTICLES
from safetensors.torch import save_file
from torch import nn

from genre_dist.config import CheckpointConfig, Config
from genre_dist.config.continuing import trained_with
from genre_dist.config.files import load_config, save_config
from genre_dist.metrics.thresholds import load_thresholds, save_thresholds
from genre_dist.parallel.replicated import Replicated
from genre_dist.parallel.world import World
from genre_dist.sealed import write_sealed
from genre_dist.training.backoff import _noted
from genre_dist.training.checkpoint import COMPLETE, checkpoint_path, load_weights, newest_checkpoint, read_saved
from genre_dist.training.checkpoint_manager import BEST, Best, CheckpointManager, read_best
from genre_dist.training.early_stopping import why_stop
from genre_dist.training.metrics_log import MetricsLog, read_rows
from genre_dist.training.model_files import METADATA, WEIGHTS, WORDS, read_metadata, read_tokenizer, read_weights
from genre_dist.training.views import _run_id

ALONE = World(0, 1, torch.device("cpu"))
MODEL = {
    "genres": [{"id": 18, "name": "Drama"}, {"id": 27, "name": "Horror"}],
    "image": {"size": 64, "fit": "squash", "quality": 90},
    "text": {"source": "overview", "vocabulary": "vocabulary.txt", "words": 4, "vocabulary_sha256": "0" * 64}
    | {"vectors": None, "dim": None},
    "data_fingerprint": "0123456789abcdef",
    "step": 8,
    "settings": trained_with(Config()),
    "weights_sha256": "1" * 64,
}
OF_ARTICLES = MODEL | {"schema": json.loads(json.dumps(ARTICLES.to_dict()))}
ROWS = [
    {"kind": "train", "step": 1, "epoch": 0, "loss": 0.7},
    {"kind": "val", "step": 1, "epoch": 0, "loss": 0.6, "micro_f1": 0.25},
    {"kind": "settings", "step": 2, "epoch": 0, "changes": {"optim.text_lr": [0.1, 0.2]}},
    {"kind": "train", "step": 2, "epoch": 0, "loss": None},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def unsealed(path: Path) -> Any:
    """What a sealed file says, as an older version would have written it."""
    return {key: value for key, value in json.loads(path.read_text()).items() if key != "sha256"}


def read_with(path: Path, content: bytes, read: Callable[[], Any]) -> Any:
    path.write_bytes(content)
    return told_or_read(read, path)


# --- JSON files: anything at all in an old one, whatever bytes in one with a checksum


@given(content=odd_json(MODEL) | odd_json(OF_ARTICLES))
def test_fuzz_model_json(content: bytes, folder: Path) -> None:
    metadata = read_with(folder / METADATA, content, lambda: read_metadata(folder))
    if metadata is not None:
        assert all(genre.name for genre in metadata.genres)
        assert metadata.image["size"] >= 1
        assert 0 <= metadata.step <= 2**62
        assert metadata.declared.labels.choose in ("one", "many")


@given(data=st.data())
def test_fuzz_damaged_model_json_is_what_it_was_or_told(data: st.DataObject, folder: Path) -> None:
    write_sealed(folder / METADATA, MODEL)
    content = data.draw(damaged((folder / METADATA).read_bytes()))
    metadata = read_with(folder / METADATA, content, lambda: read_metadata(folder))
    if metadata is not None and b'"sha256"' in content:
        assert metadata.to_dict() | {"genres": [genre._asdict() for genre in metadata.genres]} == MODEL


@given(content=odd_json({"rule": "", "split": "val", "films": 7, "logits": {"a": -1.5, "b": 2}}))
def test_fuzz_thresholds_json(content: bytes, folder: Path) -> None:
    found = read_with(folder / "thresholds.json", content, lambda: load_thresholds(folder, ["a", "b"]))
    assert found is None or np.isfinite(found).all()


@given(data=st.data())
def test_fuzz_damaged_thresholds_are_what_they_were_or_told(data: st.DataObject, folder: Path) -> None:
    save_thresholds(folder, ["a", "b"], np.array([0.25, -3.5]), 7)
    content = data.draw(damaged((folder / "thresholds.json").read_bytes()))
    found = read_with(folder / "thresholds.json", content, lambda: load_thresholds(folder, ["a", "b"]))
    if found is not None and b'"sha256"' in content:
        assert found.tolist() == [0.25, -3.5]


@given(content=odd_json(Best(2, "micro_f1", 0.5)._asdict()))
def test_fuzz_best_json(content: bytes, folder: Path) -> None:
    assert read_with(folder / BEST, content, lambda: read_best(folder)) is None  # there are no checkpoints


@given(content=st.binary(max_size=40) | st.text(max_size=20).map(str.encode))
def test_fuzz_the_note_of_a_micro_batch(content: bytes, folder: Path) -> None:
    found = read_with(folder / "micro_batch", content, lambda: _noted(folder / "micro_batch"))
    assert found is None or found >= 1


@given(content=st.binary(max_size=40) | st.text(max_size=20).map(str.encode), home=st.binary(max_size=40))
def test_fuzz_the_id_in_wandb(content: bytes, home: bytes, folder: Path) -> None:
    (folder / "wandb_id_of").write_bytes(home)
    found = read_with(folder / "wandb_id", content, lambda: _run_id(folder))
    assert found is None or re.fullmatch("[A-Za-z0-9_-]{1,128}", found)


# --- the record


@given(data=st.data())
def test_fuzz_metrics_jsonl(data: st.DataObject, folder: Path) -> None:
    path, whole = folder / "metrics.jsonl", "".join(f"{json.dumps(row)}\n" for row in ROWS).encode()
    lines = [json.dumps(row).encode() for row in ROWS]
    lines[data.draw(st.integers(0, 3))] = data.draw(odd_json(ROWS[1]))
    content = data.draw(st.sampled_from([b"\n".join(lines), data.draw(damaged(whole))]))

    def read() -> list[dict[str, Any]]:
        found = list(read_rows(path))
        why_stop(found, Config().train)
        record = MetricsLog(path, 1, 9, [])
        record.write({"kind": "train", "step": 9, "loss": 0.5})
        record.close()
        return found

    for row in read_with(path, content, read) or ():
        assert isinstance(row["kind"], str)
        assert row["step"] >= 0


# --- the configuration


@pytest.fixture(scope="module")
def config_yaml(folder: Path) -> bytes:
    save_config(Config(), folder / "config.yaml")
    return (folder / "config.yaml").read_bytes()


@given(data=st.data())
def test_fuzz_config_yaml(data: st.DataObject, folder: Path, config_yaml: bytes) -> None:
    odd = odd_json(json.loads(json.dumps(Config().to_dict())))  # JSON is YAML
    content = data.draw(st.one_of(damaged(config_yaml), odd))
    config = read_with(folder / "config.yaml", content, lambda: load_config(folder / "config.yaml"))
    assert config is None or isinstance(config, Config)


# --- what belongs together


@given(data=st.data())
def test_fuzz_a_damaged_vocabulary_is_told(data: st.DataObject, folder: Path) -> None:
    words = b"<pad>\n<unk>\nheat\nalien\n"
    text = dict(MODEL["text"], vocabulary_sha256=hashlib.sha256(words).hexdigest())  # type: ignore[call-overload]
    write_sealed(folder / METADATA, MODEL | {"text": text})
    content = data.draw(damaged(words) | st.just(b"<pad>\n<unk>\nalien\nheat\n"))
    found = read_with(folder / WORDS, content, lambda: read_tokenizer(folder, read_metadata(folder)))
    assert (found is not None) == (content == words)
    assert found is None or found.encode("Heat, alien").tolist() == [2, 3]


@given(data=st.data(), noted=st.booleans())
def test_fuzz_damaged_weights_are_told_where_a_checksum_was_noted(
    data: st.DataObject, noted: bool, folder: Path
) -> None:
    save_file({"a": torch.arange(12.0).reshape(3, 4), "b": torch.ones(2)}, folder / WEIGHTS)
    whole = (folder / WEIGHTS).read_bytes()
    write_sealed(folder / METADATA, MODEL | {"weights_sha256": hashlib.sha256(whole).hexdigest() if noted else None})
    content = data.draw(damaged(whole))
    found = read_with(folder / WEIGHTS, content, lambda: read_weights(folder, read_metadata(folder)))
    if noted:
        assert (found is not None) == (content == whole)


# --- checkpoints


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole checkpoint of step 3."""
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    strategy = Replicated(model, torch.optim.AdamW([{"params": list(model.parameters()), "lr": 0.1}]), ALONE)
    saver = CheckpointManager(
        folder, strategy, ALONE, CheckpointConfig(asynchronous=False), {"seed": 1, "settings": {}}
    )
    saver.save(3)
    return checkpoint_path(folder, 3)


FILES = [COMPLETE, "facts.json", ".metadata", "__0_0.distcp"]


@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
def test_fuzz_a_damaged_file_of_a_checkpoint_is_passed_over(data: st.DataObject, name: str, checkpoint: Path) -> None:
    whole = (checkpoint / name).read_bytes()
    content = data.draw(damaged(whole))
    saved, weights = read_saved(checkpoint), load_weights(read_saved(checkpoint))
    (checkpoint / name).write_bytes(content)
    try:
        found = told_or_read(lambda: newest_checkpoint(checkpoint.parent)[0], checkpoint)
        if found is not None:  # nothing changed, or nothing that matters: the mark's own blanks
            assert found == saved
            assert all(torch.equal(weights[key], value) for key, value in load_weights(found).items())
        else:
            assert content != whole
    finally:
        (checkpoint / name).write_bytes(whole)


@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
def test_fuzz_a_checkpoint_without_checksums_loads_or_is_told(data: st.DataObject, name: str, checkpoint: Path) -> None:
    before = {each: (checkpoint / each).read_bytes() for each in FILES}
    valid = json.loads(before[name]) if name in (COMPLETE, "facts.json") else None
    content = data.draw(damaged(before[name]) if valid is None else damaged(before[name]) | odd_json(valid))
    (checkpoint / name).write_bytes(content)
    try:
        if name != COMPLETE:
            sizes = {each: (checkpoint / each).stat().st_size for each in FILES if each != COMPLETE}
            (checkpoint / COMPLETE).write_text(json.dumps(sizes))
        told_or_read(lambda: load_weights(read_saved(checkpoint)), checkpoint)
    finally:
        for each, written in before.items():
            (checkpoint / each).write_bytes(written)
