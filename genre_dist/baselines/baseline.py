"""Fitting and evaluating baselines: each has a folder with the same evaluation files as a neural run.

RAM holds a split's texts and features, and liblinear's copy of the features for each genre fitted concurrently.
"""

import resource
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from genre_dist.baselines import BASELINES, FILE, Kind, features, read_description
from genre_dist.baselines import linear as models
from genre_dist.baselines.linear import Linear, Matrix
from genre_dist.baselines.texts import LabelledText, Texts
from genre_dist.config.run import CONFIG
from genre_dist.metrics.choosing import log_losses
from genre_dist.metrics.evaluation_files import Predictions
from genre_dist.printable import printable
from genre_dist.schema import TMDB
from genre_dist.sealed import write_sealed
from genre_dist.stream.manifest import load_manifest
from genre_dist.stream.words import load_vectors
from genre_dist.training.evaluation import Evaluation, evaluation_of, print_evaluation, save_evaluation
from genre_dist.workers import usable_cores


def baselines(
    shards: Path, folders: Mapping[str, Path], catalogue: Path | None, memory: float, workers: int | None
) -> None:
    """Fit and evaluate baselines, each kind into its folder; finished ones are skipped.

    `memory` in GiB bounds the number of genres fitted concurrently. Without word vectors in the shards, the kind that
    needs them is left out; raises ValueError if it is the only kind, and for shards without a text.
    """
    manifest = load_manifest(shards)
    for split in ("train", "test"):
        if manifest.samples(split, (manifest.declared.first("text"),)) == 0:
            declared = manifest.declared
            raise ValueError(
                f"{shards}: no {declared.sample} of the {split} split has a text; pack more {declared.samples}"
            )
    texts = Texts(manifest, catalogue)
    for name, run in folders.items():
        if BASELINES[name].features == "vectors" and manifest.text["vectors"] is None:
            message = f"{name} needs word vectors and {shards} was packed without; pack with --vectors FILE"
            if len(folders) == 1:
                raise ValueError(message)
            print(printable(f"{run}: left out: {message}"), file=sys.stderr)
            continue
        identity = {"kind": name, "data_fingerprint": manifest.fingerprint, "text": _describe_text(texts)}
        if _done(run, identity):
            print(f"{printable(run)} is finished")
            continue
        run.mkdir(parents=True, exist_ok=True)
        _run(run, texts, BASELINES[name], identity, memory, workers or usable_cores())


def _describe_text(texts: Texts) -> str:
    source = texts.manifest.text["source"]
    return f"{source}, as written" if texts.catalogue else f"{source}, words of the vocabulary in lower case"


def _done(run: Path, identity: dict[str, Any]) -> bool:
    """Whether a folder holds this baseline. Raises ValueError if it holds something else."""
    if not (run / FILE).is_file():
        if (run / CONFIG).exists():
            raise ValueError(f"{run} holds a training run; choose another --out")
        return False
    description = read_description(run / FILE)
    for key, value in identity.items():
        if description.get(key) != value:
            raise ValueError(
                f"{run} holds a baseline with {key}={description.get(key)}, now it is {value}; choose another --out"
            )
    return True


def _run(run: Path, texts: Texts, kind: Kind, identity: dict[str, Any], memory: float, workers: int) -> None:
    """Fit one baseline and evaluate it on val and test; its description is written last and marks it done."""
    began = time.monotonic()
    genres = len(texts.manifest.genres)
    films = texts.read("train")
    for fault in (faults := [film.fault for film in films if film.fault]):
        print(f"warning: left out of training: {printable(fault)}", file=sys.stderr)
    films = [film for film in films if film.fault is None]
    features_of, matrix = _features(kind, texts, films)
    is_svm = kind.model == "svm"
    parallel = _workers(matrix, memory, workers, texts.manifest.declared.label) if is_svm else workers
    linear, unconverged = models.fit(kind.model, matrix, _labels(films, genres), parallel)
    solver = {"solver": "liblinear", "genres_not_converged": unconverged} if is_svm else {"solver": "counts"}
    fitted = time.monotonic()
    print(
        f"{printable(run)}: {kind.title}, {matrix.shape[1]:,} columns, {solver['solver']}, fitted in "
        f"{fitted - began:.1f} s"
    )
    for split in ("val", "test"):  # val first: thresholds are fitted on it
        if texts.manifest.samples(split, texts.members):
            evaluation = _evaluate(linear, features_of, texts, split, genres)
            print_evaluation(save_evaluation(evaluation, run), evaluation.declared)
    description = identity | {
        "title": kind.title,
        "columns": matrix.shape[1],
        **solver,
        "train_films": len(films),
        "train_films_left_out": len(faults),
        "fit_seconds": fitted - began,
        "seconds": time.monotonic() - began,
        "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    write_sealed(run / FILE, description)


def _workers(matrix: Matrix, memory: float, workers: int, label: str) -> int:
    """The number of labels to fit concurrently; one, with a warning, if `memory` is too small even for one."""
    entries = matrix.nnz if sp.issparse(matrix) else matrix.size
    if within := models.workers_within(memory * 2**30, entries, workers):
        return within
    needed = entries * (models.HELD_BYTES_PER_ENTRY + models.FITTED_BYTES_PER_ENTRY) / 2**30
    print(
        f"warning: fitting one {label} at a time takes {needed:.1f} GiB, more than --memory {memory:g}", file=sys.stderr
    )
    return 1


def _features(
    kind: Kind, texts: Texts, train: list[LabelledText]
) -> tuple[Callable[[list[LabelledText]], Matrix], Matrix]:
    """A kind's function from films to features [films, columns], fitted on the train split, and its features there."""
    manifest = texts.manifest
    if kind.features == "vectors":
        vectors = load_vectors(manifest.folder, manifest.text)
        assert vectors is not None
        mean_vectors = partial(features.mean_vectors, vectors=vectors, ignored=features.stop_words(texts.words))
        return mean_vectors, mean_vectors(train)
    if kind.features == "ngrams":
        count: Callable[[list[LabelledText]], sp.csr_matrix] = features.ngram_counts
        width = features.HASHED_COLUMNS
        options: dict[str, Any] = {"min_films": 2, "sublinear": True, "blocks": (width, 2 * width)}
    else:
        count = partial(features.word_counts, words=texts.size)
        options = {"min_share": 0.005, "max_share": 0.95} if kind.model == "naive_bayes" else {}
    counted = count(train)
    columns = features.choose_columns(counted, idf=kind.features != "counts", **options)
    if not len(columns.kept):
        samples = manifest.declared.samples
        raise ValueError(f"{manifest.folder}: no word is in enough {samples} to learn from; pack more {samples}")
    return (lambda films: columns(count(films))), columns(counted)


def _labels(films: list[LabelledText], genres: int) -> NDArray[np.bool_]:
    labels = np.zeros((len(films), genres), bool)
    for row, film in zip(labels, films, strict=True):
        row[list(film.genres)] = True
    return labels


def _evaluate(
    linear: Linear, features_of: Callable[[list[LabelledText]], Matrix], texts: Texts, split: str, genres: int
) -> Evaluation:
    """A split's predictions in stored order; an unreadable film is counted and predicted from an empty text."""
    began = time.monotonic()
    stored, film_of = texts.ids(split), {film.id: film for film in texts.read(split)}
    films = [film_of[number] for number in stored.tolist()]
    faults = [film.fault for film in films if film.fault]
    for fault in faults:
        print(f"warning: predicted from no words: {printable(fault)}", file=sys.stderr)
    logits, labels = linear.logits(features_of(films)), _labels(films, genres)
    loss = float(log_losses(logits, labels, texts.manifest.declared.labels.choose).mean())
    keys = [film.key or str(film.id) for film in films]
    predictions = Predictions(stored, logits, labels, None if texts.manifest.declared == TMDB else keys)
    return evaluation_of(texts.manifest, split, predictions, loss, len(faults), time.monotonic() - began)
