"""Early stopping is decided from the val rows alone."""

from typing import Any

import pytest

from genre_dist.config import TrainConfig
from genre_dist.training.early_stopping import why_stop


def val_rows(*values: float, metric: str = "micro_f1") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"kind": "train", "step": step, "loss": 1.0} for step in range(10)]
    return rows + [{"kind": "val", "step": 10 * (n + 1), "loss": 0.5, metric: value} for n, value in enumerate(values)]


def test_without_a_metric_a_run_never_stops() -> None:
    assert why_stop(val_rows(0.5, 0.4, 0.3, 0.2, 0.1), TrainConfig()) is None


@pytest.mark.parametrize(
    ("values", "stops"),
    [
        ([], False),
        ([0.5], False),
        ([0.5, 0.4], False),
        ([0.5, 0.4, 0.45], True),
        ([0.5, 0.5, 0.5], True),  # as good is no better
        ([0.5, 0.4, 0.6], False),
        ([0.5, 0.6, 0.4, 0.6], True),
        ([0.1, 0.2, 0.3, 0.4], False),
    ],
)
def test_it_stops_when_the_best_is_so_many_evaluations_old(values: list[float], stops: bool) -> None:
    train = TrainConfig(stop_metric="micro_f1", stop_patience=2)
    assert (why_stop(val_rows(*values), train) is not None) == stops


def test_of_the_loss_less_is_better() -> None:
    train = TrainConfig(stop_metric="loss", stop_patience=1)
    assert why_stop(val_rows(0.5, 0.4, metric="loss"), train) is None
    assert why_stop(val_rows(0.5, 0.6, metric="loss"), train) is not None


def test_what_is_less_than_the_least_improvement_is_none() -> None:
    rows = val_rows(0.5, 0.505, 0.509)
    assert why_stop(rows, TrainConfig(stop_metric="micro_f1", stop_patience=2)) is None
    assert why_stop(rows, TrainConfig(stop_metric="micro_f1", stop_patience=2, stop_min_delta=0.01)) is not None


def test_the_reason_names_metric_step_and_value() -> None:
    reason = why_stop(val_rows(0.5, 0.4), TrainConfig(stop_metric="micro_f1", stop_patience=1))
    assert reason == (
        "early stopping: val micro_f1 has not improved in 1 evaluations; it was best after step 10, 0.5000"
    )


def test_an_evaluation_without_the_number_does_not_count() -> None:
    rows = val_rows(0.5, 0.4)
    rows[-1]["micro_f1"] = None
    assert why_stop(rows, TrainConfig(stop_metric="micro_f1", stop_patience=1)) is None
