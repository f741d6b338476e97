"""The figures of the 2018 study: other films (30,000, of them 3,000 to test on), threshold 0.5, one run each."""

from typing import Any, NamedTuple


class ReferenceRow(NamedTuple):
    """A row of the study's table."""

    model: str
    accuracy: float
    micro_f1: float


NOTE = "2018 study: 3,000 other films, threshold 0.5, one run each, no interval"
TEST = (
    ReferenceRow("SVM, bag of words", 0.9324, 0.4922),
    ReferenceRow("Naive Bayes, bag of words", 0.9065, 0.4242),
    ReferenceRow("SVM, tf-idf", 0.9349, 0.3219),
    ReferenceRow("Naive Bayes, tf-idf", 0.9323, 0.1435),
    ReferenceRow("SVM, mean word2vec", 0.9343, 0.2793),
    ReferenceRow("LSTM (overview)", 0.9342, 0.5148),
    ReferenceRow("ResNet152 (poster)", 0.9302, 0.4305),
    ReferenceRow("Combined, encoders frozen", 0.9438, 0.5186),
)
END_TO_END = "Combined, end to end: never trained, it did not fit into the GPU"
PER_GENRE_COLUMNS = ("f1", "precision", "recall", "accuracy", "auc")
PER_GENRE = {
    # of the combined model with frozen encoders, test split, per cent
    "Action": (50.3, 61.5, 42.6, 94.7, 87.0),
    "Adventure": (36.6, 66.7, 25.3, 97.2, 87.9),
    "Animation": (45.6, 71.2, 33.6, 95.9, 89.0),
    "Comedy": (53.7, 61.7, 47.5, 85.7, 83.5),
    "Crime": (33.9, 76.3, 21.8, 96.2, 83.5),
    "Documentary": (56.1, 64.4, 49.8, 87.9, 85.4),
    "Drama": (60.3, 60.2, 60.4, 74.8, 79.9),
    "Family": (36.8, 65.2, 25.6, 96.6, 80.3),
    "Fantasy": (32.7, 81.8, 20.5, 97.5, 85.1),
    "History": (44.8, 100.0, 28.9, 98.8, 86.6),
    "Horror": (59.6, 80.6, 47.4, 94.8, 91.5),
    "Music": (31.7, 73.3, 20.2, 96.8, 78.0),
    "Mystery": (40.0, 95.5, 25.3, 97.9, 81.9),
    "Romance": (47.1, 69.0, 35.7, 93.3, 82.6),
    "Science Fiction": (40.0, 83.3, 26.3, 96.5, 86.9),
    "TV Movie": (31.8, 70.0, 20.6, 99.0, 75.1),
    "Thriller": (46.1, 64.8, 35.8, 90.8, 86.0),
    "War": (45.5, 100.0, 29.4, 99.2, 88.0),
    "Western": (40.0, 100.0, 25.0, 99.5, 88.3),
}


def study_2018() -> dict[str, Any]:
    """The figures as plain data."""
    return {
        "note": NOTE,
        "test": [row._asdict() for row in TEST],
        "end_to_end": END_TO_END,
        "per_genre_of_combined_frozen": {
            genre: dict(zip(PER_GENRE_COLUMNS, values, strict=True)) for genre, values in PER_GENRE.items()
        },
    }
