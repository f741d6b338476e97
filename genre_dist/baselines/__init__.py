"""Classic models on the overviews: what a neural network has to beat."""

from pathlib import Path
from typing import Annotated, NamedTuple

from annotated_types import Ge, Le
from typing_extensions import TypedDict

from genre_dist.sealed import read_sealed
from genre_dist.validation import Count

FILE = "baseline.json"
"""The description in a baseline's folder, written last."""


class Description(TypedDict, total=False):
    """The keys read from baseline.json; other keys are ignored."""

    kind: str
    data_fingerprint: str
    text: str
    title: str
    train_films: Count
    fit_seconds: Annotated[float, Ge(0), Le(1e12)]
    peak_memory_gb: Annotated[float, Ge(0), Le(1e9)]


def read_description(path: Path) -> Description:
    """A baseline's description. Raises ValueError for any other file."""
    return read_sealed(Description, path, "remove the folder and fit the baseline again")


class Kind(NamedTuple):
    """A kind of baseline: its features and its model."""

    title: str
    features: str
    """counts, tfidf, vectors or ngrams."""
    model: str
    """svm or naive_bayes."""


BASELINES = {
    "svm_bow": Kind("SVM, bag of words", "counts", "svm"),
    "nb_bow": Kind("naive Bayes, bag of words", "counts", "naive_bayes"),
    "svm_tfidf": Kind("SVM, tf-idf", "tfidf", "svm"),
    "nb_tfidf": Kind("naive Bayes, tf-idf", "tfidf", "naive_bayes"),
    "svm_vectors": Kind("SVM, mean word vector", "vectors", "svm"),
    "svm_ngrams": Kind("SVM, word and character n-grams", "ngrams", "svm"),
}
"""The 2018 study's five baselines, and n-grams, the strongest linear text model known to the authors."""
