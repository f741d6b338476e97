"""The questions that a comparison answers: which pairs of models answer them, in which order, in which words."""

import html
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from study_runs import FROZEN, TEXT, WARM, drawn_labels, drawn_logits, write_config, write_evaluation, write_record

from genre_dist.compare.comparison import compare, compared
from genre_dist.compare.results import read_models
from genre_dist.sealed import write_sealed

pytestmark = pytest.mark.slow

FILMS = 150
QUICK = 400  # resamples
GRU = ("--model.text.arch", "gru")
COLD = ()
BERT = ("--model.text.arch", "hf:tiny/bert", "--model.text.pooling", "mean")
Runs = list[Path]


def write(run: Path, skill: float, options: tuple[str, ...] | None = None, seed: int = 1, first: int = 0) -> Path:
    """A run of this skill on the films from `first`, with a configuration unless it has no options."""
    for split, label_seed in (("val", 1), ("test", 0)):
        labels = drawn_labels(FILMS, label_seed)
        logits = drawn_logits(labels, skill, seed)
        write_evaluation(run, split, np.arange(first, FILMS) + 1000, logits[first:], labels[first:])
    if options is not None:
        write_config(run, Path("shards"), *options)
    return run


def derive(run: Path, skill: float, kind: str, of: Path, hidden: tuple[str, ...] = (), first: int = 0) -> Path:
    """Predictions that were made from a run's."""
    write(run, skill, first=first)
    about = {"kind": kind, "title": f"{run.name} of {of.name}", "of": [str(of)], "hidden": list(hidden)}
    write_sealed(run / "derived.json", about | {"weights": None, "data_fingerprint": None, "made_from": []})
    return run


def answered(runs: Runs) -> dict[str, Any]:
    """The comparison's questions by key."""
    return {one["key"]: one for one in compared(read_models(runs, "test"), resamples=QUICK)["questions"]}


def pairs(question: dict[str, Any]) -> list[tuple[str, str]]:
    return [(row["one"], row["other"]) for row in question["rows"]]


def test_end_to_end_models_are_compared_with_the_frozen_one_of_their_architectures(tmp_path: Path) -> None:
    runs = [
        write(tmp_path / "frozen", 1.5, FROZEN),
        write(tmp_path / "cold", 2.0, COLD),
        write(tmp_path / "warm", 1.6, WARM),
        write(tmp_path / "gru_frozen", 2.0, (*FROZEN, *GRU)),
        write(tmp_path / "gru_warm", 3.0, (*WARM, *GRU)),
        write(tmp_path / "alone", 2.0, (*WARM, *GRU, "--model.poster.arch", "resnet18")),
    ]
    comparison = compared(read_models(runs, "test"), resamples=QUICK)
    (question,) = comparison["questions"]
    assert question["key"] == "end_to_end"
    assert pairs(question) == [("gru_warm", "gru_frozen"), ("warm", "frozen"), ("cold", "frozen")]
    assert [row["name"] for row in question["rows"]] == ["gru with resnet152", *2 * ["lstm with resnet152"]]
    head = comparison["headline"]
    assert (head["one"], head["other"], head["name"]) == ("gru_warm", "gru_frozen", "gru with resnet152")
    assert "for gru with resnet152" in head["answer"]
    assert "one seed each, 150 films" in head["answer"]


def test_a_frozen_text_encoder_is_compared_with_a_trained_one(tmp_path: Path) -> None:
    runs = [
        write(tmp_path / "still", 1.5, (*BERT, *TEXT, "--model.text.frozen", "true")),
        write(tmp_path / "tuned", 3.0, (*BERT, *TEXT)),
        write(tmp_path / "thawed", 3.0, (*BERT, *TEXT, "--model.text.frozen", "true", "--model.text.unfreeze_at", "9")),
    ]
    question = answered(runs)["end_to_end"]
    assert pairs(question) == [("tuned", "still")]
    assert question["rows"][0]["name"] == "bert"
    assert question["rows"][0]["verdict"] == "yes"


def test_a_field_is_worth_what_its_model_loses_when_it_is_hidden(tmp_path: Path) -> None:
    full = [write(tmp_path / f"joint-seed{seed}", 3.0, WARM, seed) for seed in range(2)]
    without = [
        derive(tmp_path / f"no_poster-seed{seed}", 1.0, "hidden", full[seed], ("poster",), first=30)
        for seed in range(2)
    ]
    unread = derive(tmp_path / "no_overview", 0.5, "hidden", full[1], ("overview",))
    questions = answered([*without, *full, unread])
    assert [question["question"] for question in questions.values()] == [
        "Is a poster worth it?",
        "Is an overview worth it?",
    ]
    poster = questions["field_poster"]
    assert pairs(poster) == [("joint", "no_poster")]
    assert (poster["rows"][0]["films"], poster["rows"][0]["seeds"]) == (120, [2, 2])
    assert poster["answer"].startswith("Yes: +")
    assert "2 seeds each, 120 films" in poster["answer"]
    assert pairs(questions["field_overview"]) == [("joint", "no_overview")]


def test_hidden_fields_of_a_run_that_is_not_compared_are_named(tmp_path: Path) -> None:
    hidden = derive(tmp_path / "no_poster", 1.0, "hidden", tmp_path / "elsewhere", ("poster",))
    comparison = compared(read_models([write(tmp_path / "other", 1.0, WARM), hidden], "test"), resamples=QUICK)
    assert comparison["questions"] == []
    assert any(note.startswith("no_poster: compared with no run") for note in comparison["notes"])


