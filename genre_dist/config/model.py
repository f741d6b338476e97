"""The model section: encoders, their starting weights, freezing, and the heads."""

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from genre_dist.config.rules import is_point, require
from genre_dist.schema import Field, Schema

Pooling: TypeAlias = Literal["last", "max", "mean"]
"""What a recurrent network's encoding is made of."""
RECURRENT = ("lstm", "gru")
HF, TIMM = "hf:", "timm:"
"""What the names of the transformers library's encoders and of timm's begin with."""
Unfreezing: TypeAlias = int | str | dict[str, int | str] | None


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The encoder of texts: word vectors and a recurrent network, or a pretrained transformer; its states are pooled.

    hidden, layers, bidirectional, embedding_dim and train_embedding are a recurrent network's alone.
    """

    arch: str = "lstm"
    """`lstm`, `gru`, `none` to leave the text out, or `hf:NAME`: an encoder of the transformers library by its folder,
    by an installed package that holds one, or by a name in the Hugging Face cache. Pack the shards with its tokenizer
    (`genre-dist pack --tokenizer NAME`)."""
    hidden: int = 512
    """Units per direction; the encoding is twice as wide when bidirectional."""
    layers: int = 3
    """Stacked layers."""
    bidirectional: bool = True
    """Read the text in both directions."""
    pooling: Literal["last", "max", "mean", "mean_max", "first"] = "last"
    """What of the top layer's states is the encoding: each direction's last one, as in the study (lstm, gru), every
    unit's largest or mean value over all words, both side by side (hf), or the first token's state, BERT's [CLS]
    (hf)."""
    dropout: float = 0.0
    """Dropout between layers; the study found none works best. With hf: of the encoding."""
    inner_dropout: float | None = None
    """With hf: dropout inside the transformer, of its attention too; null keeps what its configuration says. With 0 a
    step on a CPU takes little more than half as long, since its fused attention has no dropout."""
    embedding_dim: int = 300
    """Width of the word vectors, used only if the shards were packed without vectors."""
    train_embedding: bool = False
    """Train the word vectors too. Shards packed without vectors always train them."""
    frozen: bool = False
    """No gradient, eval mode for good, computed under no_grad."""
    frozen_through: str | None = None
    """With hf: freeze only up to and including this module, in order of definition: `encoder.layer.3` of a BERT,
    `embeddings` for those alone."""
    unfreeze_at: Unfreezing = None
    """With `frozen` or `frozen_through`: only up to here, a step (200) or an epoch (2ep), counted from 0; it trains
    from there on. With hf also gradually, as model.poster.unfreeze_at."""
    weights: str | None = None
    """A `model.safetensors` of another run, whose text encoder to start from, or `none` for random weights. By default
    hf starts from the weights beside its configuration, others from random ones."""

    def __post_init__(self) -> None:
        require(
            self.arch in (*RECURRENT, "none") or (self.pretrained is not None and self.pretrained != ""),
            f"model.text.arch={self.arch} is not {', '.join(RECURRENT)}, none or {HF}NAME",
        )
        require(
            self.pretrained is None or self.pooling != "last",
            f"model.text.pooling=last belongs to lstm and gru; for {self.arch} set it to mean, max, mean_max or first",
        )
        require(
            self.pretrained is not None or self.pooling not in ("first", "mean_max"),
            f"model.text.pooling={self.pooling} belongs to hf:NAME; for {self.arch} set it to last, max or mean",
        )
        require(
            self.pretrained is not None or self.inner_dropout is None,
            f"model.text.inner_dropout is a transformer's; for {self.arch} set model.text.dropout",
        )
        require(
            self.pretrained is not None or self.frozen_through is None,
            f"model.text.frozen_through needs model.text.arch hf:NAME; of {self.arch} set model.text.frozen",
        )
        require(
            not (self.frozen and self.frozen_through),
            "model.text.frozen freezes everything; drop it or model.text.frozen_through",
        )
        require(
            self.pretrained is not None or not isinstance(self.unfreeze_at, dict),
            f"model.text.unfreeze_at={self.unfreeze_at}: {self.arch} trains all of it from one point on",
        )
        for name in ("hidden", "layers", "embedding_dim"):
            require(getattr(self, name) >= 1, f"model.text.{name} must be at least 1, got {getattr(self, name)}")
        require(0 <= self.dropout < 1, f"model.text.dropout must be in [0, 1), got {self.dropout}")
        require(
            self.inner_dropout is None or 0 <= self.inner_dropout < 1,
            f"model.text.inner_dropout must be in [0, 1), got {self.inner_dropout}",
        )
        require(
            self.unfreeze_at is None
            or ((self.frozen or self.frozen_through is not None) and all(map(is_point, self.unfreezing.values()))),
            f"model.text.unfreeze_at={self.unfreeze_at} must be a step (200) or an epoch (2ep) that ends "
            "model.text.frozen",
        )

    @property
    def pretrained(self) -> str | None:
        """The folder, package or name of a transformer; None for recurrent networks."""
        return self.arch.removeprefix(HF) if self.arch.startswith(HF) else None

    @property
    def weights_file(self) -> str | None:
        """The file to start from, if it is another run's."""
        return None if self.weights == "none" else self.weights

    @property
    def unfreezing(self) -> dict[str, int | str]:
        """`unfreeze_at` as a mapping, as PosterConfig's."""
        return _unfreezing(self.unfreeze_at)


