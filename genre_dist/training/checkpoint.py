"""Checkpoints that are whole or absent: written aside, marked complete, renamed; resume takes the newest whole one.

The file COMPLETE notes size and checksum of every file; a file with other bytes is damaged.
torch.distributed.checkpoint stores the tensors under the parameters' names, so they load at any world size and with any
strategy. Learning rates and the like follow from the configuration and the step. torch keeps its table of contents as a
pickle; an unpickler reads it that knows only the few harmless classes of such a table, and only tensors are stored, so
nothing in a checkpoint can run code.
"""

import io
import json
import os
import pickle
import platform
import secrets
import shutil
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter, StorageMeta
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from genre_dist.atomic import atomic_file
from genre_dist.parallel.strategy import Strategy
from genre_dist.parallel.world import World
from genre_dist.printable import printable
from genre_dist.training.ema import TrainState
from genre_dist.training.staging import by_name
from genre_dist.validation import Count, FileName, is_file_name, read_json

COMPLETE, METADATA = "COMPLETE", "facts.json"
_DAMAGED = "the checkpoint is damaged: copy it again, or remove it to go on from the one before"
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


@dataclass(frozen=True)
class _Noted:
    """Size and checksum of a checkpoint's file when it was written."""

    bytes: Count
    crc32: Count | None = None


class Saved(NamedTuple):
    """A whole checkpoint on disk."""

    path: Path
    step: int
    """Optimizer steps done when it was written."""
    metadata: dict[str, Any]
    """Saved beside the tensors: identity of data and order, settings, step, world size."""


def write_checkpoint(
    folder: Path,
    step: int,
    state: dict[str, Any],
    metadata: dict[str, Any],
    world: World,
    token: str,
    group: Any = None,
) -> None:
    """Write `folder/step-NNNNNNNN`, all ranks together, each its share of the state (see `Strategy.state_dict`).

    The ranks communicate over `group` (by default the training's), so that a save can run beside the training. `token`
    makes the temporary name unique. Raises OSError if the checkpoint cannot be written.
    """
    final = checkpoint_path(folder, step)
    partial = final.with_name(f"{final.name}.{token}.partial")
    try:
        with _quiet():
            writer = FileSystemWriter(partial)
            dcp.save(state, storage_writer=writer, no_dist=world.size == 1, process_group=group)
        if world.is_first:
            _complete(partial, final, metadata | {"step": step, "world": world.size}, world.progress)
    except (dcp.CheckpointException, OSError) as error:  # the first is no Exception by inheritance; on all ranks
        if world.is_first:
            shutil.rmtree(partial, ignore_errors=True)
        free = shutil.disk_usage(folder).free >> 20  # torch's words for a full disk are not plain ones
        raise OSError(
            f"{final} could not be written, older checkpoints stay: {_reason(error)} ({free:,} MB are free there)"
        ) from None


def _complete(partial: Path, final: Path, metadata: dict[str, Any], progress: Callable[[], None]) -> None:
    """Mark a checkpoint under its temporary name as complete and rename it."""
    with atomic_file(partial / METADATA, "w") as file:
        json.dump(metadata, file, indent=1)
    noted = {
        path.name: asdict(_Noted(path.stat().st_size, checksum(path, progress))) for path in sorted(partial.iterdir())
    }
    with atomic_file(partial / COMPLETE, "w") as file:
        json.dump(noted, file)
    if not is_as_written(final):
        shutil.rmtree(final, ignore_errors=True)
        with suppress(OSError):  # another saver of the same step was faster: its checkpoint is as good
            partial.rename(final)
    shutil.rmtree(partial, ignore_errors=True)


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def new_token() -> str:
    """Part of this process's temporary names: `<host>-<pid>-<random>`, see `remove_leftovers`."""
    return f"{platform.node()[:64] or 'host'}-{os.getpid()}-{secrets.token_hex(3)}"


def remove_leftovers(folder: Path) -> None:
    """Delete the unfinished checkpoints of processes that were killed.

    On this host a process id tells; checkpoints of other hosts are deleted after an hour without a write.
    """
    for partial in folder.glob("step-*.partial"):
        host, _, pid = partial.suffixes and partial.name.split(".", 1)[1].rpartition("-")[0].rpartition("-")
        with suppress(OSError):
            if host == (platform.node()[:64] or "host") and pid.isdigit():
                alive = Path(f"/proc/{pid}").exists() if Path("/proc").is_dir() else True
                stale = not alive
            else:
                newest = max((path.stat().st_mtime for path in (partial, *partial.iterdir())), default=0.0)
                stale = time.time() - newest > 3600
            if stale:
                shutil.rmtree(partial, ignore_errors=True)


def remove_old(folder: Path, step: int, keep: int, spared: int | None) -> None:
    """Once a step's checkpoint is whole, delete older ones except the newest `keep` (with this one) and step `spared`.

    Checkpoints of later steps were skipped as damaged: they do not count, and stay until the run gets there again.
    """
    last = checkpoint_path(folder, step)
    named = sorted(path for path in folder.glob("step-*") if path.suffix != ".partial" and path <= last)
    kept = [path for path in named if is_whole(path)][-keep:]
    for old in named:
        if kept and old < kept[0] and (spared is None or old != checkpoint_path(folder, spared)):
            shutil.rmtree(old, ignore_errors=True)


def newest_checkpoint(folder: Path, progress: Callable[[], None] = lambda: None) -> tuple[Saved | None, list[str]]:
    """The newest whole checkpoint, if any, and the names of newer ones that are damaged.

    This reads all their bytes and calls `progress` on the way.
    """
    damaged: list[str] = []
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            return read_saved(path, progress), damaged
        except (ValueError, OSError):
            damaged.append(path.name)
    return None, damaged