def test_the_joint_model_is_compared_with_the_best_late_fusion(tmp_path: Path) -> None:
    joint = write(tmp_path / "joint", 2.0, WARM)
    fusions = [derive(tmp_path / name, skill, "late fusion", joint) for name, skill in (("weak", 1.0), ("good", 1.5))]
    runs = [*fusions, joint, write(tmp_path / "text", 2.5, TEXT)]
    assert pairs(answered(runs)["joint"]) == [("joint", "good")]


def test_pretrained_text_encoders_are_compared_alone_and_with_images(tmp_path: Path) -> None:
    runs = [
        write(tmp_path / "lstm", 1.0, TEXT),
        write(tmp_path / "gru", 1.5, (*TEXT, *GRU)),
        write(tmp_path / "bert", 2.5, (*TEXT, *BERT)),
        write(tmp_path / "joint_lstm", 1.5, COLD),
        write(tmp_path / "joint_bert", 3.0, BERT),
    ]
    question = answered(runs)["pretrained"]
    assert pairs(question) == [("joint_bert", "joint_lstm"), ("bert", "gru")]
    assert [row["name"] for row in question["rows"]] == ["text with poster", "text alone"]


def test_holms_correction_counts_the_pairs_of_all_questions(tmp_path: Path) -> None:
    runs = [
        write(tmp_path / "frozen", 1.0, FROZEN),
        write(tmp_path / "warm", 3.0, WARM),
        write(tmp_path / "bert", 3.0, (*BERT, *WARM)),
    ]
    rows = [row for question in answered(runs).values() for row in question["rows"]]
    assert len(rows) == 2
    least = 2 / (QUICK + 1)
    assert min(row["p"] for row in rows) == pytest.approx(least)
    assert min(row["p_holm"] for row in rows) == pytest.approx(2 * least)


def test_what_only_the_interval_shows_is_not_shown_when_many_pairs_were_asked_about(tmp_path: Path) -> None:
    runs = [
        write(tmp_path / "frozen", 1.0, FROZEN),
        *(write(tmp_path / f"warm{number}", 3.0, WARM, number) for number in range(4)),
    ]
    comparison = compared(read_models(runs, "test"), resamples=60)  # the least p is 2/61, of four pairs 0.13
    assert comparison["headline"]["low"] > 0
    assert comparison["headline"]["verdict"] == "open"
    assert "after Holm's correction p is above 0.05" in comparison["headline"]["answer"]


def test_every_answer_is_on_the_page_in_markdown_and_in_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    joint = write(tmp_path / "joint", 3.0, WARM)
    runs = [
        joint,
        write(tmp_path / "frozen", 1.0, FROZEN),
        derive(tmp_path / "hidden", 1.0, "hidden", joint, ("poster",)),
        write(tmp_path / "bert", 3.5, BERT),
    ]
    comparison = compare(runs, tmp_path / "report", resamples=QUICK)
    printed = " ".join(capsys.readouterr().out.split())
    page, text = ((tmp_path / "report" / name).read_text() for name in ("index.html", "comparison.md"))
    asked = [question["question"] for question in comparison["questions"]]
    assert asked == [
        "Is training end to end worth it?",
        "Is a poster worth it?",
        "Is a pretrained text encoder worth it?",
    ]
    for question in comparison["questions"]:
        assert question["question"] in page
        assert question["answer"] in html.unescape(page)
        assert question["answer"].split(" (95")[0] in text
        assert question["answer"].split(" (95")[0] in printed


# --- what each costs


def trained(run: Path, skill: float, steps: int, options: tuple[str, ...] = TEXT) -> Path:
    """A run of this many half seconds, with its weights."""
    write(run, skill, options)
    write_record(run, steps)
    (run / "model.safetensors").touch()
    return run


def started_from(text: Path, poster: Path) -> tuple[str, ...]:
    weights = [str(run / "model.safetensors") for run in (text, poster)]
    return ("--model.text.weights", weights[0], "--model.poster.weights", weights[1])


def test_hours_include_those_of_the_runs_before_each_once(tmp_path: Path) -> None:
    text = trained(tmp_path / "text", 1.0, 100)
    poster = trained(tmp_path / "poster", 1.0, 200, ("--model.text.arch", "none", *started_from(text, text)[:2]))
    joint = trained(tmp_path / "joint", 3.0, 50, started_from(text, poster))
    fused = derive(tmp_path / "fused", 2.0, "late fusion", joint)
    hidden = derive(tmp_path / "hidden", 2.0, "hidden", joint, ("poster",))
    comparison = compared(read_models([text, joint, fused, hidden], "test"), resamples=20)
    costs = {row["name"]: row["cost"] and row["cost"]["hours_with_encoders"] for row in comparison["models"]}
    seconds = {name: hours and round(3600 * hours) for name, hours in costs.items()}
    assert seconds == {"text": 50, "joint": 175, "fused": 175, "hidden": None}
    question = comparison["questions"][-1]
    assert question["question"] == "What does each cost?"
    assert [(row["model"], row["at_least"]) for row in question["rows"]] == [
        ("text", False),
        ("joint", False),
        ("fused", False),
    ]
    assert question["answer"].startswith("joint, the strongest on val, took 2.9 min of training")
    assert "text, the cheapest, took 50.0 s and has" in question["answer"]


def test_hours_of_encoders_that_left_no_record_are_not_invented(tmp_path: Path) -> None:
    joint = trained(tmp_path / "joint", 3.0, 50, started_from(tmp_path / "gone", tmp_path / "gone"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "model.safetensors").touch()  # of no run: its hours are not asked for
    other = trained(tmp_path / "other", 1.0, 50, started_from(elsewhere, elsewhere))
    question = compared(read_models([joint, other], "test"), resamples=20)["questions"][-1]
    assert [(row["model"], row["at_least"]) for row in question["rows"]] == [("joint", True), ("other", False)]
    assert "took at least 25.0 s" in question["answer"]
