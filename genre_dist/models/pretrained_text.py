"""A pretrained text encoder: a transformer of the transformers library, pooled over the tokens of each text."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from genre_dist.config import TextConfig
from genre_dist.models.frozen_modules import freeze_through
from genre_dist.models.text import Lengths
from genre_dist.pretrained import ARCHITECTURE, find_pretrained
from genre_dist.printable import printable


class Depth(NamedTuple):
    """The parameters of a layer, of the embeddings or of what is behind the layers, and how far below the top it is."""

    name: str
    below: int
    """0 behind the layers, 1 for the last layer, n for the first one of n, n + 1 for the embeddings."""
    parameters: list[nn.Parameter]


class PretrainedText(nn.Module):
    """Text -> encoding [encoding_size]: the states of a transformer's last layer, pooled over the text's tokens.

    `model.text.arch hf:NAME` names its folder, package, or model in the cache; code that comes with a model is never
    run. Its own pooling layer is left out. `load_weights=False` reads its architecture only. `weights_used` is 'its
    own', 'random' or 'not loaded'. A text of more tokens than the transformer has positions is cut to its first ones
    and its last one. Raises ValueError if it cannot be had or read, has fewer embeddings than the vocabulary ids, or is
    no encoder of texts.
    """

    def __init__(self, config: TextConfig, vocabulary_size: int, load_weights: bool = True) -> None:
        super().__init__()
        self.pooling = config.pooling
        source = find_pretrained(config.pretrained or "", ARCHITECTURE, "model.text.arch")
        architecture = _architecture(source, config.arch)
        if config.inner_dropout is not None:
            _set_dropout(architecture, config.inner_dropout)
        reads_weights = load_weights and config.weights is None
        self.weights_used = "its own" if reads_weights else "random" if load_weights else "not loaded"
        self.network = _pretrained(architecture, source, config.arch) if reads_weights else _build(architecture)
        if getattr(self.network, "pooler", None) is not None:
            self.network.pooler = None  # unused weights would be waited for when gradients are exchanged
        self.encoding_size = int(architecture.hidden_size) * (2 if self.pooling == "mean_max" else 1)
        embeddings = self.network.get_input_embeddings().num_embeddings
        if embeddings < vocabulary_size:
            raise ValueError(
                f"model.text.arch={config.arch} has embeddings for {embeddings:,} ids, and the shards have "
                f"{vocabulary_size:,}: pack them with its own tokenizer (--tokenizer)"
            )
        self.positions = _positions(self.network)
        self.dropout = nn.Dropout(config.dropout)
        self.takes_wide_masks = _takes_wide_masks(self.network)
        self.freeze(config.frozen, config.frozen_through)
        self.train()

    def freeze(self, everything: bool, through: str | None = None) -> None:
        """Freeze the encoder, or only up to and including a module; the rest trains from the next `train()` on.

        Raises ValueError if the network has no such module.
        """
        self.frozen = everything
        self.requires_grad_(not everything)
        key = "model.text.frozen_through"
        # a tuple hides them from nn.Module
        self._still = () if everything or through is None else tuple(freeze_through(self.network, through, key))

    def train(self, mode: bool = True) -> Self:
        """Set the training mode, except that frozen modules stay in eval mode."""
        super().train(mode and not self.frozen)
        for module in self._still:
            module.training = False
        return self

    @property
    def embedding(self) -> nn.Module:
        """The token embeddings."""
        return self.network.get_input_embeddings()

    def layers(self) -> list[nn.Module]:
        """The transformer's layers, from the first to the last."""
        lists: list[nn.Module] = [module for module in self.network.modules() if isinstance(module, nn.ModuleList)]
        return list(max(lists, key=_count).children()) if lists else []

    def depths(self) -> list[Depth]:
        """All parameters by their depth, the embeddings' first."""
        layers = self.layers()
        number_of = {id(p): number for number, layer in enumerate(layers) for p in layer.parameters()}
        depths = [Depth("embeddings", len(layers) + 1, [])]
        depths += [Depth(f"layer{number}", len(layers) - number, []) for number in range(len(layers))]
        behind = Depth("top", 0, [])
        for parameter in self.network.parameters():
            if (number := number_of.get(id(parameter))) is not None:
                depths[1 + number].parameters.append(parameter)
            else:  # before the first layer, or after it
                (behind if any(depth.parameters for depth in depths[1:]) else depths[0]).parameters.append(parameter)
        return [*depths, behind]

    def forward(self, tokens: Tensor, lengths: Lengths) -> Tensor:
        """Map tokens int [B, T], padded with any id, and lengths [B] to encodings float32 [B, encoding_size].

        A length of 0 counts as 1: the text is one padding token.
        """
        with torch.no_grad() if self.frozen else contextlib.nullcontext():
            if tokens.shape[1] == 0:  # no sample of the batch has a text
                tokens = nn.functional.pad(tokens, (0, 1))
            tokens, sizes = self._within_positions(tokens, _on_device(lengths, tokens.device))
            valid = torch.arange(tokens.shape[1], device=tokens.device) < sizes[:, None]  # [B, T]
            mask = valid[:, None, None, :] if self.takes_wide_masks else valid.long()
            states = self.network(input_ids=tokens, attention_mask=mask).last_hidden_state
            return self.dropout(self._pool(states.float(), valid, sizes))

    def _within_positions(self, tokens: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and lengths of texts that are cut to the positions there are."""
        most = self.positions
        if most is None or tokens.shape[1] <= most:
            return tokens, sizes
        last = tokens.gather(1, sizes.clamp(min=most)[:, None] - 1)  # the last token, or the one at the last position
        return torch.cat([tokens[:, : most - 1], last], dim=1), sizes.clamp(max=most)

    def _pool(self, states: Tensor, valid: Tensor, sizes: Tensor) -> Tensor:
        """Pool states [B, T, D] over the valid tokens: [B, D], or [B, 2 D] by mean and max."""
        if self.pooling == "first":
            return states[:, 0]
        pooled = []
        if self.pooling in ("mean", "mean_max"):
            pooled.append(states.masked_fill(~valid[:, :, None], 0).sum(1) / sizes[:, None])
        if self.pooling in ("max", "mean_max"):
            pooled.append(states.masked_fill(~valid[:, :, None], -torch.inf).amax(1))
        return torch.cat(pooled, dim=1)


def architecture_of(encoder: PretrainedText) -> dict[str, Any]:
    """What `hf:FILE` rebuilds the encoder from, in JSON's types."""
    content: dict[str, Any] = json.loads(encoder.network.config.to_json_string(use_diff=False))
    left_out = ("_name_or_path", "auto_map", "sha256")  # the last is a run's seal, if it was read from one
    return {name: value for name, value in content.items() if name not in left_out}


def vocabulary_size(config: TextConfig) -> int:
    """Ids that a pretrained text encoder has embeddings for. Raises ValueError if it cannot be had."""
    source = find_pretrained(config.pretrained or "", ARCHITECTURE, "model.text.arch")
    return int(_architecture(source, config.arch).vocab_size)


def _on_device(lengths: Lengths, device: torch.device) -> Tensor:
    """Lengths as a tensor on the device, at least 1, without waiting for it."""
    sizes = torch.as_tensor(lengths).clamp(min=1)
    return sizes.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else sizes.to(device)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# --- the network


def _library(arch: str) -> Any:
    try:
        import transformers
    except ImportError:
        raise ValueError(
            f"model.text.arch={arch} needs the transformers library, which is not installed: pip install "
            "'genre_dist[hf]'"
        ) from None
    return transformers


def _architecture(file: Path, arch: str) -> Any:
    """The configuration in a config.json. Raises ValueError for one that no encoder of texts can be made of."""
    library = _library(arch)
    try:
        content = json.loads(file.read_text("utf-8"))
        kind = content.pop("model_type", None)
        if kind not in library.CONFIG_MAPPING:
            raise ValueError(f"transformers {library.__version__} knows no model_type {kind}")
        architecture = library.CONFIG_MAPPING[kind].from_dict(content)
        if architecture.is_encoder_decoder or not isinstance(getattr(architecture, "hidden_size", None), int):
            raise ValueError(f"{kind} is no encoder of texts with one hidden_size")
    except Exception as error:  # the library checks values with exceptions of many kinds
        raise ValueError(f"model.text.arch={arch}: {file}: {_line(error)}") from None
    architecture.dtype, architecture.use_cache = torch.float32, False
    return architecture


def _set_dropout(architecture: Any, share: float) -> None:
    """Set all dropouts of an architecture, whatever their names: hidden_dropout_prob, attention_dropout, ..."""
    for name, value in vars(architecture).items():
        if "dropout" in name and isinstance(value, int | float):
            setattr(architecture, name, share)


def _build(architecture: Any) -> Any:
    """The network with random weights."""
    return _with_attention(_library("hf").AutoModel.from_config, architecture)


def _pretrained(architecture: Any, file: Path, arch: str) -> Any:
    """The network with the weights beside its configuration; none of it may be missing there."""
    library = _library(arch)
    options = {"config": architecture, "dtype": torch.float32, "local_files_only": True, "output_loading_info": True}
    try:
        with _quiet(library):
            load = library.AutoModel.from_pretrained
            network, found = _with_attention(load, str(file.parent), **options)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise ValueError(
            f"model.text.arch={arch}: no weights can be read in {file.parent} ({_line(error)}); set "
            "model.text.weights none for random ones"
        ) from None
    missing = sorted(name for name in found["missing_keys"] if not name.startswith("pooler."))
    if missing or found["mismatched_keys"]:
        wrong = ", ".join([*missing, *map(str, found["mismatched_keys"])][:3])
        raise ValueError(f"model.text.arch={arch}: the weights in {file.parent} lack {wrong}")
    return network


def _with_attention(make: Any, *inputs: Any, **options: Any) -> Any:
    """Make a network that computes attention by torch's fused kernels, or by its own code if it knows no other."""
    try:
        return make(*inputs, attn_implementation="sdpa", **options)
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
        return make(*inputs, attn_implementation="eager", **options)


@contextlib.contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """Inside, the library shows no progress bar and reports only errors; what is missing is checked here."""
    logging = library.utils.logging
    level, showed = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if showed:
            logging.enable_progress_bar()


def _positions(network: Any) -> int | None:
    """The most tokens of a text; None if there is no limit."""
    for name, module in network.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return module.num_embeddings - module.padding_idx - 1  # RoBERTa counts positions from behind its padding
    most = getattr(network.config, "max_position_embeddings", None)
    return most if isinstance(most, int) and most > 0 else None


def _takes_wide_masks(network: Any) -> bool:
    """Whether the network takes a mask [B, 1, 1, T] as it is; of a mask [B, T] the library asks the device whether all
    is valid, and waits for the answer. Layers that look back only, or only at near tokens, need masks of its making."""
    config = network.config
    windowed = any(getattr(config, name, None) for name in ("layer_types", "sliding_window", "local_attention"))
    causal = any(getattr(module, "is_causal", False) for module in network.modules())
    return config._attn_implementation == "sdpa" and not windowed and not causal


def _line(error: Exception) -> str:
    return printable(" ".join(str(error).split()))[:300] or type(error).__name__
