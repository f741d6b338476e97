"""A checkpoint is whole or absent, loads exactly, and can run no code."""

import json
import os
import pickle
import resource
import shutil
import signal
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from genre_dist.parallel.replicated import Replicated
from genre_dist.parallel.world import World
from genre_dist.training.checkpoint import COMPLETE, load_checkpoint, newest_checkpoint, save_checkpoint

ALONE = World(0, 1, torch.device("cpu"))
FACTS = {"seed": 3, "members": ["overview"]}


def make_strategy(seed: int = 0, width: int = 6, depth: int = 1) -> Replicated:
    """A small model with a BatchNorm and one frozen part, in two groups of an AdamW."""
    torch.manual_seed(seed)
    hidden = {f"hidden{number}": nn.Linear(width, width) for number in range(depth)}
    parts = {"first": nn.Linear(4, width)} | hidden | {"norm": nn.BatchNorm1d(width), "last": nn.Linear(width, 2)}
    model = nn.Sequential(OrderedDict(parts))
    model[0].requires_grad_(False)
    groups = [{"params": list(module.parameters()), "lr": 0.1, "peak_lr": 0.1} for module in list(model)[1:]]
    return Replicated(model, torch.optim.AdamW(groups), ALONE)


def train(strategy: Replicated, steps: int, seed: int = 0) -> list[float]:
    """Take steps on data that depends on the seed only; return the losses."""
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        loss = strategy.forward(torch.randn(8, 4, generator=generator)).square().mean()
        strategy.backward(loss)
        strategy.step(1.0)
        losses.append(loss.item())
    return losses


def save(folder: Path, step: int, strategy: Replicated, keep: int = 2) -> Path:
    return save_checkpoint(folder, step, strategy, FACTS, ALONE, keep)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_loaded_is_exactly_what_was_saved_and_trains_on_alike(tmp_path: Path) -> None:
    first = make_strategy()
    train(first, 3)
    save(tmp_path, 3, first)
    second = make_strategy(seed=1)  # other weights, an optimizer that never took a step
    saved, damaged = newest_checkpoint(tmp_path)
    assert saved is not None
    assert damaged == []
    assert saved.step == 3
    assert saved.facts | FACTS == saved.facts
    load_checkpoint(saved, second, ALONE)
    for (name, ours), theirs in zip(first.model.state_dict().items(), second.model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    moments, loaded = first.optimizer.state_dict()["state"], second.optimizer.state_dict()["state"]
    assert loaded.keys() == moments.keys()
    assert all(torch.equal(moments[k][n], loaded[k][n]) for k in moments for n in ("exp_avg", "exp_avg_sq", "step"))
    assert train(first, 4, seed=9) == train(second, 4, seed=9)


def test_saving_changes_nothing_of_the_training(tmp_path: Path) -> None:
    saved, unsaved = make_strategy(), make_strategy()
    train(saved, 2)
    save(tmp_path, 2, saved)
    assert train(saved, 2, seed=5) == [train(unsaved, 2), train(unsaved, 2, seed=5)][1]


def test_the_newest_k_stay(tmp_path: Path) -> None:
    strategy = make_strategy()
    for step in (5, 10, 15, 100_000_000):
        save(tmp_path, step, strategy, keep=2)
    assert names(tmp_path) == ["step-00000015", "step-100000000"]
    newest, _ = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.step == 100_000_000


def test_there_may_be_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "never made") == (None, [])


def damage_missing_mark(path: Path) -> None:
    (path / COMPLETE).unlink()


