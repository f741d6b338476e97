"""Checkpoints that are whole or absent: written aside, marked complete, renamed; resume takes the newest whole one.

The tensors are stored by torch.distributed.checkpoint under the parameters' names, so they load at any world size and
with any strategy. Learning rates and the like follow from the configuration and the step. torch keeps its table of
contents as a pickle; that is read here with an unpickler that knows the few harmless classes such a table consists of,
and only tensors are stored, so nothing in a checkpoint can run code.
"""

import json
import pickle
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter, StorageMeta
from torch.distributed.checkpoint.metadata import Metadata

from genre_dist.atomic import atomic_file
from genre_dist.parallel.strategy import Strategy
from genre_dist.parallel.world import World

COMPLETE = "COMPLETE"
_HARMLESS = {
    "torch.distributed.checkpoint.metadata": {
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {
        "Size",
        *(
            str(getattr(torch, name)).removeprefix("torch.")
            for name in dir(torch)
            if name.islower() and isinstance(getattr(torch, name), torch.dtype)
        ),
    },
    "pathlib": {"PosixPath", "PurePosixPath", "Path"},
    "pathlib._local": {"PosixPath", "PurePosixPath", "Path"},
}


class Saved(NamedTuple):
    """A whole checkpoint on disk."""

    path: Path
    step: int
    """Optimizer steps done when it was written."""
    facts: dict[str, Any]
    """What was saved beside the tensors."""


def save_checkpoint(
    folder: Path, step: int, strategy: Strategy, facts: dict[str, Any], world: World, keep: int
) -> Path:
    """Write `folder/step-NNNNNNNN` (all ranks together) and remove all but the newest `keep`.

    Raises OSError if it cannot be written; older checkpoints stay.
    """
    final = folder / f"step-{step:08d}"
    strategy.sync_buffers()
    if world.any(world.is_first and _whole(final)):
        return final
    partial = final.with_suffix(".partial")
    if world.is_first:
        shutil.rmtree(partial, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    world.barrier()
    tensors = strategy.state_dict()
    try:
        with _quiet():
            dcp.save(tensors, storage_writer=FileSystemWriter(partial), no_dist=world.size == 1)
    except dcp.CheckpointException as error:  # no Exception by inheritance; raised on all ranks
        raise OSError(f"{final} could not be written, older checkpoints stay: {_reason(error)}") from None
    if world.is_first:
        with atomic_file(partial / "facts.json", "w") as file:
            json.dump(facts | {"step": step, "world": world.size}, file, indent=1)
        sizes = {path.name: path.stat().st_size for path in partial.iterdir()}
        with atomic_file(partial / COMPLETE, "w") as file:
            json.dump(sizes, file)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        for old in sorted(path for path in folder.glob("step-*") if path.suffix != ".partial")[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
        for cut_short in folder.glob("step-*.partial"):
            shutil.rmtree(cut_short, ignore_errors=True)
    world.barrier()
    return final


def newest_checkpoint(folder: Path) -> tuple[Saved | None, list[str]]:
    """The newest whole checkpoint, if any, and the names of newer ones that are damaged."""
    damaged: list[str] = []
    for path in sorted(folder.glob("step-*"), reverse=True):
        if _whole(path):
            facts = json.loads((path / "facts.json").read_text())
            return Saved(path, facts["step"], facts), damaged
        damaged.append(path.name)
    return None, damaged


def load_checkpoint(saved: Saved, strategy: Strategy, world: World) -> None:
    """Load model and optimizer, all ranks together.

    Raises ValueError if the checkpoint is of another model.
    """
    tensors = strategy.blank_state()
    reader = _TensorReader(saved.path)
    try:
        _refuse_leftovers(tensors, reader.read_metadata())
        with _quiet():
            dcp.load(tensors, storage_reader=reader, no_dist=world.size == 1)
    except (dcp.CheckpointException, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{saved.path} does not fit this model ({_reason(error)}); continue with the configuration it was made "
            "with, or pass --run.overwrite true to start again"
        ) from None
    strategy.load_state_dict(tensors)


@contextmanager
def _quiet() -> Iterator[None]:
    """That a single process saves or loads by itself is no news."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def _refuse_leftovers(tensors: dict[str, Any], metadata: Metadata) -> None:
    """torch reads what it is asked for; a checkpoint with more in it than that is one of another model."""
    own = flatten_state_dict(tensors)[0]
    if left := sorted(set(metadata.state_dict_metadata) - set(own)):
        raise ValueError(f"it also holds {', '.join(left[:3])}{' ...' if len(left) > 3 else ''}")


def _reason(error: BaseException) -> str:
    """The last line of torch's report: what happened on the first rank that failed."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


def _whole(path: Path) -> bool:
    """Whether a checkpoint is marked complete and all its files have the sizes noted then."""
    try:
        sizes = json.loads((path / COMPLETE).read_text())
        return all((path / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _HARMLESS.get(module, ()):
            raise pickle.UnpicklingError(f"its table of contents holds {module}.{name}, which is not to be trusted")
        return super().find_class(module, name)


class _TensorReader(FileSystemReader):
    """torch's reader with the safe unpickler in place of the plain one."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with open(Path(self.path) / ".metadata", "rb") as file:
            metadata = _MetadataUnpickler(file).load()
        if getattr(metadata, "storage_meta", None) is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata
