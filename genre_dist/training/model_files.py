"""The files of a model, in a run's folder or an exported one: written atomically, checked against each other."""

import hashlib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from annotated_types import MinLen
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from genre_dist.atomic import atomic_file
from genre_dist.config import ModelConfig
from genre_dist.config.model import HF
from genre_dist.config.run import METADATA, TEXT_ENCODER, WEIGHTS
from genre_dist.genres import Genre
from genre_dist.models.classifier import GenreClassifier
from genre_dist.models.pretrained_text import PretrainedText, architecture_of
from genre_dist.packing.tokenizer import WORDS, Tokenizer, load_tokenizer, tokenizer_of
from genre_dist.pretrained import TOKENIZER
from genre_dist.schema import TMDB, Schema
from genre_dist.sealed import read_sealed, write_sealed
from genre_dist.storage import read_bytes, sha256_of
from genre_dist.stream.manifest import Image, Manifest, Moments, Text
from genre_dist.validation import Count, Sha256

_REMEDY = "copy the whole folder again; training's command writes the model anew if the run's checkpoints are there"


@dataclass(frozen=True)
class ModelMetadata:
    """The content of `model.json`: labels, text and image formats of the training data, and the settings.

    Raises ValueError for impossible genres.
    """

    genres: Annotated[list[Genre], MinLen(1)]
    image: Image
    text: Text
    data_fingerprint: str
    step: Count
    settings: dict[str, Any] = field(default_factory=dict)
    """See `config.continuing.trained_with`; older files have none."""
    weights_sha256: Sha256 | None = None
    schema: Schema | None = None
    """What is declared of the training data; absent for TMDB's."""
    numbers: dict[str, Moments] = field(default_factory=dict)
    """Field of numbers -> what standardises it; absent for TMDB's."""

    def __post_init__(self) -> None:
        names = [genre.name for genre in self.genres]
        if len(set(names)) < len(names) or not all(name and name.isprintable() for name in names):
            raise ValueError("each label has a name of its own")
        source, fit = self.text["source"], self.image["fit"]
        is_known = self.schema is not None or source in ("overview", "title", "both")
        if not is_known or fit not in ("squash", "crop", "pad"):
            raise ValueError(f"there is no text {source!r} or no fit {fit!r}")

    @property
    def declared(self) -> Schema:
        """What is declared of the samples and labels that the model was trained on."""
        return self.schema or TMDB

    def to_dict(self) -> dict[str, Any]:
        content = asdict(self)
        if self.schema is None:
            del content["schema"], content["numbers"]
        return content


def save_model(run: Path, weights: dict[str, Tensor], manifest: Manifest, step: int, settings: dict[str, Any]) -> None:
    """Write model.safetensors, the vocabulary or tokenizer.json and, last, model.json into a folder.

    Raises OSError if they cannot be written, ValueError if the shards' vocabulary is not the one they were packed with.
    """
    words = read_vocabulary(manifest)
    written = save({name: tensor.contiguous() for name, tensor in weights.items()}, {"format": "pt"})
    with atomic_file(run / WEIGHTS) as file:  # safetensors' own writer neither syncs nor renames
        file.write(written)
    with atomic_file(_token_file(run, manifest.text)) as file:
        file.write(words)
    metadata: dict[str, Any] = {
        "genres": [genre._asdict() for genre in manifest.genres],
        "image": manifest.image,
        "text": manifest.text,
        "data_fingerprint": manifest.fingerprint,
        "step": step,
        "settings": settings,
        "weights_sha256": hashlib.sha256(written).hexdigest(),
    }
    if manifest.declared != TMDB:
        metadata |= {"schema": manifest.declared.to_dict(), "numbers": manifest.numbers}
    write_sealed(run / METADATA, metadata)


def read_metadata(run: Path) -> ModelMetadata:
    """The content of model.json. Raises ValueError if it is missing or damaged."""
    if not (run / METADATA).is_file():
        raise ValueError(f"{run / METADATA}: missing; {_REMEDY}")
    return read_sealed(ModelMetadata, run / METADATA, _REMEDY)


def check_model(run: Path) -> ModelMetadata:
    """The content of model.json. Raises ValueError unless weights and vocabulary belong to it."""
    metadata = read_metadata(run)
    check_weights(run, metadata)
    read_tokenizer(run, metadata)
    return metadata


def check_weights(run: Path, metadata: ModelMetadata) -> None:
    """Raise ValueError if model.safetensors is missing, or has another checksum than model.json notes."""
    if not (run / WEIGHTS).is_file():
        raise ValueError(f"{run / WEIGHTS}: missing; {_REMEDY}")
    if metadata.weights_sha256 not in (None, sha256_of(run / WEIGHTS)):
        raise ValueError(f"{run / WEIGHTS}: not the weights that {METADATA} was written with; {_REMEDY}")


def read_weights(run: Path, metadata: ModelMetadata) -> dict[str, Tensor]:
    """The tensors of model.safetensors. Raises ValueError if they do not belong to model.json."""
    check_weights(run, metadata)
    path = run / WEIGHTS
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged ({error}); {_REMEDY}") from None


def read_tokenizer(run: Path, metadata: ModelMetadata) -> Tokenizer:
    """What makes the model's tokens of a text. Raises ValueError if the model was trained with other ones."""
    return load_tokenizer(_token_file(run, metadata.text), metadata.text)


def _token_file(run: Path, text: Text) -> Path:
    return run / (TOKENIZER if "tokenizer" in text else WORDS)


def save_text_encoder(run: Path, model: GenreClassifier) -> None:
    """Write the architecture of a pretrained text encoder, for when the folder it was read from is gone."""
    for encoder in model.text_encoders.values():  # all are of one architecture
        if isinstance(encoder, PretrainedText):
            write_sealed(run / TEXT_ENCODER, architecture_of(encoder))


def with_own_architecture(model: ModelConfig, run: Path) -> ModelConfig:
    """The same model with its text encoder's architecture read from the run, if it is there: the folder that it was
    from may be gone. Raises ValueError if the file is damaged."""
    if model.text.pretrained is None or not (run / TEXT_ENCODER).is_file():
        return model
    read_sealed(dict[str, Any], run / TEXT_ENCODER, _REMEDY)
    return replace(model, text=replace(model.text, arch=f"{HF}{run / TEXT_ENCODER}"))


def read_vocabulary(manifest: Manifest) -> bytes:
    """The bytes of the shards' vocabulary file. Raises ValueError if it is not the one they were packed with."""
    tokenizer_of(manifest.folder, manifest.text)
    return read_bytes(manifest.folder / manifest.text["vocabulary"])