def read_saved(path: Path, progress: Callable[[], None] = lambda: None) -> Saved:
    """A complete checkpoint whose files have the noted sizes and checksums (older ones have sizes only).

    Raises ValueError if it is damaged or incomplete, OSError if it cannot be read.
    """
    for name, noted in _read_mark(path).items():
        file = path / name
        if (
            not file.is_file()
            or file.stat().st_size != noted.bytes
            or (noted.crc32 is not None and checksum(file, progress) != noted.crc32)
        ):
            raise ValueError(f"{file}: other bytes than were written; {_DAMAGED}")
    metadata = read_json(dict[str, Any], path / METADATA, _DAMAGED)
    step = metadata.get("step")
    if not isinstance(step, int) or checkpoint_path(path.parent, step) != path:
        raise ValueError(f"{path / METADATA}: not of the step that the folder is named for; {_DAMAGED}")
    return Saved(path, step, metadata)


def is_as_written(path: Path) -> bool:
    """Whether a checkpoint is complete and undamaged; reads all its bytes."""
    try:
        return read_saved(path) is not None
    except (OSError, ValueError):
        return False


def is_whole(path: Path) -> bool:
    """Whether a checkpoint is marked complete and all its files have the noted sizes; reads no tensors."""
    try:
        return all((path / name).stat().st_size == noted.bytes for name, noted in _read_mark(path).items())
    except (OSError, ValueError):
        return False


def checksum(path: Path, progress: Callable[[], None] = lambda: None) -> int:
    """CRC-32 of a file, as fast as reading it; calls `progress` every MB."""
    value = 0
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(1 << 20):
            value = zlib.crc32(chunk, value)
            progress()
    return value


def _read_mark(path: Path) -> dict[str, _Noted]:
    """The noted files of a complete checkpoint; older checkpoints noted sizes only."""
    mark = read_json(dict[FileName, Count | _Noted], path / COMPLETE, _DAMAGED)
    return {name: _Noted(noted) if isinstance(noted, int) else noted for name, noted in mark.items()}


def load_weights(saved: Saved) -> dict[str, torch.Tensor]:
    """The model's tensors of a checkpoint, averaged if it has averages; this process alone reads them.

    Raises ValueError if it is damaged.
    """
    reader = _TensorReader(saved.path)
    try:
        stored = reader.read_metadata().state_dict_metadata
        weights = {
            name.removeprefix("model."): torch.empty(of.size, dtype=of.properties.dtype)
            for name, of in stored.items()
            if name.startswith("model.") and isinstance(of, TensorStorageMetadata)
        }
        averaged = {name: tensor for name, tensor in weights.items() if f"ema.{name}" in stored}
        trained = {name: tensor for name, tensor in weights.items() if name not in averaged}
        with _quiet():
            dcp.load({"model": trained, "ema": averaged}, storage_reader=reader, no_dist=True)
    except (dcp.CheckpointException, Exception) as error:  # torch's, pickle's: whatever damaged bytes lead to
        raise ValueError(f"{saved.path} cannot be read: {_reason(error)}") from None
    return weights


def load_checkpoint(saved: Saved, state: Strategy | TrainState, world: World) -> None:
    """Load model and optimizer, all ranks together.

    Raises ValueError if the checkpoint is of another model.
    """
    tensors = state.blank_state()
    reader = _TensorReader(saved.path)
    try:
        _refuse_leftovers(tensors, reader.read_metadata())
        with _quiet():
            dcp.load(tensors, storage_reader=reader, no_dist=world.size == 1)
    except (dcp.CheckpointException, Exception) as error:  # as above
        raise ValueError(
            f"{saved.path} does not fit this model ({_reason(error)}); continue with the configuration it was made "
            "with, or pass --run.overwrite true to start again"
        ) from None
    state.load_state_dict(tensors)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's warning that a single process saves or loads by itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def _refuse_leftovers(tensors: dict[str, Any], metadata: Metadata) -> None:
    """Raise ValueError for a checkpoint with more tensors than the model has: torch would ignore them."""
    if left := sorted(set(metadata.state_dict_metadata) - set(by_name(tensors))):
        raise ValueError(f"it also holds {', '.join(left[:3])}{' ...' if len(left) > 3 else ''}")


def _reason(error: BaseException) -> str:
    """The last line of torch's report: what happened on the first rank that failed."""
    return printable((str(error).strip().splitlines() or [type(error).__name__])[-1].strip())[:500]


def _enum_member(enum: Any, name: Any) -> Enum:
    """The one allowed use of `getattr` in a pickle: Python 3.11.2 (Debian's) pickles members of enums with it."""
    if not (isinstance(enum, type) and issubclass(enum, Enum)):
        raise pickle.UnpicklingError("its table of contents asks for an attribute, which is not to be trusted")
    return enum[name]


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _enum_member
        if name not in _HARMLESS.get(module, ()):
            raise pickle.UnpicklingError(f"its table of contents holds {module}.{name}, which is not to be trusted")
        return super().find_class(module, name)


class _TensorReader(FileSystemReader):
    """torch's reader with the safe unpickler in place of the plain one."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        written = (Path(self.path) / ".metadata").read_bytes()  # a stream over bytes gives no more than the file has
        metadata = _MetadataUnpickler(io.BytesIO(written)).load()
        if not all(is_file_name(stored.relative_path) for stored in metadata.storage_data.values()):
            raise pickle.UnpicklingError("its table of contents names files elsewhere")
        if getattr(metadata, "storage_meta", None) is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata
