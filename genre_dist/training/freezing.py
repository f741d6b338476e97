"""The frozen parts of a model as a pure function of the step, so that a resumed run freezes as one never stopped."""

from typing import NamedTuple

from genre_dist.config import ModelConfig
from genre_dist.config.rules import in_steps
from genre_dist.models.classifier import GenreClassifier


class Frozen(NamedTuple):
    """Frozen parts of a model: the text encoder, the poster encoder, or the latter up to and including a module."""

    text: bool
    poster: bool
    poster_through: str | None


def frozen_at(config: ModelConfig, step: int, steps_per_epoch: int) -> Frozen:
    """The frozen parts in a step, counted from 0."""
    text, poster, through = config.text.frozen, config.poster.frozen, config.poster.frozen_through
    if config.text.unfreeze_at is not None:
        text = step < in_steps(config.text.unfreeze_at, steps_per_epoch)
    begun = [
        (in_steps(point, steps_per_epoch), order, name)
        for order, (name, point) in enumerate(config.poster.unfreezing.items())
        if in_steps(point, steps_per_epoch) <= step
    ]
    if begun:
        name = max(begun)[2]
        poster, through = False, None if name == "none" else name
    return Frozen(text, poster, through)


def freeze(model: GenreClassifier, frozen: Frozen) -> bool:
    """Freeze these parts; returns whether that changed anything. Raises ValueError for a module that does not exist."""
    before = [parameter.requires_grad for parameter in model.parameters()]
    for text in model.texts.values():
        text.freeze(frozen.text)
    for image in model.images.values():
        image.freeze(frozen.poster, frozen.poster_through)
    model.train(model.training)  # unfrozen modules take the model's mode
    return before != [parameter.requires_grad for parameter in model.parameters()]


def thaw_all_that_ever_trains(model: GenreClassifier, config: ModelConfig) -> None:
    """Freeze only the parts that never train: the optimizer is made for the others.

    Raises ValueError if the poster encoder lacks a module that `unfreeze_at` names.
    """
    for name in config.poster.unfreezing:
        for image in model.images.values() if name != "none" else ():
            image.freeze(False, name)
    end = frozen_at(config, 10**12, 10**6)
    freeze(model, end)
