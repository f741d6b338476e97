"""The model card of an exported model, README.md: what it is, how it is used, what it was trained on, how well it does.

Every statement comes from the run's files, or from the shards if they are in reach; what is unknown is `not stated`.
"""

import shlex
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml

from genre_dist import __version__
from genre_dist.config import Config
from genre_dist.config.run import CONFIG
from genre_dist.config.trust import refuse_foreign_code
from genre_dist.export.measured import RESAMPLES, Measured, measure, read_record
from genre_dist.export.origins import LITE, NOT_STATED, Origin, origins
from genre_dist.metrics.thresholds import COMMON_FILMS, load_thresholds
from genre_dist.models.classifier import count_parameters
from genre_dist.pages.rendering import render_markdown
from genre_dist.planner.planned_model import Vocabulary, meta_model
from genre_dist.printable import printable
from genre_dist.schema import TMDB, Field, plural
from genre_dist.splits import rule_of
from genre_dist.stream.manifest import SPLITS, Manifest
from genre_dist.training.freezing import thaw_all_that_ever_trains
from genre_dist.training.model_files import ModelMetadata, with_own_architecture

FILE = "README.md"
FEW_SAMPLES, LOW_F1 = 50, 0.3
"""A label of fewer test samples is called badly measured, one of lower F1 badly predicted."""
_TASKS: dict[tuple[str, ...], str] = {
    ("text",): "text-classification",
    ("image",): "image-classification",
    ("numbers",): "tabular-classification",
}
"""The hub's name of a task, by the kinds of fields that a model reads; it has none for several kinds."""
_SHOWN = {"micro_f1": "micro F1", "macro_f1": "macro F1", "mean_average_precision": "mAP"}
_SHOWN_OF_ONE = {"accuracy": "accuracy", "macro_f1": "macro F1", "mean_average_precision": "mAP"}


class Exported(NamedTuple):
    """What a card is about."""

    run: Path
    config: Config
    metadata: ModelMetadata
    checkpoint: str | None
    """Which checkpoint the weights are of; None for those of the finished model."""
    manifest: Manifest | None
    """Of the data it was trained on, if that is in reach."""


def model_card(exported: Exported, name: str, licence: str | None) -> str:
    """The card's Markdown, with the front matter that model hubs read.

    `licence` is what the user states of the whole. Raises ValueError if files of the run are damaged, or do not belong
    to its model.
    """
    run, config, metadata, checkpoint, manifest = exported
    name = printable(name)
    declared = metadata.declared
    record = read_record(run, metadata.step)
    found = [] if checkpoint else [measure(run, split, metadata, record) for split in ("val", "test")]
    measured = [one for one in found if one is not None]
    fields, begun = config.model.fields(declared), origins(config, metadata.text)
    chooses_many = declared.labels.choose == "many"
    names = [genre.name for genre in metadata.genres]
    thresholds = None if checkpoint or not chooses_many else load_thresholds(run, names)
    parameters = _parameters(run, config, metadata)
    shown = _SHOWN if chooses_many else _SHOWN_OF_ONE
    return render_markdown(
        "model_card.md",
        front=_front_matter(name, licence, fields, begun, measured, shown, metadata),
        name=name,
        licence=licence,
        config=config,
        metadata=metadata,
        declared=declared,
        is_film=declared == TMDB,
        labels=plural(declared.label),
        chooses_many=chooses_many,
        fields=fields,
        checkpoint=checkpoint,
        parameters=parameters,
        origins=begun,
        command=_command(fields, metadata, config),
        extras=_extras(config),
        record=record,
        at_step=record.evaluated.get(("val", metadata.step)),
        manifest=manifest,
        splits=SPLITS,
        members=config.model.members(declared),
        split_rule=rule_of(declared) if manifest is None else manifest.split_rule,
        measured=measured,
        shown=shown,
        detailed=measured[-1] if measured else None,
        thresholds=None if thresholds is None else dict(zip(names, thresholds.tolist(), strict=True)),
        probability=lambda logit: float(1 / (1 + np.exp(-logit))),
        drawn_by=COMMON_FILMS,
        few=FEW_SAMPLES,
        low=LOW_F1,
        resamples=RESAMPLES,
        genre_dist_version=__version__,
        torch_version=torch.__version__,
        not_stated=NOT_STATED,
    )


