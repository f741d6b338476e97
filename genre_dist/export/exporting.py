"""Taking a model out of a run, finished or not."""

import shutil
from pathlib import Path
from typing import Any

from genre_dist.atomic import atomic_file
from genre_dist.config.continuing import trained_with
from genre_dist.config.files import load_config
from genre_dist.config.run import CONFIG, TEXT_ENCODER
from genre_dist.export.model_card import FILE as CARD
from genre_dist.export.model_card import Exported, model_card
from genre_dist.lock import FILE as LOCK
from genre_dist.schema import TMDB
from genre_dist.storage import any_path, is_remote
from genre_dist.stream.manifest import Manifest, load_manifest
from genre_dist.training.checkpoint import Saved, checkpoint_path, load_weights, newest_checkpoint, read_saved
from genre_dist.training.checkpoint_manager import read_best
from genre_dist.training.model_files import (
    METADATA,
    TOKENIZER,
    WEIGHTS,
    WORDS,
    ModelMetadata,
    check_model,
    save_model,
)

THRESHOLDS = "thresholds.json"
_COPIED = (CONFIG, THRESHOLDS, WEIGHTS, WORDS, TOKENIZER, TEXT_ENCODER)
"""What a run may have that its model needs, beside model.json."""
_FILES = (*_COPIED, CARD)


def export_run(
    run: Path, out: Path, which: str | None = None, shards: Path | None = None, licence: str | None = None
) -> int:
    """Write what `predict` needs of a run into the new folder `out`; returns the step of the model.

    `which` is `last` (the newest checkpoint) or `best` (see `checkpoint.best_metric`); the default is the finished
    model, or the newest checkpoint of an unfinished run. Metadata of the data comes from the shards of the run's
    configuration, or from `shards` if those have the same data; the finished model needs none. README.md is the
    model's card, with the `licence` that the user states. model.json is written last, so an export that was cut short
    can be repeated. The caller holds the lock of `out`. Raises ValueError for files that are missing or damaged,
    OSError for a full disk.
    """
    if not (run / CONFIG).is_file():
        raise ValueError(f"{run}: not a run (it has no {CONFIG})")
    if out.exists() and not (out.is_dir() and _may_write(out)):
        raise ValueError(f"--out {out} is not empty; name a new folder")
    config = load_config(run / CONFIG)
    if which is None and (run / WEIGHTS).is_file():
        metadata = check_model(run)
        manifest = _manifest_in_reach(config.data.shards, shards, metadata.data_fingerprint)
        card = model_card(Exported(run, config, metadata, None, manifest), _name(out), licence)
        for name in _COPIED:
            if (run / name).is_file():
                _copy(run / name, out / name)
        _write_card(out, card)
        _copy(run / METADATA, out / METADATA)
        return metadata.step
    saved = _chosen(run, which)
    manifest = load_manifest(shards or config.data.shards)
    _check_data(manifest, str(saved.metadata.get("data_fingerprint")), run)
    settings = saved.metadata.get("settings", trained_with(config))
    metadata = _metadata(manifest, saved.step, settings)
    kind = "best" if which == "best" else "newest"
    checkpoint = f"the {kind} checkpoint, after step {saved.step:,}"
    card = model_card(Exported(run, config, metadata, checkpoint, manifest), _name(out), licence)
    weights = load_weights(saved)
    for name in (CONFIG, TEXT_ENCODER):
        if (run / name).is_file():
            _copy(run / name, out / name)
    _write_card(out, card)
    save_model(out, weights, manifest, saved.step, settings)
    return saved.step


def _manifest_in_reach(recorded: str, named: Path | None, fingerprint: str) -> Manifest | None:
    """The manifest of the data with this fingerprint, if it is on a disk here: a card asks no network.

    Raises ValueError if the shards that the user names are of other data, or none.
    """
    if named is not None:
        manifest = load_manifest(named)
        _check_data(manifest, fingerprint, "the model")
        return manifest
    try:
        found = None if is_remote(any_path(recorded)) else load_manifest(recorded)
    except (ValueError, OSError):
        return None
    return found if found is not None and found.fingerprint == fingerprint else None


def _check_data(manifest: Manifest, fingerprint: str, what: object) -> None:
    if manifest.fingerprint != fingerprint:
        raise ValueError(f"{manifest.folder} holds other data than {what} was trained on; name its --shards")


def _metadata(manifest: Manifest, step: int, settings: dict[str, Any]) -> ModelMetadata:
    """What model.json will hold, but for the checksum of the weights."""
    schema = None if manifest.declared == TMDB else manifest.declared
    about = (list(manifest.genres), manifest.image, manifest.text, manifest.fingerprint, step, settings)
    return ModelMetadata(*about, schema=schema, numbers=manifest.numbers)


def _name(out: Path) -> str:
    return out.resolve().name


def _write_card(out: Path, card: str) -> None:
    with atomic_file(out / CARD, "w") as file:
        file.write(card)


def _may_write(out: Path) -> bool:
    """Whether a folder is empty, or holds only files of an export that was cut short."""
    names = {path.name for path in out.iterdir()}
    if METADATA in names or (CARD in names and CONFIG not in names):  # somebody's own README.md
        return False
    return all(
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
