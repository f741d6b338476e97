"""The frozen parts of a model as a pure function of the step, so that a resumed run freezes as one never stopped."""

from typing import NamedTuple

from genre_dist.config import ModelConfig, PosterConfig, TextConfig
from genre_dist.config.rules import in_steps
from genre_dist.models.classifier import GenreClassifier


class Frozen(NamedTuple):
    """Frozen parts of a model: the text encoder, the poster encoder, or one of them up to and including a module."""

    text: bool
    poster: bool
    poster_through: str | None
    text_through: str | None = None


def frozen_at(config: ModelConfig, step: int, steps_per_epoch: int) -> Frozen:
    """The frozen parts in a step, counted from 0."""
    text, text_through = _frozen(config.text, step, steps_per_epoch)
    return Frozen(text, *_frozen(config.poster, step, steps_per_epoch), text_through)


def _frozen(encoder: TextConfig | PosterConfig, step: int, steps_per_epoch: int) -> tuple[bool, str | None]:
    """Whether all of an encoder is frozen in a step, and else the module up to which it is."""
    begun = [
        (in_steps(point, steps_per_epoch), order, name)
        for order, (name, point) in enumerate(encoder.unfreezing.items())
        if in_steps(point, steps_per_epoch) <= step
    ]
    if not begun:
        return encoder.frozen, encoder.frozen_through
    name = max(begun)[2]
    return False, None if name == "none" else name


def freeze(model: GenreClassifier, frozen: Frozen) -> bool:
    """Freeze these parts; returns whether that changed anything. Raises ValueError for a module that does not exist."""
    before = [parameter.requires_grad for parameter in model.parameters()]
    for text in model.text_encoders.values():
        text.freeze(frozen.text, frozen.text_through)
    for image in model.image_encoders.values():
        image.freeze(frozen.poster, frozen.poster_through)
    model.train(model.training)  # unfrozen modules take the model's mode
    return before != [parameter.requires_grad for parameter in model.parameters()]


def thaw_all_that_ever_trains(model: GenreClassifier, config: ModelConfig) -> None:
    """Freeze only the parts that never train: the optimizer is made for the others.

    Raises ValueError if an encoder lacks a module that its `unfreeze_at` names.
    """
    for encoders, section in ((model.text_encoders, config.text), (model.image_encoders, config.poster)):
        for name in section.unfreezing:
            for encoder in encoders.values() if name != "none" else ():
                encoder.freeze(False, name)
    end = frozen_at(config, 10**12, 10**6)
    freeze(model, end)
