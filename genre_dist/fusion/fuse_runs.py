"""Fusing evaluated runs: their predictions on val and test as those of one model, in a folder of its own."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genre_dist.baselines import FILE as BASELINE
from genre_dist.config.run import METADATA
from genre_dist.fusion.late_fusion import Joined, Weights, fit_weights, fuse, prior_of
from genre_dist.metrics.choosing import log_losses
from genre_dist.metrics.derived import FILE as DERIVED
from genre_dist.metrics.derived import PREDICTIONS, Derived, begin, checksums, name_without_seed, write_derived
from genre_dist.metrics.evaluation_files import Metrics, Predictions, declared_of, read_evaluation
from genre_dist.metrics.measures import metrics
from genre_dist.printable import printable
from genre_dist.schema import Schema, plural
from genre_dist.sealed import read_sealed
from genre_dist.training.evaluation import Evaluation, print_evaluation, save_evaluation

SPLITS = ("val", "test")
Evaluated = Sequence[tuple[Predictions, Metrics]]
"""The evaluation of each run on one split."""


def fuse_runs(runs: Sequence[Path], out: Path, alike: bool) -> None:
    """Fuse evaluated runs into `out`: an evaluation of val and test of all samples that any run has, and derived.json.

    The weights are fitted on val, or with `alike` equal: an ensemble. Raises ValueError for runs that do not fit
    together, or that were not evaluated on both splits.
    """
    if len(runs) < 2 and not alike:  # an ensemble of one run is that run
        raise ValueError(f"a fusion needs two runs or more, not only {' and '.join(map(str, runs))}")
    if out.resolve() in [run.resolve() for run in runs]:
        raise ValueError(f"{out} is one of the runs: choose a new --out")
    if not alike and (again := [run for run, count in Counter(run.resolve() for run in runs).items() if count > 1]):
        raise ValueError(f"{again[0]} is named twice: its weights would have any number of fits; name each run once")
    read = {split: [read_evaluation(run, split) for run in runs] for split in SPLITS}
    _check_labels(runs, [evaluation for split in SPLITS for evaluation in read[split]])
    declared = declared_of(read["val"][0][1])
    ids, joined = {}, {}
    for split in SPLITS:
        ids[split], joined[split] = _join(runs, [predictions for predictions, _ in read[split]], declared)
    begin(out)
    choose = declared.labels.choose
    prior = prior_of(joined["val"].labels, choose)
    weights: Weights = {}
    if not alike:
        weights = fit_weights(joined["val"], prior, choose)
        _print_weights(runs, joined, weights, declared)
    for split in SPLITS:
        logits = fuse(joined[split], prior, weights)
        evaluation = _evaluation(split, ids[split], logits, joined[split].labels, read[split], declared)
        print_evaluation(save_evaluation(evaluation, out), declared)
    write_derived(out, _description(runs, None if alike else weights))


def _check_labels(runs: Sequence[Path], evaluations: Evaluated) -> None:
    """Raise ValueError if the runs' labels differ; `evaluations` are those of the runs on one split after another."""
    first = evaluations[0][1]
    for run, (_, other) in zip(cycle(runs), evaluations):
        same_rule = declared_of(other).labels.choose == declared_of(first).labels.choose
        if list(other["per_genre"]) != list(first["per_genre"]) or not same_rule:
            labels = plural(declared_of(first).label)
            raise ValueError(f"{run} and {runs[0]} have other {labels}: they cannot be fused")


