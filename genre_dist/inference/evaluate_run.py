"""Evaluation of a finished run on a split of its own shards or of others."""

import dataclasses
from pathlib import Path

from genre_dist.config import derive_batches
from genre_dist.inference.trained_model import Run
from genre_dist.metrics.thresholds import FILE as THRESHOLDS
from genre_dist.parallel.world import World
from genre_dist.schema import plural, with_article
from genre_dist.stream.manifest import Manifest, load_manifest
from genre_dist.training.evaluation import Evaluator, print_evaluation, save_evaluation
from genre_dist.training.experiment import autocast_for, choose_precision


def evaluate_run(run: Run, folder: Path, split: str, shards: Path | str | None, world: World) -> None:
    """Evaluate a finished run on a split of its own (or other) shards, on all ranks.

    A run whose thresholds were never fitted is evaluated on val first. Raises ValueError if the shards have other
    genres or another vocabulary than the model was trained with.
    """
    data = run.config.data
    manifest = _manifest(shards, data.shards)
    check_same_labels(run, manifest)
    whole_batch = dataclasses.replace(data, global_batch=data.global_batch * world.size)
    autocast = autocast_for(choose_precision(run.config, world.device, trained_elsewhere=True), world.device)
    evaluator = Evaluator(run.model, run.config, world, autocast, derive_batches(whole_batch, world.size).micro)
    unfitted = world.broadcast(not (folder / THRESHOLDS).is_file())
    unfitted = unfitted and manifest.declared.labels.choose == "many"
    fit_first = unfitted and split != "val" and _samples(run, manifest, "val") > 0
    for each in ("val", split) if fit_first else (split,):
        evaluation = evaluator.evaluate(manifest, each)
        if evaluation is not None:
            world.progress()  # metrics of many films take long, while the other ranks wait
            print_evaluation(save_evaluation(evaluation, folder), manifest.declared)


def _manifest(named: Path | str | None, recorded: str) -> Manifest:
    """The manifest of the shards that the user names, else of the run's, which an exported run may have left behind."""
    try:
        return load_manifest(named or recorded)
    except ValueError as error:
        if named is not None:
            raise
        raise ValueError(
            f"name the shards with --shards: those of the run's config.yaml cannot be read: {error}"
        ) from None


def _samples(run: Run, manifest: Manifest, split: str) -> int:
    """How many samples of a split the model can predict."""
    model = run.config.model
    return manifest.samples(split, model.members(manifest.declared), model.learns_missing)


def check_same_labels(run: Run, manifest: Manifest) -> None:
    """Raise ValueError if shards have other labels, or another vocabulary, than the model was trained with."""
    labels = plural(run.declared.label)
    if run.genres != [genre.name for genre in manifest.genres]:
        raise ValueError(f"{manifest.folder}: its {labels} are not those the model was trained on")
    here, trained_for = manifest.declared.labels.choose, run.declared.labels.choose
    if here != trained_for:
        number = {"one": f"exactly one {run.declared.label}", "many": f"any number of {labels}"}
        raise ValueError(
            f"{manifest.folder}: {with_article(manifest.declared.sample)} has {number[here]}, and the model was "
            f"trained for {number[trained_for]}; name other shards"
        )
    trained_on = run.metadata["text"]["vocabulary_sha256"]
    if run.config.model.uses_text and manifest.text["vocabulary_sha256"] != trained_on:
        raise ValueError(
            f"{manifest.folder}: packed with another vocabulary than the model was trained with; its token ids would "
            "mean other words"
        )
