"""A study on two packings, with a field hidden, fusions and an ensemble: to the report, and once more."""

import json
import re
import sys
from pathlib import Path

import pytest
import yaml
from helpers import Processes
from lacking_films import write_lacking
from tiny_text import write_bert

from genre_dist.catalogue.catalogue import read_rows
from genre_dist.metrics.derived import read_derived
from genre_dist.packing.catalogue_rows import COLUMNS
from genre_dist.stream.manifest import load_manifest

pytest.importorskip("transformers")
pytestmark = pytest.mark.timeout(900)

CONFIGS = Path(__file__).parents[2] / "configs"
SEEDS = (0, 1)
RUNS = [f"{name}-seed{seed}" for seed in SEEDS for name in ("text", "both")]
DERIVED = ["no_poster-seed0", "no_poster-seed1", "late-seed0", "late-seed1", "ensemble"]


def write_study(folder: Path, catalogue: Path, bert: Path) -> Path:
    """A frozen transformer on its own tokens, and a model of words and posters, of two seeds each."""
    encoder = {"arch": f"hf:{bert}", "pooling": "mean", "frozen": True, "dropout": 0}
    small = {"arch": "lstm", "hidden": 8, "layers": 1, "embedding_dim": 8}
    study = {
        "data": {
            "catalogue": str(catalogue),
            "shards": str(folder / "words"),
            "pack": {"require": "", "size": 40, "shard_size": 50, "workers": 1},
            "packings": {"tokens": {"shards": str(folder / "tokens"), "pack": {"tokenizer": str(bert)}}},
        },
        "seeds": list(SEEDS),
        "lanes": 2,
        "explore": False,
        "baselines": ["nb_bow"],
        "overrides": {
            "data": {"global_batch": 32, "image_size": 32, "workers": 0, "crop_scale": [1, 1]},
            "model.heads.hidden": [8],
            "train": {"steps": 6, "precision": "fp32"},
            "tracking.wandb": "off",
        },
        "stages": {
            "text": {
                "config": str(CONFIGS / "text_lstm.yaml"),
                "packing": "tokens",
                "overrides": {"model": {"text": encoder, "poster.arch": "none"}},
            },
            "both": {
                "config": str(CONFIGS / "end_to_end.yaml"),
                "overrides": {"model": {"text": small, "poster": {"arch": "helpers:tiny_network", "weights": "none"}}},
            },
        },
        "hidden": {"no_poster": {"of": "both", "hide": "poster"}},
        "fused": {
            "late": {"of": ["text", "both"]},
            "ensemble": {"of": ["both", "no_poster"], "seeds": "together"},
        },
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return path


def start(folder: Path, log: str) -> str:
    """Run the study to its end; what it said."""
    command = [sys.executable, "-m", "genre_dist.cli", "study", "--config", str(folder / "study.yaml")]
    with Processes(folder / log) as study:
        study.start([*command, "--out", str(folder / "out")])
        study.succeed(800)
        return study.output()


def finished(said: str) -> list[str]:
    return re.findall(r"^== \d+/\d+ (\S+): finished", said, re.MULTILINE)


@pytest.fixture(scope="module")
def ran(sample_catalogue: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("derived")
    bert = write_bert(folder / "bert", [row["overview"] or "" for row in read_rows(sample_catalogue, COLUMNS)])
    write_study(folder, write_lacking(sample_catalogue, folder / "catalogue"), bert)
    assert set(finished(start(folder, "log0"))) == {"shards", "shards-tokens", "baselines", *RUNS, *DERIVED, "report"}
    return folder


def test_the_report_shows_runs_and_then_what_is_derived_from_them(ran: Path) -> None:
    models = json.loads((ran / "out" / "report" / "comparison.json").read_text())["models"]
    assert [(model["name"], model["kind"], len(model["runs"])) for model in models] == [
        ("nb_bow", "baseline", 1),
        ("text", "text", 2),
        ("both", "end to end", 2),
        ("no_poster", "hidden", 2),
        ("late", "late fusion", 2),
        ("ensemble", "ensemble", 1),
    ]


def test_each_stage_trains_on_its_packing_and_a_fusion_is_of_both(ran: Path) -> None:
    words, tokens = (load_manifest(ran / name).fingerprint for name in ("words", "tokens"))
    trained = {
        name: json.loads((ran / "out" / name / "model.json").read_text())["data_fingerprint"]
        for name in ("text-seed1", "both-seed1")
    }
    assert trained == {"text-seed1": tokens, "both-seed1": words}
    derived = {name: read_derived(ran / "out" / name) for name in ("no_poster-seed1", "late-seed1", "ensemble")}
    assert all(derived.values())
    assert {name: one and one["data_fingerprint"] for name, one in derived.items()} == {
        "no_poster-seed1": words,
        "late-seed1": "+".join(sorted([words, tokens])),
        "ensemble": words,
    }


def test_seeds_share_the_encodings_of_a_frozen_pretrained_encoder(ran: Path) -> None:
    (_,) = (ran / "out" / "encodings").iterdir()
    logs = [(ran / "out" / "logs" / f"text-seed{seed}.log").read_text() for seed in SEEDS]
    assert sum("(0 computed now)" in log for log in logs) == 1


def test_started_again_only_what_is_no_longer_true_is_made_again(ran: Path) -> None:
    (ran / "out" / "no_poster-seed0" / "derived.json").unlink()
    (ran / "out" / "late-seed1" / "derived.json").write_text("{}")
    said = start(ran, "log1")
    # the ensemble is of predictions that came out as before
    assert set(finished(said)) == {"no_poster-seed0", "late-seed1", "report"}
    assert said.count(": done") == len(["shards", "shards-tokens", "baselines", *RUNS, *DERIVED]) - 2
