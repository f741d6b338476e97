"""Which measures a comparison shows, and their names: for any number of labels a sample, or exactly one."""

from typing import NamedTuple

from genre_dist.schema import Choose


class ShownMeasures(NamedTuple):
    """The measures of a comparison."""

    names: dict[str, str]
    """Display names; of measures with thresholds, a name without a remark means those fitted on val."""
    decides: tuple[str, ...]
    """The verdict is by the first of these that all models have."""
    main: tuple[str, ...]
    """Those of the differences' table, and of the remarks on the verdict."""
    columns: tuple[str, ...]
    """Those of the models' table."""
    forests: tuple[str, ...]
    """Those with a forest plot of the models, and of all pairs."""
    answer: tuple[str, ...]
    """Those of the forest plot of the verdict's pair."""
    agree: str
    """What is said if all main measures agree."""
    of_label: str
    """The F1 of a label that stands for a model."""


SHOWN: dict[Choose, ShownMeasures] = {
    "many": ShownMeasures(
        names={
            "micro_f1_fitted": "micro F1",
            "macro_f1_fitted": "macro F1",
            "sample_f1_fitted": "sample F1",
            "accuracy_fitted": "accuracy",
            "micro_f1": "micro F1 at 0.5",
            "macro_f1": "macro F1 at 0.5",
            "sample_f1": "sample F1 at 0.5",
            "accuracy": "accuracy at 0.5",
            "mean_average_precision": "mAP",
            "auc": "AUC",
        },
        decides=("micro_f1_fitted", "micro_f1"),
        main=("micro_f1_fitted", "micro_f1", "macro_f1_fitted", "mean_average_precision"),
        columns=(
            *("micro_f1_fitted", "macro_f1_fitted", "sample_f1_fitted", "micro_f1", "macro_f1", "accuracy"),
            *("mean_average_precision", "auc"),
        ),
        forests=(
            *("micro_f1_fitted", "micro_f1", "macro_f1_fitted", "sample_f1_fitted", "mean_average_precision", "auc"),
        ),
        answer=(
            *("micro_f1_fitted", "macro_f1_fitted", "sample_f1_fitted", "micro_f1", "macro_f1", "sample_f1"),
            *("mean_average_precision", "auc"),
        ),
        agree="micro F1 at fitted thresholds and at 0.5, macro F1 and mAP agree.",
        of_label="f1_fitted",
    ),
    "one": ShownMeasures(
        names={"accuracy": "accuracy", "macro_f1": "macro F1", "mean_average_precision": "mAP", "auc": "AUC"},
        decides=("accuracy",),
        main=("accuracy", "macro_f1", "mean_average_precision", "auc"),
        columns=("accuracy", "macro_f1", "mean_average_precision", "auc"),
        forests=("accuracy", "macro_f1", "mean_average_precision", "auc"),
        answer=("accuracy", "macro_f1", "mean_average_precision", "auc"),
        agree="accuracy, macro F1, mAP and AUC agree.",
        of_label="f1",
    ),
}
"""Where a sample has exactly one label, micro F1 and sample F1 are the accuracy."""
