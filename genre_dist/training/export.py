"""Taking a model out of a run, finished or not."""

import shutil
from pathlib import Path

from genre_dist.atomic import atomic_file
from genre_dist.config.continuing import trained_with
from genre_dist.config.files import load_config
from genre_dist.config.run import CONFIG, TEXT_ENCODER
from genre_dist.lock import FILE as LOCK
from genre_dist.stream.manifest import load_manifest
from genre_dist.training.checkpoint import Saved, checkpoint_path, load_weights, newest_checkpoint, read_saved
from genre_dist.training.checkpoint_manager import read_best
from genre_dist.training.model_files import (
    METADATA,
    TOKENIZER,
    WEIGHTS,
    WORDS,
    check_model,
    save_model,
)

THRESHOLDS = "thresholds.json"
_FILES = (CONFIG, THRESHOLDS, WEIGHTS, WORDS, TOKENIZER, TEXT_ENCODER)
"""What a run may have that its model needs, beside model.json."""


def export_run(run: Path, out: Path, which: str | None = None, shards: Path | None = None) -> int:
    """Write what `predict` needs of a run into the new folder `out`; returns the step of the model.

    `which` is `last` (the newest checkpoint) or `best` (see `checkpoint.best_metric`); the default is the finished
    model, or the newest checkpoint of an unfinished run. Metadata of the data comes from the shards of the run's
    configuration, or from `shards` if those have the same data. model.json is written last, so an export that was cut
    short can be repeated. The caller holds the lock of `out`. Raises ValueError for files that are missing or damaged,
    OSError for a full disk.
    """
    if not (run / CONFIG).is_file():
        raise ValueError(f"{run}: not a run (it has no {CONFIG})")
    if out.exists() and not (out.is_dir() and _may_write(out)):
        raise ValueError(f"--out {out} is not empty; name a new folder")
    config = load_config(run / CONFIG)
    if which is None and (run / WEIGHTS).is_file():
        metadata = check_model(run)
        for name in (*_FILES, METADATA):
            if (run / name).is_file():
                _copy(run / name, out / name)
        return metadata.step
    saved = _chosen(run, which)
    manifest = load_manifest(shards or config.data.shards)
    if manifest.fingerprint != saved.metadata.get("data_fingerprint"):
        raise ValueError(f"{manifest.folder} holds other data than {run} was trained on; name its --shards")
    weights = load_weights(saved)
    for name in (CONFIG, TEXT_ENCODER):
        if (run / name).is_file():
            _copy(run / name, out / name)
    save_model(out, weights, manifest, saved.step, saved.metadata.get("settings", trained_with(config)))
    return saved.step


def _may_write(out: Path) -> bool:
    """Whether a folder is empty, or holds only files of an export that was cut short."""
    names = {path.name for path in out.iterdir()}
    return METADATA not in names and all(
        name in (LOCK, *_FILES) or (name.endswith(".tmp") and name.startswith((*_FILES, METADATA))) for name in names
    )


def _copy(source: Path, target: Path) -> None:
    with open(source, "rb") as opened, atomic_file(target) as file:
        shutil.copyfileobj(opened, file, 1 << 20)


def _chosen(run: Path, which: str | None) -> Saved:
    """The checkpoint to export. Raises ValueError if there is none of the kind."""
    checkpoints = run / "checkpoints"
    if which == "best":
        best = read_best(checkpoints)
        if best is None:
            raise ValueError(f"{run}: no checkpoint was kept as the best; train with --checkpoint.best_metric micro_f1")
        return read_saved(checkpoint_path(checkpoints, best.step))
    saved, damaged = newest_checkpoint(checkpoints)
    if saved is None:
        raise ValueError(f"{run}: no whole checkpoint" + (f" ({', '.join(damaged)} damaged)" if damaged else " yet"))
    return saved
