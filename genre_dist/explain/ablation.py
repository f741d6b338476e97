"""Ablation by permutation: how much each measure loses when posters, or texts, are shuffled among films."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genre_dist.inference.trained_model import Run
from genre_dist.metrics.bootstrap import Scores, all_differences, resampled
from genre_dist.stream.device_feed import to_device, whole_pixels
from genre_dist.stream.loader import evaluation_stream
from genre_dist.stream.manifest import Manifest
from genre_dist.stream.reader import ShardReader

WINDOW = 4096
"""Films in a shuffle; RAM holds their encodings, 12 KB each. Shards are in hash order, so windows are random draws."""
SHUFFLES = 5
RESAMPLES = 1000


def ablate(run: Run, manifest: Manifest, split: str, thresholds: NDArray[np.float64] | None) -> dict[str, Any]:
    """Each measure on an intact split, and its loss when a medium (text or poster) comes from another film.

    A loss is the mean over SHUFFLES shuffles, with a paired 95 % bootstrap interval over films.
    """
    media = [name for name, part in (("text", run.model.text), ("poster", run.model.poster)) if part is not None]
    random = np.random.default_rng(0)
    logits: dict[str, list[NDArray[np.float32]]] = defaultdict(list)
    labels = []
    for encoded, window_labels in _windows(run, manifest, split):
        labels.append(window_labels)
        logits["intact"].append(_logits(run, encoded))
        for medium in media:
            for shuffle in range(SHUFFLES):
                mixed = encoded | {medium: encoded[medium][_derangement(len(window_labels), random)]}
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


def _windows(run: Run, manifest: Manifest, split: str) -> Iterator[tuple[dict[str, Tensor], NDArray[np.bool_]]]:
    """The split's encodings by medium, [films, E] each, and labels, up to WINDOW films at a time."""
    data, device = run.config.data, next(run.model.parameters()).device
    reader = ShardReader(manifest, split, run.config.model.members, data.max_tokens)
    parts: dict[str, list[Tensor]] = {}
    labels: list[NDArray[np.bool_]] = []
    stream = evaluation_stream(reader, batch=32, workers=data.workers)
    left = reader.index.samples
    try:
        for batch in stream:
            inputs = to_device(batch, device, whole_pixels(data))
            with torch.inference_mode():
                if run.model.text is not None and inputs.tokens is not None and inputs.lengths is not None:
                    parts.setdefault("text", []).append(run.model.text(inputs.tokens, inputs.lengths))
                if run.model.poster is not None and inputs.images is not None:
                    parts.setdefault("poster", []).append(run.model.poster(inputs.images))
            labels.append(batch.labels > 0)
            left -= len(batch.ids)
            # a last window too small to shuffle joins the one before
            if not left or (sum(map(len, labels)) >= WINDOW and left >= WINDOW // 2):
                yield {name: torch.cat(tensors) for name, tensors in parts.items()}, np.concatenate(labels)
                parts, labels = {}, []
    finally:
        stream.close()


def _logits(run: Run, encoded: dict[str, Tensor]) -> NDArray[np.float32]:
    with torch.inference_mode():
        joined = torch.cat([encoded[name] for name in ("text", "poster") if name in encoded], dim=1)
        return run.model.heads(joined).float().cpu().numpy()


def _derangement(films: int, random: np.random.Generator) -> Tensor:
    """A random permutation without fixed points: one cycle through all films (the identity for a single film)."""
    cycle = random.permutation(films)
    dealt = np.empty(films, np.int64)
    dealt[cycle] = np.roll(cycle, 1)
    return torch.from_numpy(dealt)
