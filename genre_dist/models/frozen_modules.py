"""Freezing a network up to and including a module, in order of definition."""

from collections.abc import Iterable, Iterator

from torch import nn

from genre_dist.config.rules import nearest


def freeze_through(network: nn.Module, name: str, key: str) -> list[nn.Module]:
    """Turn off the gradients up to and including a module; return the modules that must stay in eval mode.

    Raises ValueError, naming the config `key`, if the network has no such module.
    """
    modules = dict(network.named_modules())
    if not name or name not in modules:
        children = [candidate for candidate in modules if candidate]
        raise ValueError(f"{key}={name} is no module of the network; {nearest(name, children)}")
    still = []
    for other, module in _through(modules.items(), name):
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)
        contains_it = other == "" or name.startswith(f"{other}.")
        if not contains_it:  # such a module still trains its later children
            still.append(module)
    return still


def _through(modules: Iterable[tuple[str, nn.Module]], name: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield modules in order of definition up to and including `name` and its descendants."""
    reached = False
    for other, module in modules:
        inside = other == name or other.startswith(f"{name}.")
        if reached and not inside:
            return
        reached = reached or inside
        yield other, module