@dataclass(frozen=True, kw_only=True)
class PosterConfig:
    """The encoder of images: a convolutional network without its classifier."""

    arch: str = "resnet152"
    """A torchvision classifier by name, `timm:NAME` of the timm library, `package.module:function` returning a feature
    extractor, or `none`."""
    weights: str = "auto"
    """`imagenet` (torchvision's default enum, timm's pretrained ones; an error if out of reach), `none` (random), a
    file (.safetensors or .pth, of torchvision, timm or a run), or `auto`: imagenet if in reach, else random with a
    warning."""
    frozen: bool = False
    """No gradient, eval mode for good, computed under no_grad."""
    frozen_through: str | None = None
    """Freeze only up to and including this module, in order of definition: `layer3` of a ResNet (the study trained only
    its last stage), `features.23` of VGG16 (all but the last three convolutions)."""
    unfreeze_at: Unfreezing = None
    """With `frozen` or `frozen_through`: only up to here, a step (200) or an epoch (2ep), counted from 0. Gradually:
    `{layer3: 200, layer2: 2ep, none: 3ep}` keeps it frozen through layer3 from step 200 on, through layer2 from epoch 2
    on, and trains all of it from epoch 3 on."""
    batch_norm: Literal["train", "eval", "sync"] = "train"
    """BatchNorm uses the micro-batch's statistics, the stored ones, or those of all ranks together."""

    def __post_init__(self) -> None:
        require(
            not (self.frozen and self.frozen_through),
            "model.poster.frozen freezes everything; drop it or model.poster.frozen_through",
        )
        require(
            self.unfreeze_at is None or self.frozen or self.frozen_through is not None,
            "model.poster.unfreeze_at needs something frozen: set model.poster.frozen or model.poster.frozen_through",
        )
        require(
            all(is_point(point) for point in self.unfreezing.values()),
            f"model.poster.unfreeze_at={self.unfreeze_at} must have steps (200) or epochs (2ep)",
        )

    @property
    def unfreezing(self) -> dict[str, int | str]:
        """`unfreeze_at` as a mapping: the module up to which the encoder stays frozen (or `none`) -> from when on."""
        return _unfreezing(self.unfreeze_at)

    @property
    def code(self) -> str | None:
        """The code that `arch` names, to be imported and run; None if it names a library's network."""
        return self.arch if ":" in self.arch and not self.arch.startswith(TIMM) else None


