"""What a pretrained text encoder costs here beside a bare loop over the transformers library.

    python benchmarks/text_encoder.py            a BERT of MiniLM's size (6 layers, 384 wide), 60 pairs of steps
    python benchmarks/text_encoder.py --quick    2 layers, 20 pairs

Ours is the training loop as users run it, with `model.text.arch hf:...`; the bare loop calls the library's model, pools
its states, computes the loss, goes backward, clips and steps. Both train a model of the same architecture and the same
classifier with the same optimizer on the same batches, padded alike, read once and kept, one step of each by turns, in
one process with one thread. A pair of steps gives a ratio of speeds; told are their median and its 95 % interval.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import Row, options, report
from loop import WARM_UP, Interleaved, Timed, _median, _now
from torch import nn
from transformers import AutoConfig, AutoModel, BertConfig

from genre_dist.catalogue.sample_films import make_sample
from genre_dist.config.files import parse_config
from genre_dist.packing.pack import pack
from genre_dist.parallel.world import start_world
from genre_dist.stream.batch import Batch
from genre_dist.training.experiment import Experiment

GOAL = 0.95
SHAPE = {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536, "vocab_size": 30_522}
BATCH = 16


class Bare:
    """The least that trains the same."""

    def __init__(self, architecture: Path, genres: int, learning_rate: float) -> None:
        self.network = AutoModel.from_config(AutoConfig.from_pretrained(architecture), attn_implementation="sdpa")
        self.network.pooler = None
        self.heads = nn.Linear(SHAPE["hidden_size"], genres)
        self.parameters = [*self.network.parameters(), *self.heads.parameters()]
        self.optimizer = torch.optim.AdamW(self.parameters, learning_rate, fused=True)

    def step(self, micro_batches: list[Batch]) -> None:
        for batch in micro_batches:
            assert batch.tokens is not None
            assert batch.lengths is not None
            tokens, lengths = torch.from_numpy(batch.tokens).long(), torch.from_numpy(batch.lengths)
            mask = torch.arange(tokens.shape[1]) < lengths[:, None]
            states = self.network(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
            pooled = (states * mask[:, :, None]).sum(1) / lengths[:, None]
            loss = F.binary_cross_entropy_with_logits(self.heads(pooled), torch.from_numpy(batch.labels))
            loss.backward()
            loss.item()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class BesideBare(Interleaved):
    """`Interleaved` with the bare loop of this benchmark."""

    def __init__(self, experiment: Experiment, steps: int, bare: Bare) -> None:
        super().__init__(experiment, steps)
        self._bare = bare

    def _take_bare_step(self, micro_batches: list[Batch]) -> None:
        before = _now()
        self._bare.step(micro_batches)
        self._note("bare", before)


def main() -> None:
    arguments = options(__doc__ or "")
    torch.set_num_threads(1)
    pairs, layers = (20, 2) if arguments.quick else (60, 6)
    steps = 1 + WARM_UP + pairs
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_sample(240, 0, folder / "catalogue", (60, 90))
        pack(folder / "catalogue", folder / "shards", size=72, workers=1)
        BertConfig(num_hidden_layers=layers, **SHAPE).save_pretrained(folder)
        settings = {
            "--data.shards": folder / "shards", "--run.dir": folder / "run", "--train.steps": steps,
            "--model.poster.arch": "none", "--model.text.arch": f"hf:{folder}", "--model.text.pooling": "mean",
            "--model.text.weights": "none", "--model.heads.hidden": "[]", "--optim.text_lr": 1e-4,
            "--data.global_batch": BATCH, "--data.workers": 0, "--train.eval_every_steps": 10**6,
            "--tracking.wandb": "off", "--checkpoint.asynchronous": "false",
        }  # fmt: skip
        config = parse_config([str(part) for pair in settings.items() for part in pair]).config
        with Timed(config, start_world()) as trainer:
            if trainer.run.record is not None:
                trainer.run.record.views.clear()
            bare = Bare(folder, len(trainer.experiment.manifest.genres), config.optim.text_lr)
            ours = sum(parameter.numel() for parameter in trainer.experiment.model.parameters())
            assert ours == sum(parameter.numel() for parameter in bare.parameters), "not the same model"
            interleaved: Any = BesideBare(trainer.experiment, steps, bare)
            trainer.experiment = trainer.experiment._replace(stream=interleaved)
            trainer.train()
    report(_rows(interleaved.seconds, layers), arguments.json)


def _rows(seconds: dict[str, list[tuple[float, float]]], layers: int) -> list[Row]:
    steps = len(seconds["ours"])  # the loop's last step is not timed: no other is asked for after it
    ours, bare = (np.array(seconds[name])[WARM_UP:steps] for name in ("ours", "bare"))  # [pairs, (clock, CPU)]
    speed = bare / ours
    claim = f"our speed over a bare loop's, a transformer of {layers} layers, texts alone"
    cpu = _median(f"{claim}, CPU time", speed[:, 1], "share")
    return [
        Row(**vars(cpu) | {"goal": f">= {GOAL}", "holds": cpu.value >= GOAL}),
        _median(f"{claim}, the clock", speed[:, 0], "share"),
        _median("samples a second of the bare loop", BATCH / bare[:, 0], "samples/s"),
    ]


if __name__ == "__main__":
    main()
