"""The questions that a comparison answers, and the pairs of models whose differences answer them. Pure."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from genre_dist.compare.results import Model
from genre_dist.config.model import RECURRENT, ModelConfig, PosterConfig, TextConfig
from genre_dist.config.run import experiment
from genre_dist.schema import with_article


class Pair(NamedTuple):
    """Two models, the first of which is asked about."""

    one: Model
    other: Model
    name: str
    """What both have in common."""


class Question(NamedTuple):
    """A question with the pairs that answer it, the strongest first."""

    key: str
    text: str
    pairs: tuple[Pair, ...]


def questions(models: Sequence[Model]) -> list[Question]:
    """The questions that these models answer, the main one first."""
    asked = [
        Question("end_to_end", "Is training end to end worth it?", _end_to_end(models)),
        *_fields(models),
        Question("joint", "Is a joint model better than late fusion?", _late_fusion(models)),
        Question("pretrained", "Is a pretrained text encoder worth it?", _pretrained(models)),
    ]
    return [question for question in asked if question.pairs]


def last_against_first(models: Sequence[Model]) -> list[Question]:
    """The question of models that answer no other; none of a single one."""
    first, last = models[0], models[-1]
    pair = Pair(last, first, "")
    return [Question("last", f"Is {last.name} better than {first.name}?", (pair,))] if len(models) > 1 else []


def without_their_run(models: Sequence[Model]) -> list[str]:
    """The names of models with hidden fields whose run is not among the models: no question is about them."""
    return [model.name for model in models if _is_hidden(model) and _run_of(model, models) is None]


def strength(model: Model) -> float:
    """Micro F1 on val; below all if it is not known."""
    return -1.0 if model.val_micro_f1 is None else model.val_micro_f1


def trained(model: Model) -> ModelConfig | None:
    """The model section of a training run; None for baselines and predictions that were made from runs."""
    config = model.results[0].config
    return None if config is None or model.derived is not None else config.model


def family(config: ModelConfig) -> str:
    """A model's encoders by their architectures."""
    names = [encoder.arch.split("/")[-1] for encoder in _encoders(config)]
    return " with ".join(names)


def _encoders(config: ModelConfig) -> list[TextConfig | PosterConfig]:
    return [encoder for encoder in (config.text, config.poster) if encoder.arch != "none"]


def _is_frozen(config: ModelConfig) -> bool:
    return not config.unfreezes and all(encoder.frozen for encoder in _encoders(config))


def _is_end_to_end(config: ModelConfig) -> bool:
    return not any(encoder.frozen or encoder.frozen_through for encoder in _encoders(config))


def _strongest(models: Iterable[Model]) -> Model | None:
    return max(models, key=strength, default=None)


def _end_to_end(models: Sequence[Model]) -> tuple[Pair, ...]:
    """Of each family every end-to-end model and the strongest frozen one.

    One that starts from trained encoders, as frozen models do, comes before others of its family.
    """
    of_family: dict[tuple[str, str], list[tuple[Model, ModelConfig]]] = {}
    for model in models:
        if (config := trained(model)) is not None and _encoders(config):
            of_family.setdefault((config.text.arch, config.poster.arch), []).append((model, config))
    pairs: list[Pair] = []
    for members in sorted(of_family.values(), key=lambda members: -max(strength(model) for model, _ in members)):
        frozen = _strongest(model for model, config in members if _is_frozen(config))
        if frozen is not None:
            open_ones = [model for model, config in members if _is_end_to_end(config)]
            open_ones.sort(key=lambda model: (not model.starts_warm, -strength(model)))
            pairs += [Pair(model, frozen, family(members[0][1])) for model in open_ones]
    return tuple(pairs)


def _is_hidden(model: Model) -> bool:
    return model.derived is not None and model.derived["kind"] == "hidden"


def _run_of(hidden: Model, models: Sequence[Model]) -> Model | None:
    """The model whose runs' predictions, with hidden fields, these are."""
    assert hidden.derived is not None
    path = experiment(Path(hidden.derived["of"][0]))
    return next((model for model in models if experiment(model.results[0].folder) == path), None)


def _fields(models: Sequence[Model]) -> list[Question]:
    """For each hidden field (or fields) the models with and without it."""
    pairs: dict[tuple[str, ...], list[Pair]] = {}
    for model in models:
        if model.derived is not None and _is_hidden(model) and (run := _run_of(model, models)) is not None:
            pairs.setdefault(tuple(model.derived["hidden"]), []).append(Pair(run, model, run.name))
    return [
        Question("field_" + "_".join(fields), f"Is {' and '.join(map(with_article, fields))} worth it?", _ranked(own))
        for fields, own in pairs.items()
    ]


def _late_fusion(models: Sequence[Model]) -> tuple[Pair, ...]:
    """The strongest model of text and image, and the strongest late fusion."""
    joint = _strongest(
        model for model in models if (config := trained(model)) and config.uses_text and config.uses_poster
    )
    fused = _strongest(model for model in models if model.derived and model.derived["kind"] == "late fusion")
    return () if joint is None or fused is None else (Pair(joint, fused, ""),)


def _pretrained(models: Sequence[Model]) -> tuple[Pair, ...]:
    """The strongest model with a pretrained text encoder and the strongest recurrent one, with images and without."""
    pairs = []
    for poster in (True, False):
        there = [
            (model, config.text)
            for model in models
            if (config := trained(model)) and config.uses_text and config.uses_poster == poster
        ]
        one = _strongest(model for model, text in there if text.pretrained is not None)
        other = _strongest(model for model, text in there if text.arch in RECURRENT)
        if one is not None and other is not None:
            pairs.append(Pair(one, other, f"text with {one.declared.first('image')}" if poster else "text alone"))
    return _ranked(pairs)


def _ranked(pairs: Iterable[Pair]) -> tuple[Pair, ...]:
    """The pairs by the better micro F1 of the two on val, the highest first."""
    return tuple(sorted(pairs, key=lambda pair: -max(strength(pair.one), strength(pair.other))))