def damage_truncated_tensors(path: Path) -> None:
    tensors = next(path.glob("*.distcp"))
    os.truncate(tensors, tensors.stat().st_size // 2)


def damage_missing_tensors(path: Path) -> None:
    next(path.glob("*.distcp")).unlink()


def damage_half_a_mark(path: Path) -> None:
    (path / COMPLETE).write_text((path / COMPLETE).read_text()[:-5])


def damage_missing_contents(path: Path) -> None:
    (path / ".metadata").unlink()


@pytest.mark.parametrize(
    "damage",
    [
        damage_missing_mark,
        damage_truncated_tensors,
        damage_missing_tensors,
        damage_half_a_mark,
        damage_missing_contents,
    ],
)
def test_a_damaged_newest_one_is_passed_over_and_the_one_before_is_taken(tmp_path: Path, damage: object) -> None:
    strategy = make_strategy()
    train(strategy, 1)
    save(tmp_path, 1, strategy)
    losses = train(strategy, 1, seed=7)
    path = save(tmp_path, 2, strategy)
    assert callable(damage)
    damage(path)
    saved, damaged = newest_checkpoint(tmp_path)
    assert saved is not None
    assert (saved.step, damaged) == (1, ["step-00000002"])
    again = make_strategy(seed=2)
    load_checkpoint(saved, again, ALONE)
    assert train(again, 1, seed=7) == losses
    save(tmp_path, 2, again)  # and the damaged one is replaced when the run gets there again
    newest, damaged = newest_checkpoint(tmp_path)
    assert newest is not None
    assert (newest.step, damaged) == (2, [])


class Killed(BaseException):
    """Stands for a kill: nothing handles it."""


@pytest.mark.parametrize("moment", ["tensors", "facts", "mark"])
def test_a_kill_while_saving_leaves_nothing_that_counts(
    tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from genre_dist.training import checkpoint

    strategy = make_strategy()
    save(tmp_path, 1, strategy)

    def cut_short(path: Path, mode: str = "wb") -> object:
        if path.name == {"facts": "facts.json", "mark": COMPLETE}.get(moment):
            path.with_name(path.name + ".tmp").write_text("{")
            raise Killed
        return whole_file(path, mode)

    def no_tensors(*arguments: object, **more: object) -> None:
        (tmp_path / "step-00000002.partial").mkdir()
        (tmp_path / "step-00000002.partial" / "__0_0.distcp").write_bytes(b"half")
        raise Killed

    whole_file = checkpoint.atomic_file
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "atomic_file", cut_short)
        if moment == "tensors":
            patch.setattr(checkpoint.dcp, "save", no_tensors)
        with pytest.raises(Killed):
            save(tmp_path, 2, strategy)
    saved, _ = newest_checkpoint(tmp_path)
    assert saved is not None
    assert saved.step == 1
    save(tmp_path, 3, strategy)
    assert names(tmp_path) == ["step-00000001", "step-00000003"]  # what was left lying about is gone


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_checkpoint_that_cannot_be_written_is_an_oserror_and_the_older_one_stays(tmp_path: Path) -> None:
    strategy = make_strategy()
    save(tmp_path, 1, strategy)
    with small_disk(1000), pytest.raises(OSError, match="step-00000002 could not be written"):
        save(tmp_path, 2, strategy)
    saved, _ = newest_checkpoint(tmp_path)
    assert saved is not None
    assert saved.step == 1


class Evil:
    """Unpickling it leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("where", [".metadata", "__0_0.distcp"])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path, where: str) -> None:
    strategy = make_strategy()
    path = save(tmp_path / "checkpoints", 1, strategy)
    trace = tmp_path / "trace"
    if where == ".metadata":
        (path / where).write_bytes(pickle.dumps(Evil(trace)))
    else:
        size = (path / where).stat().st_size
        torch.save(Evil(trace), path / where)  # the table of contents points into this file
        (path / where).write_bytes((path / where).read_bytes().ljust(size, b"\0"))
    told = {file.name: file.stat().st_size for file in path.iterdir() if file.name != COMPLETE}
    (path / COMPLETE).write_text(json.dumps(told))
    saved, _ = newest_checkpoint(tmp_path / "checkpoints")
    assert saved is not None
    with pytest.raises(ValueError, match="step-00000001"):
        load_checkpoint(saved, strategy, ALONE)
    assert not trace.exists()
    if where == ".metadata":  # the trap works, so it was refused and not merely broken
        with open(path / where, "rb") as file:
            pickle.load(file)
        assert trace.exists()


@pytest.mark.parametrize(
    "other", [{"width": 5}, {"depth": 2}, {"depth": 0}], ids=["other shapes", "more layers", "fewer layers"]
)
def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path, other: dict[str, int]) -> None:
    save(tmp_path, 1, make_strategy())
    saved, _ = newest_checkpoint(tmp_path)
    assert saved is not None
    with pytest.raises(ValueError, match=r"step-00000001 does not fit this model .* --run\.overwrite") as caught:
        load_checkpoint(saved, make_strategy(**other), ALONE)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_can_be_moved(tmp_path: Path) -> None:
    strategy = make_strategy()
    losses = [save(tmp_path / "here", 1, strategy), train(strategy, 2)][1]
    shutil.move(tmp_path / "here", tmp_path / "there")
    saved, _ = newest_checkpoint(tmp_path / "there")
    assert saved is not None
    again = make_strategy(seed=4)
    load_checkpoint(saved, again, ALONE)
    assert train(again, 2) == losses
