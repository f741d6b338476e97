"""What a finished run leaves to be used: weights, vocabulary, and what the model was trained on."""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from genre_dist.atomic import atomic_file
from genre_dist.storage import read_bytes
from genre_dist.stream.manifest import Manifest, load_manifest
from genre_dist.training.checkpoint import Saved, checkpoint_path, load_weights, newest_checkpoint, read_saved
from genre_dist.training.saving import read_best

WEIGHTS = "model.safetensors"
FACTS = "model.json"
WORDS = "vocabulary.txt"
THRESHOLDS = "thresholds.json"


def model_facts(manifest: Manifest, step: int) -> dict[str, Any]:
    """What `model.json` says: labels, text and picture as the model was trained on them."""
    return {
        "genres": [genre._asdict() for genre in manifest.genres],
        "image": manifest.image,
        "text": manifest.text,
        "data_fingerprint": manifest.fingerprint,
        "step": step,
    }


def save_model(run: Path, weights: dict[str, Tensor], manifest: Manifest, step: int) -> None:
    """Write model.safetensors, model.json and the vocabulary into a run's folder."""
    partial = run / f"{WEIGHTS}.tmp"
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, partial, metadata={"format": "pt"})
    partial.replace(run / WEIGHTS)
    with atomic_file(run / WORDS) as file:
        file.write(read_bytes(manifest.folder / manifest.text["vocabulary"]))
    with atomic_file(run / FACTS, "w") as file:
        json.dump(model_facts(manifest, step), file, indent=1)


def export_run(run: Path, out: Path, which: str | None = None, shards: Path | None = None) -> int:
    """Write what `predict` needs of a run into the new folder `out`; returns the step of the model.

    `which` is `last` (the newest checkpoint) or `best` (see `checkpoint.best_metric`); by default the finished model,
    or, of a run that is not finished, the newest checkpoint. Facts about the data come from the shards of the run's
    configuration, or from `shards`, if they are those it was trained on. Raises ValueError for what is missing.
    """
    if not (run / "config.yaml").is_file():
        raise ValueError(f"{run}: not a run (it has no config.yaml)")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out {out} is not empty; name a new folder")
    saved = None if which is None and (run / WEIGHTS).is_file() else _chosen(run, which)
    if saved is None:
        out.mkdir(parents=True, exist_ok=True)
        for name in (WEIGHTS, FACTS, WORDS, THRESHOLDS):
            if (run / name).is_file():
                shutil.copyfile(run / name, out / name)
    else:
        from genre_dist.configfile import load_config  # training saves models too, and needs no parser of options

        config = load_config(run / "config.yaml")
        manifest = load_manifest(shards or config.data.shards)
        if manifest.fingerprint != saved.facts["data_fingerprint"]:
            raise ValueError(f"{manifest.folder} holds other data than {run} was trained on; name its --shards")
        weights = load_weights(saved)
        out.mkdir(parents=True, exist_ok=True)
        save_model(out, weights, manifest, saved.step)
    shutil.copyfile(run / "config.yaml", out / "config.yaml")
    step = finished_step(out)
    assert step is not None
    return step


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


def finished_step(run: Path) -> int | None:
    """The step a run's exported model was trained to, or None if there is none yet."""
    if not (run / FACTS).is_file():
        return None
    return json.loads((run / FACTS).read_text())["step"]
