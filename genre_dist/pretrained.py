"""Where the files of a pretrained model or tokenizer lie: a path, an installed package, or the Hugging Face cache."""

import importlib.util
import os
from pathlib import Path

TOKENIZER = "tokenizer.json"
ARCHITECTURE = "config.json"


def find_pretrained(name: str, file: str, key: str) -> Path:
    """The path of `file` of a model that is given as a path (a folder, or the file itself) or by a name.

    A name is that of an installed package that holds the file in one of its folders, or of a model in the Hugging Face
    cache. Nothing is imported or downloaded. Raises ValueError that begins with the option or config `key`.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        if (path / file).is_file():
            return path / file
        raise ValueError(f"{key}={name}: this folder has no {file}")
    found = _in_package(name, file) or _in_cache(name, file)
    if found is None:
        raise ValueError(
            f"{key}={name}: no file or folder, no installed package with a {file}, and not in the Hugging Face cache; "
            f"fetch it once with `hf download {name}`, or name its folder"
        )
    return found


def _in_package(name: str, file: str) -> Path | None:
    """A package's file, of several the one in the outermost folder; the package is not imported."""
    module = name.replace("-", "_")
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    found = [path for folder in folders for path in Path(folder).rglob(file)]
    return min(found, key=lambda path: (len(path.parts), path), default=None)


def _in_cache(name: str, file: str) -> Path | None:
    if os.path.isabs(name) or importlib.util.find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, file)
    except HFValidationError:  # not what a model can be called
        return None
    return Path(found) if isinstance(found, str) else None
