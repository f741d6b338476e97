"""A checkpoint is whole or absent, loads exactly, and can run no code."""

import errno
import io
import json
import os
import pickle
import platform
import shutil
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import Processes, until
from small_disk import small_disk
from torch import nn
from torch.distributed.checkpoint import FileSystemWriter

from genre_dist.config import CheckpointConfig
from genre_dist.parallel.replicated import Replicated
from genre_dist.parallel.world import World
from genre_dist.training.checkpoint import (
    COMPLETE,
    _MetadataUnpickler,
    checkpoint_path,
    load_checkpoint,
    load_weights,
    newest_checkpoint,
    read_saved,
    write_checkpoint,
)
from genre_dist.training.checkpoint_manager import CheckpointManager, read_best

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


def save(folder: Path, step: int, strategy: Replicated, keep: int = 2, asynchronous: bool = False) -> Path:
    config = CheckpointConfig(keep=keep, asynchronous=asynchronous)
    saver = CheckpointManager(folder, strategy, ALONE, config, FACTS)
    saver.save(step)
    saver.wait()
    return checkpoint_path(folder, step)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_is_loaded_is_exactly_what_was_saved_and_trains_on_alike(tmp_path: Path, asynchronous: bool) -> None:
    first = make_strategy()
    train(first, 3)
    save(tmp_path, 3, first, asynchronous=asynchronous)
    second = make_strategy(seed=1)  # other weights, an optimizer that never took a step
    saved, damaged = newest_checkpoint(tmp_path)
    assert saved is not None
    assert damaged == []
    assert saved.step == 3
    assert saved.metadata | FACTS == saved.metadata
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


