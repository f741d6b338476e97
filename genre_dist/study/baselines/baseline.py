"""Baselines from shards to evaluated runs: a folder each, with the files of a neural run's evaluation.

In RAM are one chunk of films, the weights, and for the support vector machines the train split's features if they fit
into the memory allowed; beyond that they learn from chunks, made anew in every pass.
"""

import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from genre_dist.printable import printable
from genre_dist.sealed import write_sealed
from genre_dist.stream.manifest import load_manifest
from genre_dist.stream.words import load_vectors
from genre_dist.study.baselines import BASELINES, FILE, Kind, features, models, read_description
from genre_dist.study.baselines.models import Labelled, Linear, Matrix
from genre_dist.study.baselines.texts import Chunk, Texts
from genre_dist.study.metrics import metrics
from genre_dist.training.evaluation import Evaluation, print_evaluation, save_evaluation
from genre_dist.workers import usable_cores

CHUNK = 2048
"""Films whose features are made at a time."""


class Plan(NamedTuple):
    """How a kind sees these shards."""

    transform: Callable[[Chunk], Matrix]
    """Films -> features [films, columns]."""
    columns: int
    entries: int
    """Entries of the train split's features that are not zero."""


def baselines(
    shards: Path, folders: Mapping[str, Path], catalogue: Path | None, memory: float, workers: int | None
) -> None:
    """Fit and evaluate baselines, each kind into its folder; what is done is skipped.

    Memory in GiB bounds the features held. Without word vectors in the shards, the kind that needs them is left out of
    several. Raises ValueError if it is the only one, and for shards without a text.
    """
    manifest = load_manifest(shards)
    for split in ("train", "test"):
        if manifest.samples(split, ("overview",)) == 0:
            raise ValueError(f"{shards}: no film of the {split} split has a text; pack more films")
    texts = Texts(manifest, catalogue)
    for name, run in folders.items():
        if BASELINES[name].features == "vectors" and manifest.text["vectors"] is None:
            message = f"{name} needs word vectors and {shards} was packed without; pack with --vectors FILE"
            if len(folders) == 1:
                raise ValueError(message)
            print(printable(f"{run}: left out: {message}"), file=sys.stderr)
            continue
        identity = {"kind": name, "data_fingerprint": manifest.fingerprint, "text": _text_told(texts)}
        if _done(run, identity):
            print(f"{printable(run)} is finished")
            continue
        run.mkdir(parents=True, exist_ok=True)
        _run(run, texts, BASELINES[name], identity, memory, workers or usable_cores())


def _text_told(texts: Texts) -> str:
    source = texts.manifest.text["source"]
    return f"{source}, as written" if texts.catalogue else f"{source}, words of the vocabulary in lower case"


def _done(run: Path, identity: dict[str, Any]) -> bool:
    """Whether a folder holds this baseline. Raises ValueError if it holds something else."""
    if not (run / FILE).is_file():
        if (run / "config.yaml").exists():
            raise ValueError(f"{run} holds a training run; choose another --out")
        return False
    told = read_description(run / FILE)
    for key, value in identity.items():
        if told.get(key) != value:
            raise ValueError(
                f"{run} holds a baseline with {key}={told.get(key)}, now it is {value}; choose another --out"
            )
    return True


def _run(run: Path, texts: Texts, kind: Kind, identity: dict[str, Any], memory: float, workers: int) -> None:
    """Fit one baseline and evaluate it on val and test; its description is written last and marks it done."""
    began = time.monotonic()
    genres = [genre.name for genre in texts.manifest.genres]
    plan = _plan(kind, texts)
    linear, told = _fit(kind, plan, texts, memory, workers)
    fitted = time.monotonic()
    print(
        f"{printable(run)}: {kind.title}, {plan.columns:,} columns, {told['solver']}, fitted in {fitted - began:.1f} s"
    )
    for split in ("val", "test"):  # val first: thresholds are fitted on it
        if texts.manifest.samples(split, ("overview",)):
            evaluation = _evaluate(linear, plan, texts, split, genres)
            print_evaluation(save_evaluation(evaluation, run))
    description = identity | {
        "title": kind.title,
        "columns": plan.columns,
        **told,
        "fit_seconds": fitted - began,
        "seconds": time.monotonic() - began,
        "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    write_sealed(run / FILE, description)


def _plan(kind: Kind, texts: Texts) -> Plan:
    """The pass over the train split that decides on columns and their weights."""
    manifest = texts.manifest
    if kind.features == "vectors":
        vectors = load_vectors(manifest.folder, manifest.text)
        assert vectors is not None
        ignored = features.stop_words(texts.words)
        dim = vectors.shape[1]
        films = manifest.samples("train", ("overview",))
        return Plan(lambda chunk: features.mean_vectors(chunk, vectors, ignored), dim, films * dim)
    words = len(texts.words)
    if kind.features == "ngrams":
        counts, width = features.ngram_counts, 2 * features.HASHED_COLUMNS
        options: dict[str, Any] = {"min_films": 2, "sublinear": True, "blocks": (width // 2, width)}
    else:
        counts, width = (lambda chunk: features.word_counts(chunk, words)), words
        options = {"min_share": 0.005, "max_share": 0.95} if kind.model == "naive_bayes" else {}
    seen = features.count_columns(texts.chunks("train", CHUNK), counts, width)
    columns = features.choose_columns(seen, idf=kind.features != "counts", **options)
    if not len(columns.kept):
        raise ValueError(f"{manifest.folder}: no word is in enough films to learn from; pack more films")
    return Plan(lambda chunk: columns(counts(chunk)), len(columns.kept), seen.entries)


def _fit(kind: Kind, plan: Plan, texts: Texts, memory: float, workers: int) -> tuple[Linear, dict[str, Any]]:
    """The model of a kind, and how it was fitted."""
    told: dict[str, Any]
    genres, films = len(texts.manifest.genres), texts.manifest.samples("train", ("overview",))
    faults: set[str] = set()

    def labelled() -> Iterator[Labelled]:
        for chunk in texts.chunks("train", CHUNK):
            read = [film for film in chunk if film.fault is None]
            faults.update(film.fault for film in chunk if film.fault)
            if read:
                yield plan.transform(read), _labels(read, genres)

    needed = plan.entries * (models.HELD_BYTES_PER_ENTRY + models.FITTED_BYTES_PER_ENTRY * workers)
    if kind.model == "naive_bayes":
        linear, told = models.fit_naive_bayes(labelled(), plan.columns, genres), {"solver": "counts over chunks"}
    elif needed > memory * 2**30:
        linear, passes = models.fit_svm_in_chunks(labelled, films, genres, workers)
        told = {"solver": f"averaged SGD over chunks, {passes} passes"}
    else:
        parts, labels = zip(*labelled(), strict=True)
        whole = sp.vstack(parts, format="csr") if sp.issparse(parts[0]) else np.concatenate(parts)
        linear, unconverged = models.fit_svm(whole, np.concatenate(labels), workers)
        told = {"solver": "liblinear", "genres_not_converged": unconverged}
    for fault in sorted(faults):
        print(f"warning: left out of training: {printable(fault)}", file=sys.stderr)
    return linear, told | {"train_films": films - len(faults), "train_films_left_out": len(faults)}


def _labels(chunk: Chunk, genres: int) -> NDArray[np.bool_]:
    labels = np.zeros((len(chunk), genres), bool)
    for row, film in zip(labels, chunk, strict=True):
        row[list(film.genres)] = True
    return labels


def _evaluate(linear: Linear, plan: Plan, texts: Texts, split: str, genres: list[str]) -> Evaluation:
    """A split's predictions in stored order; a film that could not be read is predicted from no words, and counted."""
    began = time.monotonic()
    ids: list[int] = []
    logits, labels, faults = [], [], []
    for chunk in texts.chunks(split, CHUNK):
        ids += [film.id for film in chunk]
        logits.append(linear.logits(plan.transform(chunk)))
        labels.append(_labels(chunk, len(genres)))
        faults += [film.fault for film in chunk if film.fault]
    for fault in faults:
        print(f"warning: predicted from no words: {printable(fault)}", file=sys.stderr)
    stored = texts.ids(split)
    found = np.array(ids)
    order = np.argsort(found)[np.argsort(np.argsort(stored))]
    assert np.array_equal(found[order], stored), "not exactly the films of the split"
    all_logits, all_labels = np.concatenate(logits)[order], np.concatenate(labels)[order]
    told = {
        "split": split,
        "loss": float((np.logaddexp(0, all_logits) - all_logits * all_labels).mean()),
        **metrics(all_logits, all_labels, genres),
        "left_out": texts.manifest.samples(split) - len(stored),
        "bad_samples": len(faults),
        "samples_per_second": len(stored) / (time.monotonic() - began),
    }
    return Evaluation(split, stored, all_logits, all_labels, told)
