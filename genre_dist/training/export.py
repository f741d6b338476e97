"""What a finished run leaves to be used: weights, vocabulary, and what the model was trained on."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from genre_dist.atomic import atomic_file
from genre_dist.stream.manifest import Manifest

WEIGHTS = "model.safetensors"
FACTS = "model.json"
WORDS = "vocabulary.txt"


def model_facts(manifest: Manifest, step: int) -> dict[str, Any]:
    """What `model.json` says: labels, text and picture as the model was trained on them."""
    return {
        "genres": [genre._asdict() for genre in manifest.genres],
        "image": manifest.image,
        "text": manifest.text,
        "data_fingerprint": manifest.fingerprint,
        "step": step,
    }


def save_model(run: Path, weights: dict[str, Tensor], manifest: Manifest, step: int) -> None:
    """Write model.safetensors, model.json and the vocabulary into a run's folder."""
    partial = run / f"{WEIGHTS}.tmp"
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, partial, metadata={"format": "pt"})
    partial.replace(run / WEIGHTS)
    with atomic_file(run / WORDS) as file:
        file.write((manifest.folder / manifest.text["vocabulary"]).read_bytes())
    with atomic_file(run / FACTS, "w") as file:
        json.dump(model_facts(manifest, step), file, indent=1)


def finished_step(run: Path) -> int | None:
    """The step a run's exported model was trained to, or None if there is none yet."""
    if not (run / FACTS).is_file():
        return None
    return json.loads((run / FACTS).read_text())["step"]