def damage_changed_tensors(path: Path) -> None:
    file = next(path.glob("*.distcp"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def damage_changed_facts(path: Path) -> None:
    facts = (path / "facts.json").read_text()
    (path / "facts.json").write_text(facts.replace('"seed": 3', '"seed": 4'))


@pytest.mark.parametrize(
    "damage",
    [
        damage_missing_mark,
        damage_truncated_tensors,
        damage_missing_tensors,
        damage_half_a_mark,
        damage_missing_contents,
        damage_changed_tensors,
        damage_changed_facts,
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


def test_checkpoints_of_older_versions_noted_sizes_only_and_load(tmp_path: Path) -> None:
    strategy = make_strategy()
    path = save(tmp_path, 1, strategy)
    losses = train(strategy, 2)
    noted = json.loads((path / COMPLETE).read_text())
    (path / COMPLETE).write_text(json.dumps({name: of["bytes"] for name, of in noted.items()}))
    saved, damaged = newest_checkpoint(tmp_path)
    assert saved is not None
    assert (saved.step, damaged) == (1, [])
    again = make_strategy(seed=3)
    load_checkpoint(saved, again, ALONE)
    assert train(again, 2) == losses
    damage_truncated_tensors(path)
    assert newest_checkpoint(tmp_path) == (None, ["step-00000001"])


@pytest.mark.parametrize("damage", [damage_missing_mark, damage_changed_tensors])
def test_damaged_ones_of_later_steps_are_no_reason_to_delete_what_is_whole(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """The newest k by name would be the damaged ones, and the run would have nothing to go on from."""
    strategy = make_strategy()
    for step in (4, 8, 9):
        save(tmp_path, step, strategy, keep=3)
    for step in (8, 9):
        damage(checkpoint_path(tmp_path, step))
    save(tmp_path, 5, strategy, keep=2)
    saved, damaged = newest_checkpoint(tmp_path)
    assert saved is not None
    assert (saved.step, damaged) == (5, ["step-00000009", "step-00000008"])
    assert checkpoint_path(tmp_path, 4).exists()
    for step in (8, 9):  # and when the run gets there again, all is as ever
        save(tmp_path, step, strategy, keep=2)
    assert names(tmp_path) == ["step-00000008", "step-00000009"]


def test_a_checkpoint_under_another_ones_name_does_not_count(tmp_path: Path) -> None:
    save(tmp_path, 3, make_strategy()).rename(checkpoint_path(tmp_path, 7))
    assert newest_checkpoint(tmp_path) == (None, ["step-00000007"])


def test_a_table_of_contents_that_names_files_elsewhere_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 1, make_strategy())
    shutil.copy(path / "__0_0.distcp", tmp_path.parent / "xx")
    contents = (path / ".metadata").read_bytes()
    name = b"__0_0.distcp"
    elsewhere = b"../../xx".rjust(len(name), b"/")
    (path / ".metadata").write_bytes(contents.replace(name, elsewhere))
    told = {file.name: file.stat().st_size for file in path.iterdir() if file.name != COMPLETE}
    (path / COMPLETE).write_text(json.dumps(told))
    with pytest.raises(ValueError, match=r"step-00000001 cannot be read: .* files elsewhere"):
        load_weights(read_saved(path))


@pytest.mark.parametrize("content", ["{", "[]", '{"step": -1, "metric": "loss", "value": 1}', '{"step": 1}'])
def test_a_damaged_note_of_the_best_is_told_and_not_taken_for_none(tmp_path: Path, content: str) -> None:
    """Taken for none, the best checkpoint would be deleted as an old one."""
    (tmp_path / "best.json").write_text(content)
    with pytest.raises(ValueError, match=r"best\.json: .*remove it"):
        read_best(tmp_path)


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

    def no_tensors(*arguments: object, storage_writer: FileSystemWriter, **more: object) -> None:
        (Path(storage_writer.path)).mkdir()
        (Path(storage_writer.path) / "__0_0.distcp").write_bytes(b"half")
        raise Killed

    whole_file = checkpoint.atomic_file
    token = f"{platform.node()[:64] or 'host'}-{2**22 + 1}-abc"  # of a process that is no more
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "atomic_file", cut_short)
        if moment == "tensors":
            patch.setattr(checkpoint.dcp, "save", no_tensors)
        with pytest.raises(Killed):
            write_checkpoint(tmp_path, 2, strategy.state_dict(), FACTS, ALONE, token)
    assert len(names(tmp_path)) == 2
    saved, damaged = newest_checkpoint(tmp_path)
    assert saved is not None
    assert saved.step == 1
    assert [name.split(".")[0] for name in damaged] == ["step-00000002"]  # it is told
    save(tmp_path, 3, strategy)
    assert names(tmp_path) == ["step-00000001", "step-00000003"]  # what was left lying about is gone


def save_for_ever(folder: Path) -> None:
    strategy = make_strategy(width=200)
    saver = CheckpointManager(folder, strategy, ALONE, CheckpointConfig(keep=3), FACTS)
    for step in range(1, 10**6):
        train(strategy, 1, seed=step)
        saver.save(step)


@pytest.mark.slow
def test_after_kill_9_while_a_checkpoint_is_being_written_the_newest_whole_one_loads(tmp_path: Path) -> None:
    here = str(Path(__file__).parent)
    with Processes(tmp_path / "log") as child:
        code = f"import sys, pathlib; sys.path.insert(0, {here!r}); import test_checkpoint as t; "
        child.start([sys.executable, "-c", code + f"t.save_for_ever(pathlib.Path({str(tmp_path / 'saved')!r}))"])

        def writing() -> bool:
            assert child.children[0].poll() is None, child.output()
            whole = newest_checkpoint(tmp_path / "saved")[0]
            return whole is not None and any((tmp_path / "saved").glob("*.partial/*"))

        until(writing, 60, "a half-written checkpoint after whole ones")
        child.kill()
    saved, _ = newest_checkpoint(tmp_path / "saved")
    assert saved is not None
    again, expected = make_strategy(width=200, seed=5), make_strategy(width=200)
    load_checkpoint(saved, again, ALONE)
    for step in range(1, saved.step + 1):
        train(expected, 1, seed=step)
    assert train(again, 1, seed=0) == train(expected, 1, seed=0)
    save(tmp_path / "saved", saved.step + 1, again)
    assert not list((tmp_path / "saved").glob("*.partial"))


def test_a_checkpoint_that_cannot_be_written_is_an_oserror_and_the_older_one_stays(tmp_path: Path) -> None:
    strategy = make_strategy()
    save(tmp_path, 1, strategy)
    with small_disk(1000), pytest.raises(OSError, match="step-00000002 could not be written"):
        save(tmp_path, 2, strategy)
    saved, _ = newest_checkpoint(tmp_path)
    assert saved is not None
    assert saved.step == 1


def test_in_the_background_too_and_the_training_hears_of_it_when_it_saves_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strategy = make_strategy()
    saver = CheckpointManager(tmp_path, strategy, ALONE, CheckpointConfig(keep=2), FACTS)
    saver.save(1)
    saver.wait()
    with small_disk(1000):
        saver.save(2)
        with pytest.raises(OSError, match="step-00000002 could not be written"):
            saver.save(3)
    assert "warning" in capsys.readouterr().err  # people hear of it at once
    saver.save(4)
    saver.wait()
    assert names(tmp_path) == ["step-00000001", "step-00000004"]


def test_what_is_trained_while_a_checkpoint_is_written_is_not_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from genre_dist.training import checkpoint

    strategy, expected = make_strategy(), make_strategy()
    assert train(strategy, 2) == train(expected, 2)
    saver = CheckpointManager(tmp_path, strategy, ALONE, CheckpointConfig(), FACTS)
    trained, whole_save = threading.Event(), checkpoint.dcp.save

    def save_later(*arguments: object, **more: object) -> object:
        assert trained.wait(60)
        return whole_save(*arguments, **more)

    monkeypatch.setattr(checkpoint.dcp, "save", save_later)
    saver.save(1)
    train(strategy, 3)
    trained.set()
    saver.wait()
    saved, _ = newest_checkpoint(tmp_path)
    assert saved is not None
    load_checkpoint(saved, strategy, ALONE)
    assert train(strategy, 3) == train(expected, 3)


def test_room_made_in_advance_holds_nothing_of_that_moment(tmp_path: Path) -> None:
    strategy = make_strategy()
    train(strategy, 1)
    saver = CheckpointManager(tmp_path, strategy, ALONE, CheckpointConfig(), FACTS)
    saver.prepare()
    train(strategy, 2)
    for step in (3, 4):
        saver.save(step)
        expected = {name: tensor.clone() for name, tensor in strategy.model.state_dict().items()}
        train(strategy, 1)
        saver.wait()
        weights = load_weights(read_saved(checkpoint_path(tmp_path, step)))
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


def test_two_savers_of_one_step_leave_one_whole_checkpoint(tmp_path: Path) -> None:
    strategy = make_strategy()
    savers = [CheckpointManager(tmp_path, strategy, ALONE, CheckpointConfig(), FACTS) for _ in range(4)]
    for step in (1, 2):
        for saver in savers:
            saver.save(step)
    for saver in savers:
        saver.wait()
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    saved, damaged = newest_checkpoint(tmp_path)
    assert saved is not None
    assert (saved.step, damaged) == (2, [])
    load_checkpoint(saved, make_strategy(seed=1), ALONE)


@pytest.mark.slow
def test_a_checkpoint_may_take_any_time_to_be_written_as_long_as_it_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noticed, growth = threading.Event(), []

    def slowly(folder: Path, *_: object) -> None:
        file = folder / "step-00000001.host-1-abc.partial" / "__0_0.distcp"
        file.parent.mkdir()
        for _ in range(2):
            noticed.clear()
            with open(file, "ab") as opened:
                opened.write(b"more")
            growth.append(noticed.wait(30))

    monkeypatch.setattr("genre_dist.training.checkpoint_manager.write_checkpoint", slowly)
    world = World(0, 1, torch.device("cpu"), SimpleNamespace(progress=noticed.set))  # type: ignore[arg-type]
    saver = CheckpointManager(tmp_path, make_strategy(), world, CheckpointConfig(), FACTS)
    saver.save(1)
    saver.wait()
    assert growth == [True, True]

    def renamed(*_: object) -> Iterator[Path]:
        yield file
        raise FileNotFoundError(errno.ENOENT, "whole meanwhile", "step-00000001.host-1-abc.partial")

    file = tmp_path / "step-00000001.host-1-abc.partial" / "__0_0.distcp"
    monkeypatch.setattr(Path, "glob", renamed)
    assert saver._bytes_written() == 8


# --- when, and which stay


def test_every_so_many_steps_and_every_so_many_minutes(tmp_path: Path) -> None:
    now = [0.0]
    config = CheckpointConfig(every_steps=10, every_minutes=2)
    saver = CheckpointManager(tmp_path, make_strategy(), ALONE, config, FACTS, clock=lambda: now[0])
    assert [step for step in range(1, 31) if saver.due(step)] == [10, 20, 30]
    now[0] = 119.0
    assert not saver.asks()
    now[0] = 120.0
    assert saver.asks()
    saver.save(7)
    assert not saver.asks()
    never = CheckpointManager(
        tmp_path, make_strategy(), ALONE, CheckpointConfig(every_steps=None), FACTS, clock=lambda: 1e9
    )
    assert not never.asks()
    assert not any(map(never.due, range(1, 1000)))
    saver.wait()


@pytest.mark.parametrize(
    ("metric", "values", "best"), [("micro_f1", [0.4, 0.7, 0.7, 0.6], 2), ("loss", [0.4, 0.2, None, float("nan")], 2)]
)
def test_the_best_stays_beside_the_newest(tmp_path: Path, metric: str, values: list[float | None], best: int) -> None:
    strategy = make_strategy()
    saver = CheckpointManager(
        tmp_path, strategy, ALONE, CheckpointConfig(keep=1, every_steps=3, best_metric=metric), FACTS
    )
    for step, value in enumerate(values, 1):
        saver.note_evaluation(step, {metric: value})
        if saver.due(step):
            saver.save(step)
    saver.save(5)
    saver.wait()
    assert names(tmp_path) == ["best.json", f"step-{best:08d}", "step-00000005"]
    kept = read_best(tmp_path)
    assert kept is not None
    assert kept == (best, metric, 0.7 if metric == "micro_f1" else 0.2)
    # a run that is continued knows it, and a later evaluation of a step that is saved already can be the best as well
    again = CheckpointManager(tmp_path, strategy, ALONE, CheckpointConfig(keep=1, best_metric=metric), FACTS)
    again.note_evaluation(5, {metric: 0.5})
    assert read_best(tmp_path) == kept
    again.note_evaluation(5, {metric: 0.1 if metric == "loss" else 0.9})
    assert names(tmp_path) == ["best.json", "step-00000005"]


def test_the_weights_can_be_read_without_the_model(tmp_path: Path) -> None:
    strategy = make_strategy()
    train(strategy, 1)
    save(tmp_path, 1, strategy)
    saved, _ = newest_checkpoint(tmp_path)
    assert saved is not None
    weights = load_weights(saved)
    assert weights.keys() == strategy.model.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in strategy.model.state_dict().items())
    next(saved.path.glob("*.distcp")).write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="step-00000001"):
        load_weights(saved)


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


class ByGetattr:
    """Pickles as an attribute of something."""

    def __init__(self, owner: object, name: str) -> None:
        self.found = (owner, name)

    def __reduce__(self) -> tuple[object, ...]:
        return getattr, self.found


def test_members_of_enums_are_read_as_any_python_pickles_them_and_no_other_attributes() -> None:
    """Python 3.11.2, which is Debian's, writes them with getattr, 3.11.7 with their values."""
    from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING as FORMATS

    def read(what: object) -> object:
        return _MetadataUnpickler(io.BytesIO(pickle.dumps(what))).load()

    member = FORMATS.TORCH_CONTIGUOUS_FORMAT
    assert read(member) is member
    assert read(ByGetattr(FORMATS, member.name)) is member
    for owner in (torch.Size, Path):
        with pytest.raises(pickle.UnpicklingError, match="not to be trusted"):
            read(ByGetattr(owner, "__init__"))


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