def _parameters(run: Path, config: Config, metadata: ModelMetadata) -> dict[str, tuple[int, int]] | str:
    """Trained and frozen parameters by part, or why they are not counted: the model's code or library is not here."""
    text = metadata.text
    words = Vocabulary(
        text["words"], text["dim"] if text["vectors"] else None, len(metadata.genres), "", metadata.declared
    )
    try:
        refuse_foreign_code(config, run / CONFIG)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a callable may load weights, which have no place on the meta device
            model = meta_model(replace(config, model=with_own_architecture(config.model, run)), words, on_gpu=False)
    except ValueError:
        return NOT_STATED
    if config.model.unfreezes:
        thaw_all_that_ever_trains(model, config.model)
    return count_parameters(model)


def _command(fields: tuple[Field, ...], metadata: ModelMetadata, config: Config) -> str:
    """The command that predicts one sample from all fields that the model reads."""
    words = ["genre-dist", "predict", "FOLDER"]
    for field in fields:
        if metadata.declared == TMDB:
            source = metadata.text["source"]
            texts = ("title", "overview") if source == "both" else (source,)
            of_field = [f"--{text} {shlex.quote(f'the {text} of the film')}" for text in texts]
            words += of_field if field.kind == "text" else ["--poster poster.jpg"]
        elif field.kind == "numbers":
            words.append(f"--field {field.name}={','.join('0.0' for _ in field.columns)}")
        else:
            words.append(f"--field {field.name}=" + (f"{field.name}.jpg" if field.kind == "image" else "'a text'"))
    code = config.model.poster.code if config.model.uses_poster else None
    return " ".join(words + ([] if code is None else ["--trust_code"]))


def _extras(config: Config) -> list[str]:
    """The optional dependencies of genre_dist that the model needs."""
    text, poster = config.model.text, config.model.poster
    needed = {
        "hf": text.pretrained is not None,
        "timm": poster.arch.startswith("timm:"),
        "lite": poster.arch.startswith(LITE),
    }
    return [name for name, is_needed in needed.items() if is_needed]


def _front_matter(
    name: str,
    licence: str | None,
    fields: tuple[Field, ...],
    begun: list[Origin],
    measured: list[Measured],
    shown: dict[str, str],
    metadata: ModelMetadata,
) -> str:
    """The YAML that begins the card."""
    declared, kinds = metadata.declared, tuple(dict.fromkeys(field.kind for field in fields))
    content: dict[str, Any] = {"license": licence or "other"}
    if licence is None:
        content["license_name"] = NOT_STATED
    content["library_name"] = "genre_dist"
    several = "multi-label" if declared.labels.choose == "many" else "multi-class"
    content["tags"] = ["genre_dist", "classification", several, *(["multimodal"] if len(kinds) > 1 else []), *kinds]
    if task := _TASKS.get(kinds):
        content["pipeline_tag"] = task
    if bases := [origin.base_model for origin in begun if origin.base_model]:
        content["base_model"] = bases
    content["metrics"] = list(shown)
    if results := [_result(one, shown, metadata, task or "other") for one in measured]:
        content["model-index"] = [{"name": name, "results": results}]
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _result(one: Measured, shown: dict[str, str], metadata: ModelMetadata, task: str) -> dict[str, Any]:
    """The figures of a split as model hubs read them, at fitted thresholds and at 0.5."""
    rows = []
    for measure_name, title in shown.items():
        for suffix, where in (("_fitted", ", fitted thresholds"), ("", "")):
            figure = one.measures.get(measure_name + suffix)
            if figure is not None:
                rows.append({"type": measure_name, "value": round(figure.value, 4), "name": title + where})
    dataset = {"name": f"shards {metadata.data_fingerprint}", "type": "other", "split": one.split}
    return {"task": {"type": task}, "dataset": dataset, "metrics": rows}
