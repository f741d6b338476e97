"""Checkpoints that are whole or absent: written aside, marked complete, renamed; resume takes the newest whole one.

The tensors are stored by torch.distributed.checkpoint under the parameters' names, so they load at any world size. It
keeps its table of contents as a pickle; that is read here with an unpickler that knows the few harmless classes such a
table consists of, and only tensors are stored, so nothing in a checkpoint can run code.
"""

import json
import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed.checkpoint as dcp
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
    tensors = _only_tensors(strategy.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a single process saves by itself is no news
        dcp.save(tensors, storage_writer=FileSystemWriter(partial), no_dist=world.size == 1)
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
    state = strategy.state_dict()
    tensors = _only_tensors(state)
    try:
        dcp.load(tensors, storage_reader=_TensorReader(saved.path), no_dist=world.size == 1)
    except (dcp.CheckpointException, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(
            f"{saved.path} does not fit this model ({reason}); continue with the configuration it was made with, or "
            "pass --run.overwrite true to start again"
        ) from None
    state["model"], state["optimizer"]["state"] = tensors["model"], tensors["optimizer"]
    strategy.load_state_dict(state)


def _only_tensors(state: dict[str, Any]) -> dict[str, Any]:
    """Learning rates and the like follow from the configuration and the step; only tensors are stored."""
    return {"model": state["model"], "optimizer": state["optimizer"]["state"]}


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
