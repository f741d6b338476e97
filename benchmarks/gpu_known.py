"""Numbers of a model that need no GPU: its FLOPs and the planner's peaks, computed once and kept in a file."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path

import torch

import genre_dist
from genre_dist.config import Config
from genre_dist.models.classifier import GenreClassifier
from genre_dist.planner.memory import Checkpointing, Precision, Setting, peak_bytes
from genre_dist.planner.planned_model import PlannedModel, plan_model
from genre_dist.planner.sizes import TYPICAL_TOKENS
from genre_dist.planner.throughput import training_flops

FILE = "known.json"


class Known:
    """Looks up what was counted beforehand, for this model and by this code, and counts the rest: some 5 s a number."""

    def __init__(self, folder: Path | None) -> None:
        file = None if folder is None else folder / FILE
        self.numbers: dict[str, float] = json.loads(file.read_text()) if file is not None and file.is_file() else {}
        self._planned: dict[tuple[str, Checkpointing], PlannedModel] = {}

    def save(self, folder: Path) -> None:
        (folder / FILE).write_text(json.dumps(self.numbers, indent=1))

    def flops(self, config: Config) -> float:
        """Floating-point operations of a training sample."""

        def count() -> float:
            with torch.device("meta"):
                model = GenreClassifier(config.model, 19, config.data.image_size, 100, None, load_weights=False)
            return training_flops(model, config, torch.device("meta"))

        return self._number(f"{_model(config)}: flops", count)

    def peak(self, config: Config, kind: Checkpointing, precision: Precision, micro: int) -> float:
        """The planner's peak of a step of one micro-batch on one GPU, in bytes."""

        def count() -> float:
            key = _model(config), kind
            if key not in self._planned:
                self._planned[key] = plan_model(config, (kind,), TYPICAL_TOKENS, on_gpu=True)
            setting = Setting(strategy="single", ranks=1, precision=precision, checkpointing=kind)
            return peak_bytes(self._planned[key].traces, self._planned[key].sizes, setting, micro)

        return self._number(f"{_model(config)}: peak, checkpointing {kind}, {precision}, {micro}", count)

    def _number(self, name: str, count: Callable[[], float]) -> float:
        if name not in self.numbers:
            self.numbers[name] = float(count())
        return self.numbers[name]


def _model(config: Config) -> str:
    """A name for a model, its pixels, and the code that counts."""
    settings = json.dumps([asdict(config.model), config.data.image_size], sort_keys=True)
    return hashlib.sha256(settings.encode() + _code()).hexdigest()[:12]


@cache
def _code() -> bytes:
    package = Path(genre_dist.__file__).parent
    files = [*package.glob("planner/*.py"), *package.glob("models/*.py")]
    return b"".join(file.read_bytes() for file in sorted(files))
