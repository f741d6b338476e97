"""Ablation by permutation: how much each measure loses when posters, or texts, are shuffled among films."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genre_dist.inference.trained_model import Run
from genre_dist.metrics.bootstrap import Scores, all_differences, resampled
from genre_dist.stream.device_feed import to_device, whole_pixels
from genre_dist.stream.loader import evaluation_stream
from genre_dist.stream.manifest import Manifest
from genre_dist.training.experiment import open_split

WINDOW = 4096
"""Films in a shuffle; RAM holds their encodings, 12 KB each. Shards are in hash order, so windows are random draws."""
SHUFFLES = 5
RESAMPLES = 1000


def ablate(run: Run, manifest: Manifest, split: str, thresholds: NDArray[np.float64] | None) -> dict[str, Any]:
    """Each measure on an intact split, and its loss when a medium (text or poster) comes from another film.

    A loss is the mean over SHUFFLES shuffles, with a paired 95 % bootstrap interval over films.
    """
    media = run.model.parts
    random = np.random.default_rng(0)
    logits: dict[str, list[NDArray[np.float32]]] = defaultdict(list)
    labels = []
    for encoded, window_labels in _windows(run, manifest, split):
        labels.append(window_labels)
        logits["intact"].append(_logits(run, encoded))
        for medium in media:
            for shuffle in range(SHUFFLES):
                mixed = encoded | {medium: encoded[medium].of(_derangement(len(window_labels), random))}
                logits[f"{medium} {shuffle}"].append(_logits(run, mixed))
    truth = np.concatenate(labels)
    choose = manifest.declared.labels.choose
    scores = {name: Scores(np.concatenate(parts), truth, thresholds, choose) for name, parts in logits.items()}
    drawn = resampled(scores, RESAMPLES)
    dealt = {medium: np.mean([drawn[f"{medium} {shuffle}"] for shuffle in range(SHUFFLES)], axis=0) for medium in media}
    return {
        "films": len(truth),
        "shuffles": SHUFFLES,
        "intact": all_differences(drawn["intact"]),
        "loss_without": {medium: all_differences(drawn["intact"], values) for medium, values in dealt.items()},
    }


class _Encoded(NamedTuple):
    """The encodings of a medium."""

    values: Tensor  # [samples, E]
    has: Tensor  # bool [samples], whether a sample has the medium

    def of(self, rows: Tensor) -> "_Encoded":
        return _Encoded(self.values[rows], self.has[rows])


def _windows(run: Run, manifest: Manifest, split: str) -> Iterator[tuple[dict[str, _Encoded], NDArray[np.bool_]]]:
    """The split's encodings by medium, and labels, up to WINDOW samples at a time."""
    data, device = run.config.data, next(run.model.parameters()).device
    reader = open_split(run.config, manifest, split)
    sizes = [encoder.encoding_size for encoder in run.model.encoders.values()]
    parts: dict[str, list[_Encoded]] = defaultdict(list)
    labels: list[NDArray[np.bool_]] = []
    stream = evaluation_stream(reader, batch=32, workers=data.workers)
    left = reader.index.samples
    try:
        for batch in stream:
            inputs = to_device(batch, device, whole_pixels(data))
            with torch.inference_mode():
                encodings = run.model.encode(inputs.fields).split(sizes, dim=1)
            for part, encoding in zip(run.model.parts, encodings, strict=True):
                has = inputs.fields[part].has
                there = torch.ones(len(encoding), dtype=torch.bool, device=device) if has is None else has
                parts[part].append(_Encoded(encoding, there.clone()))
            labels.append(batch.labels > 0)
            left -= len(batch.ids)
            # a last window too small to shuffle joins the one before
            if not left or (sum(map(len, labels)) >= WINDOW and left >= WINDOW // 2):
                window = {part: _Encoded(*map(torch.cat, zip(*own, strict=True))) for part, own in parts.items()}
                yield window, np.concatenate(labels)
                parts, labels = defaultdict(list), []
    finally:
        stream.close()


def _logits(run: Run, encoded: dict[str, _Encoded]) -> NDArray[np.float32]:
    with torch.inference_mode():
        joined = torch.cat([encoded[part].values for part in run.model.parts], dim=1)
        logits = run.model.logits(joined, {part: own.has for part, own in encoded.items()})
        return logits.float().cpu().numpy()


def _derangement(films: int, random: np.random.Generator) -> Tensor:
    """A random permutation without fixed points: one cycle through all films (the identity for a single film)."""
    cycle = random.permutation(films)
    dealt = np.empty(films, np.int64)
    dealt[cycle] = np.roll(cycle, 1)
    return torch.from_numpy(dealt)
