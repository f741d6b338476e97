"""The tasks of a study: the command of each, its folder, and the check whether it is done."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from genre_dist.baselines import FILE as BASELINE
from genre_dist.catalogue.catalogue import movies_file, samples_file
from genre_dist.compare.alike import differing
from genre_dist.config import Config, derive_batches
from genre_dist.config.continuing import settings as flat
from genre_dist.config.files import load_config, parse_config
from genre_dist.config.run import CONFIG, METADATA, WEIGHTS
from genre_dist.metrics.derived import MODEL, PREDICTIONS, is_made_from
from genre_dist.metrics.evaluation_files import metrics_file
from genre_dist.packing.catalogue_rows import schema_of
from genre_dist.schema import Schema
from genre_dist.stream.manifest import FILE as MANIFEST
from genre_dist.stream.manifest import load_manifest
from genre_dist.study.study_file import FusedPlan, HiddenPlan, StagePlan, Study
from genre_dist.validation import read_json

REPORT = ("comparison.json", "index.html")


class Task(NamedTuple):
    """One process of the chain."""

    name: str
    command: Callable[[], list[str]]
    """Gives the command of one process when the task starts; torchrun starts several ranks."""
    processes: int
    run: Path | None
    """The folder of a training run, or of an evaluation; None for tasks that take no GPU."""
    done: Callable[[], bool]
    """Called before the task starts. Raises ValueError if the folder belongs to another study."""
    after: tuple[str, ...] = ()
    """Names of the tasks that must finish first."""


class Stage(NamedTuple):
    """A training run of one seed."""

    name: str
    run: Path
    options: list[str]
    """The options of genre_dist.train."""
    config: Config
    processes: int
    after: tuple[str, ...]
    """Names of the runs whose encoders it starts from."""
    shards: Path


def tasks(study: Study, folder: Path, out: Path, group: str) -> list[Task]:
    """The tasks of a study in order; `folder` is that of its YAML.

    Raises ValueError, as training would, for a stage whose configuration is wrong, and for a field to hide that its
    model does not take.
    """
    runs = [stage(study, folder, out, group, name, seed) for seed in study.seeds for name in study.stages]
    _check_hidden(study, {run.name: run for run in runs})
    shards = Path(study.data.shards)
    data = list(_data(study))
    packed = _packed_by(study, None)
    compared = [
        *([_baselines(shards, out / "baselines", study.baselines, packed)] if study.baselines else []),
        *(
            Task(
                each.run.name,
                partial(list, [sys.executable, "-m", "genre_dist.train", *each.options]),
                each.processes,
                each.run,
                _trained(each),
                (*_packed_by(study, study.stages[each.name].packing), *each.after),
            )
            for each in runs
        ),
        *_derived(study, out),
    ]
    return [
        *data,
        *([_explore(shards, out / "explore", packed)] if study.explore else []),
        *compared,
        _compare(study, out, tuple(task.name for task in compared)),
    ]


def stage(study: Study, folder: Path, out: Path, group: str, name: str, seed: int) -> Stage:
    """A stage: its options for training and the configuration that they give."""
    plan: StagePlan = study.stages[name]
    run = out / f"{name}-seed{seed}"
    settings = {"tracking.group": group} | dict(flat(study.overrides)) | dict(flat(plan.overrides))
    sources = {encoder: f"{source}-seed{seed}" for encoder, source in plan.weights.items()}
    for encoder, source in sources.items():
        settings[f"model.{encoder}.weights"] = str(out / source / WEIGHTS)
    shards = study.data.all_packings[plan.packing].shards
    settings |= {"data.shards": shards, "run.dir": str(run), "run.seed": seed}
    options = ["--config", str(folder / plan.config)]
    for key, value in settings.items():
        options += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
    processes = plan.processes or study.processes
    try:
        if not (folder / plan.config).is_file():
            raise ValueError(f"{folder / plan.config}: no such configuration file")
        config = parse_config(options).config
        derive_batches(config.data, processes)
        for encoder in plan.weights:
            if getattr(config.model, encoder).arch == "none":
                raise ValueError(f"weights.{encoder}: the stage has no {encoder} encoder")
    except ValueError as error:
        raise ValueError(f"stages.{name}: {error}") from None
    return Stage(name, run, options, config, processes, tuple(sources.values()), Path(shards))


def _verb(*arguments: str) -> Callable[[], list[str]]:
    return partial(list, [sys.executable, "-m", "genre_dist.cli", *arguments])


def _data(study: Study) -> Iterator[Task]:
    data = study.data
    if data.catalogue is None:
        return
    catalogue = Path(data.catalogue)
    packed = {
        name: partial(Path.is_file, Path(packing.shards, MANIFEST)) for name, packing in data.all_packings.items()
    }
    if data.sample:
        command = _verb("sample", "--films", str(data.sample), "--seed", "0", "--out", data.catalogue)

        def is_needless() -> bool:
            return movies_file(catalogue).is_file() or all(is_packed() for is_packed in packed.values())

        yield Task("films", command, 1, None, is_needless)
    for name, packing in data.all_packings.items():
        options = [part for key, value in packing.pack.items() for part in (f"--{key}", str(value))]
        command = _verb("pack", "--catalogue", data.catalogue, "--out", packing.shards, *options)
        yield Task(_task_of(name), command, 1, None, packed[name], ("films",) if data.sample else ())


def _task_of(packing: str | None) -> str:
    """The name of the task that packs."""
    return "shards" if packing is None else f"shards-{packing}"


def _packed_by(study: Study, packing: str | None) -> tuple[str, ...]:
    """The tasks that whatever reads a packing waits for; none where the shards are there already."""
    return (_task_of(packing),) if study.data.catalogue is not None else ()


def _explore(shards: Path, out: Path, after: tuple[str, ...]) -> Task:
    def done() -> bool:
        return _has_value(out / "explore.json", "data_fingerprint", load_manifest(shards).fingerprint)

    return Task("explore", _verb("explore", str(shards), "--out", str(out)), 1, None, done, after)


def _baselines(shards: Path, out: Path, kinds: tuple[str, ...], after: tuple[str, ...]) -> Task:
    def done() -> bool:
        manifest = load_manifest(shards)
        possible = [kind for kind in kinds if kind != "svm_vectors" or manifest.text["vectors"]]
        return all(_has_value(out / kind / BASELINE, "data_fingerprint", manifest.fingerprint) for kind in possible)

    command = _verb("baseline", str(shards), "--out", str(out), "--folders", "--kind", ",".join(kinds))
    return Task("baselines", command, 1, None, done, after)


def _trained(stage: Stage) -> Callable[[], bool]:
    def done() -> bool:
        if not (stage.run / CONFIG).is_file():
            return False
        existing = load_config(stage.run / CONFIG)
        if difference := differing(existing, stage.config):
            key, old, new = difference
            raise ValueError(
                f"{stage.run} was trained with {key}={old}, the study asks for {new}: change the study, choose another "
                "--out, or remove the folder"
            )
        length, wanted = ((config.train.steps, config.train.epochs) for config in (existing, stage.config))
        return length == wanted and _has_value(
            stage.run / METADATA, "data_fingerprint", load_manifest(stage.shards).fingerprint
        )

    return done


def _check_hidden(study: Study, stages: Mapping[str, Stage]) -> None:
    """Raise ValueError if a model cannot do without a field that is to be hidden, as far as its fields can be seen."""
    for name, plan in study.hidden.items():
        of = stages[plan.of]
        schema = _declared(study, of.shards)
        if schema is not None:
            try:
                of.config.model.check_hiding(plan.hide, schema)
            except ValueError as error:
                raise ValueError(f"hidden.{name}: {error}") from None


def _declared(study: Study, shards: Path) -> Schema | None:
    """What is declared of the data; None before there are shards or a catalogue."""
    if (shards / MANIFEST).is_file():
        return load_manifest(shards).declared
    if study.data.catalogue is None:
        return None
    catalogue = Path(study.data.catalogue)
    is_there = movies_file(catalogue).is_file() or samples_file(catalogue).is_file()
    return schema_of(catalogue) if is_there or study.data.sample else None


def _derived(study: Study, out: Path) -> Iterator[Task]:
    """The evaluations with a field hidden, then the fusions."""
    for name, hidden in study.hidden.items():
        for folder, run in zip(study.folders(name), study.folders(hidden.of), strict=True):
            yield _hidden(study, hidden, out / folder, out / run)
    for name, fused in study.fused.items():
        runs = [[out / folder for folder in study.folders(member)] for member in fused.of]  # [members][seeds]
        each = list(zip(*runs, strict=True)) if fused.seeds == "each" else [chain.from_iterable(runs)]
        for folder, members in zip(study.folders(name), each, strict=True):
            yield _fused(fused, out / folder, list(members))


def _hidden(study: Study, plan: HiddenPlan, folder: Path, run: Path) -> Task:
    """The evaluation of a run with a field hidden."""

    def done() -> bool:
        figures = metrics_file(folder, study.split)
        return figures.is_file() and is_made_from(folder, [run], MODEL, kind="hidden", hidden=[plan.hide])

    command = _verb("evaluate", str(run), "--hide", plan.hide, "--out", str(folder), "--split", study.split)
    return Task(folder.name, command, 1, folder, done, (run.name,))


def _fused(plan: FusedPlan, folder: Path, runs: list[Path]) -> Task:
    """The fusion of evaluated runs."""
    kind, weights = ("late fusion", "fit") if plan.seeds == "each" else ("ensemble", "equal")
    command = _verb("fuse", *map(str, runs), "--out", str(folder), "--weights", weights)
    done = partial(is_made_from, folder, runs, PREDICTIONS, kind=kind)
    return Task(folder.name, command, 1, None, done, tuple(run.name for run in runs))


def _compare(study: Study, out: Path, after: tuple[str, ...]) -> Task:
    report = out / "report"
    runs = [out / f"{name}-seed{seed}" for seed in study.seeds for name in study.stages]
    runs += [out / folder for name in (*study.hidden, *study.fused) for folder in study.folders(name)]

    def compared() -> list[Path]:
        """The runs to compare; a baseline without its word vectors was left out."""
        baselines = [out / "baselines" / kind for kind in study.baselines]
        return [*(run for run in baselines if (run / BASELINE).is_file()), *runs]

    def command() -> list[str]:
        return _verb("compare", *map(str, compared()), "--split", study.split, "--out", str(report))()

    def done() -> bool:
        made = [path.stat().st_mtime_ns for path in map(report.joinpath, REPORT) if path.is_file()]
        used = [(run / f"metrics-{study.split}.json").stat().st_mtime_ns for run in compared()]
        return len(made) == len(REPORT) and min(made) > max(used)

    return Task("report", command, 1, None, done, after)


def _has_value(path: Path, key: str, value: Any) -> bool:
    """Whether a JSON file, which its task writes last, exists and has this value."""
    try:
        return bool(read_json(dict[str, Any], path, "").get(key) == value)
    except (OSError, ValueError):
        return False  # a missing or damaged file means: not done
