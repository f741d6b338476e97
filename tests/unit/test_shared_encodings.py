"""Which runs share the encodings of frozen encoders: whatever differs in what is trained, and not in the encoders."""

from pathlib import Path

import pytest
import torch
from helpers import options
from lacking_films import write_lacking
from tiny_text import write_bert

from genre_dist.config.files import parse_config
from genre_dist.packing.pack import pack
from genre_dist.parallel.world import World
from genre_dist.training.encode_once import cache_key
from genre_dist.training.experiment import Experiment, set_up

pytest.importorskip("transformers")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def shards(bert: Path, sample_catalogue: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Films of which many lack a poster or an overview, in the tokens of the transformer."""
    folder = tmp_path_factory.mktemp("tokens")
    catalogue = write_lacking(sample_catalogue, folder / "catalogue")
    pack(catalogue, folder / "shards", size=32, shard_size=50, workers=1, require=(), tokenizer=str(bert))
    return folder / "shards"


def experiment(shards: Path, bert: Path, seed: int, *more: object) -> Experiment:
    """A frozen transformer with its own weights, and a learned vector for samples without a text."""
    text = ("--model.text.arch", f"hf:{bert}", "--model.text.frozen", "true", "--model.text.pooling", "mean")
    others = ("--model.poster.arch", "none", "--model.missing", "learn", "--run.seed", seed)
    config = parse_config(options(shards, shards.parent / "run", *text, *others, *more)).config
    return set_up(config, World(rank=0, size=1, device=torch.device("cpu")))


def test_another_seed_with_the_same_pretrained_encoder_shares_them(shards: Path, bert: Path) -> None:
    one, other = (experiment(shards, bert, seed, "--model.heads.hidden", f"[{4 + seed}]") for seed in range(2))
    assert cache_key(one) == cache_key(other)


def test_a_run_that_goes_on_shares_them_though_its_heads_and_vectors_have_learned(shards: Path, bert: Path) -> None:
    made = experiment(shards, bert, 0)
    before = cache_key(made)
    trained = [name for name, parameter in made.model.named_parameters() if parameter.requires_grad]
    assert {name.split(".")[0] for name in trained} == {"heads", "missing"}
    with torch.no_grad():
        for name in trained:
            made.model.get_parameter(name).add_(1)
    assert cache_key(made) == before


def test_another_weight_of_the_encoder_needs_others(shards: Path, bert: Path) -> None:
    made = experiment(shards, bert, 0)
    before = cache_key(made)
    with torch.no_grad():
        next(made.model.text_encoders["text"].parameters()).view(-1)[0].add_(1)
    assert cache_key(made) != before
