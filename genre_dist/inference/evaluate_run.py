"""Evaluation of a finished run on a split of its own shards or of others."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from genre_dist.config import derive_batches
from genre_dist.inference.trained_model import Run
from genre_dist.metrics.derived import MODEL, Derived, begin, checksums, name_without_seed, write_derived
from genre_dist.metrics.thresholds import FILE as THRESHOLDS
from genre_dist.parallel.world import World
from genre_dist.schema import plural, with_article
from genre_dist.stream.device_feed import hiding
from genre_dist.stream.manifest import Manifest, load_manifest
from genre_dist.training.evaluation import Evaluator, print_evaluation, save_evaluation
from genre_dist.training.experiment import autocast_for, choose_precision


def evaluate_run(run: Run, folder: Path, split: str, shards: Path | str | None, world: World) -> None:
    """Evaluate a finished run on a split of its own (or other) shards, on all ranks.

    A run whose thresholds were never fitted is evaluated on val first. Raises ValueError if the shards have other
    genres or another vocabulary than the model was trained with.
    """
    manifest = _manifest(run, shards)
    evaluator = _evaluator(run, world)
    unfitted = world.broadcast(not (folder / THRESHOLDS).is_file())
    unfitted = unfitted and manifest.declared.labels.choose == "many"
    fit_first = unfitted and split != "val" and _samples(run, manifest, "val") > 0
    for each in ("val", split) if fit_first else (split,):
        evaluation = evaluator.evaluate(manifest, each)
        if evaluation is not None:
            world.progress()  # metrics of many films take long, while the other ranks wait
            print_evaluation(save_evaluation(evaluation, folder), manifest.declared)


def evaluate_hidden(
    run: Run, folder: Path, hide: str, out: Path, split: str, shards: Path | str | None, world: World
) -> None:
    """Evaluate a finished run on val and on a split as if no sample had the field `hide`, on all ranks, into `out`.

    Thresholds are fitted on all val samples that have another field. Predictions and metrics are of those that have
    the hidden one too: to the others hiding makes no difference. `derived.json` is written last. Raises ValueError as
    `evaluate_run` does, and if the model or the samples cannot do without the field.
    """
    manifest = _manifest(run, shards)
    declared, splits = manifest.declared, dict.fromkeys(("val", split))
    _check_hidden(run, manifest, hide, splits)
    if world.is_first:
        begin(out)
    evaluator = _evaluator(run, world)._replace(hidden=hiding(declared.by_name[hide].part))
    for each in splits:
        evaluation = evaluator.evaluate(manifest, each)
        if evaluation is not None:
            world.progress()
            had = evaluation.has[hide]
            seen = evaluation._replace(has=evaluation.has | {hide: np.zeros_like(had)})
            has_other = np.logical_or.reduce(list(seen.has.values()))
            print(
                f"{each}: the {hide} of {(had & has_other).sum():,} {declared.samples} is hidden; {(~had).sum():,} "
                f"without one and {(~has_other).sum():,} with nothing else are left out"
            )
            figures = save_evaluation(seen.only(had & has_other), out, fit_on=seen.only(has_other))
            print_evaluation(figures, declared)
    if world.is_first:
        derived = Derived(
            kind="hidden",
            title=f"{hide.capitalize()} hidden from {name_without_seed(folder)}",
            of=[str(folder)],
            hidden=[hide],
            weights=None,
            data_fingerprint=manifest.fingerprint,
            made_from=[checksums(folder, MODEL)],
        )
        write_derived(out, derived)


def _check_hidden(run: Run, manifest: Manifest, hide: str, splits: Iterable[str]) -> None:
    """Raise ValueError if the model or the samples cannot do without a field."""
    model, declared = run.config.model, manifest.declared
    if not model.learns_missing:  # `auto` in the config.yaml of an older version
        model = dataclasses.replace(model, missing="leave_out")
    model.check_hiding(hide, declared)
    for split in splits:
        if not any(hide in names and len(names) > 1 for names in manifest.patterns(split, model.members(declared))):
            raise ValueError(
                f"{manifest.folder}: no {declared.sample} of the {split} split has {hide} and another field, so hiding "
                "changes nothing"
            )


def _manifest(run: Run, shards: Path | str | None) -> Manifest:
    """The manifest of the shards that the user names, else of the run's, which an exported run may have left behind.

    Raises ValueError as `check_same_labels` does.
    """
    try:
        manifest = load_manifest(shards or run.config.data.shards)
    except ValueError as error:
        if shards is not None:
            raise
        raise ValueError(
            f"name the shards with --shards: those of the run's config.yaml cannot be read: {error}"
        ) from None
    check_same_labels(run, manifest)
    return manifest


def _evaluator(run: Run, world: World) -> Evaluator:
    data = run.config.data
    whole_batch = dataclasses.replace(data, global_batch=data.global_batch * world.size)
    autocast = autocast_for(choose_precision(run.config, world.device, trained_elsewhere=True), world.device)
    return Evaluator(run.model, run.config, world, autocast, derive_batches(whole_batch, world.size).micro)


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