def _unfreezing(unfreeze_at: Unfreezing) -> dict[str, int | str]:
    if unfreeze_at is None:
        return {}
    return unfreeze_at if isinstance(unfreeze_at, dict) else {"none": unfreeze_at}


@dataclass(frozen=True, kw_only=True)
class NumbersConfig:
    """The encoder of fields of numbers: two layers."""

    arch: Literal["mlp", "none"] = "mlp"
    """`none` leaves numbers out."""
    hidden: int = 64
    """Width of both layers, and of the encoding."""
    frozen: bool = False
    """No gradient."""

    def __post_init__(self) -> None:
        require(self.hidden >= 1, f"model.numbers.hidden must be at least 1, got {self.hidden}")


@dataclass(frozen=True, kw_only=True)
class HeadsConfig:
    """One small MLP per label ("binary relevance"): encoding -> hidden... -> 1."""

    hidden: tuple[int, ...] = (1024, 512)
    """Widths of the hidden layers."""
    kernel: Literal["auto", "separate", "batched"] = "auto"
    """How the heads are computed: one by one, or all together in batched products. `auto`: batched on a GPU."""

    def __post_init__(self) -> None:
        require(all(width >= 1 for width in self.hidden), f"model.heads.hidden must be positive, got {self.hidden}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """An encoder for each field, their encodings side by side, one head per label."""

    missing: Literal["auto", "learn", "leave_out"] = "auto"
    """Samples that lack a field: `learn` trains a vector in place of its encoding, `leave_out` leaves them out. `auto`:
    learn if some of the shards' samples lack one."""
    text: TextConfig = field(default_factory=TextConfig)
    """The encoder of texts."""
    poster: PosterConfig = field(default_factory=PosterConfig)
    """The encoder of images."""
    numbers: NumbersConfig = field(default_factory=NumbersConfig)
    """The encoders of numbers."""
    heads: HeadsConfig = field(default_factory=HeadsConfig)
    """The heads of the labels."""

    def fields(self, schema: Schema) -> tuple[Field, ...]:
        """The fields that the model takes, in the order of its encodings. Raises ValueError if there are none."""
        used = {"text": self.uses_text, "image": self.uses_poster, "numbers": self.numbers.arch != "none"}
        taken = tuple(field for field in schema.encoded if used[field.kind])
        arches = " and ".join(f"model.{kind}.arch" for kind in ("text", "poster", "numbers"))
        require(len(taken) > 0, f"{arches} leave out all of {', '.join(schema.by_name)}: nothing to train")
        return taken

    def members(self, schema: Schema) -> tuple[str, ...]:
        """The names of these fields."""
        return tuple(field.name for field in self.fields(schema))

    def check_hiding(self, name: str, schema: Schema) -> None:
        """Raise ValueError if the model has no such field, or cannot do without it."""
        members = self.members(schema)
        require(name in members, f"{name} cannot be hidden: the model takes {' and '.join(members)}")
        require(len(members) > 1, f"{name} cannot be hidden: the model takes no other field")
        require(
            self.missing != "leave_out",
            f"{name} cannot be hidden: the model cannot do without a field; train it with model.missing=learn",
        )

    @property
    def learns_missing(self) -> bool:
        """Whether samples may lack fields: the model has a learned vector for each."""
        return self.missing == "learn"

    @property
    def uses_text(self) -> bool:
        return self.text.arch != "none"

    @property
    def uses_poster(self) -> bool:
        return self.poster.arch != "none"

    @property
    def unfreezes(self) -> bool:
        """Whether something that is frozen at the start trains later."""
        return self.text.unfreeze_at is not None or self.poster.unfreeze_at is not None

    @property
    def kind(self) -> str:
        """The kind of model: text, poster, frozen, partly frozen or end to end."""
        if not self.uses_poster:
            return "text"
        if not self.uses_text:
            return "poster"
        if self.text.frozen and self.poster.frozen:
            return "frozen"
        partly = self.text.frozen or self.text.frozen_through or self.poster.frozen or self.poster.frozen_through
        return "partly frozen" if partly else "end to end"