def _join(
    runs: Sequence[Path], predictions: Sequence[Predictions], declared: Schema
) -> tuple[NDArray[np.int64], Joined]:
    """The ids of all samples, rising, and the samples. Raises ValueError if two runs give one other labels."""
    ids = reduce(np.union1d, (one.ids for one in predictions))
    labels = np.zeros((len(ids), predictions[0].labels.shape[1]), bool)
    has, logits = np.zeros((len(runs), len(ids)), bool), np.zeros((len(runs), *labels.shape), np.float32)
    for number, one in enumerate(predictions):
        rows = np.searchsorted(ids, one.ids)
        known = has[:, rows].any(axis=0)
        if len(differ := np.flatnonzero(known & (labels[rows] != one.labels).any(axis=1))):
            raise ValueError(
                f"{declared.sample} {one.ids[differ[0]]} and {len(differ) - 1} others have other "
                f"{plural(declared.label)} in {runs[number]} than in a run before it: they were packed from "
                "different catalogues and cannot be fused"
            )
        has[number, rows], labels[rows], logits[number, rows] = True, one.labels, one.logits
    return ids, Joined(labels, has, logits)


def _print_weights(runs: Sequence[Path], joined: Mapping[str, Joined], weights: Weights, declared: Schema) -> None:
    """A line for each set of runs that have a sample."""
    for members, rows in joined["val"].sets():
        pairs = zip(weights[members], members, strict=True)
        shares = ", ".join(f"{weight:.2f} {runs[member]}" for weight, member in pairs)
        print(f"weights, fitted on {len(rows):,} {declared.samples} of val: {printable(shares)}")
    for members, rows in joined["test"].sets():
        if members not in weights:
            print(
                f"no {declared.sample} of val is in {printable(_set_name(runs, members))} alone: equal weights for the "
                f"{len(rows):,} of test"
            )


def _evaluation(
    split: str,
    ids: NDArray[np.int64],
    logits: NDArray[np.float32],
    labels: NDArray[np.bool_],
    read: Evaluated,
    declared: Schema,
) -> Evaluation:
    """Fused logits with their metrics. `left_out` counts the samples of the split that no run has."""
    choose = declared.labels.choose
    of_split = max(one["films"] + one.get("left_out", 0) for _, one in read)
    figures = {
        "split": split,
        "loss": float(log_losses(logits, labels, choose).mean()),
        **metrics(logits, labels, list(read[0][1]["per_genre"]), choose),
        "left_out": max(0, of_split - len(ids)),
    }
    keys = {number: key for one, _ in read for number, key in zip(one.ids.tolist(), one.keys or (), strict=False)}
    return Evaluation(
        split, ids, logits, labels, figures, declared, [keys[number] for number in ids.tolist()] if keys else None
    )


def _description(runs: Sequence[Path], weights: Weights | None) -> Derived:
    names = list(dict.fromkeys(map(name_without_seed, runs)))
    of = (
        f"{len(runs)} {'run' if len(runs) == 1 else 'runs'} of {names[0]}"
        if len(names) == 1
        else f"{', '.join(names[:-1])} and {names[-1]}"
    )
    fitted = None
    if weights is not None:
        named = {members: zip(members, own.tolist(), strict=True) for members, own in weights.items()}
        fitted = {_set_name(runs, members): {str(runs[m]): w for m, w in pairs} for members, pairs in named.items()}
    return Derived(
        kind="ensemble" if weights is None else "late fusion",
        title=f"{'Ensemble' if weights is None else 'Late fusion'} of {of}",
        of=[str(run) for run in runs],
        hidden=[],
        weights=fitted,
        data_fingerprint="+".join(sorted(set(filter(None, map(_fingerprint, runs))))) or None,
        made_from=[checksums(run, PREDICTIONS) for run in runs],
    )


def _set_name(runs: Sequence[Path], members: Sequence[int]) -> str:
    return " and ".join(str(runs[member]) for member in members)


def _fingerprint(run: Path) -> str | None:
    """The fingerprint of the data of a run, a baseline or a derived evaluation; None without its description."""
    described = next((run / name for name in (METADATA, BASELINE, DERIVED) if (run / name).is_file()), None)
    content = read_sealed(dict[str, Any], described, "evaluate the run again") if described else {}
    return content.get("data_fingerprint")
