"""Classic models on the overviews: what a neural network has to beat."""

from typing import NamedTuple

FILE = "baseline.json"
"""The description in a baseline's folder; written last."""


class Kind(NamedTuple):
    """A baseline: what it sees and what learns from it."""

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
"""The study's five, and the strongest linear model on text that we know of."""
