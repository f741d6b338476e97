"""The tasks of a study: the command of each, its folder, and the check whether it is done."""

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from genre_dist.baselines import FILE as BASELINE
from genre_dist.catalogue.catalogue import movies_file
from genre_dist.compare.alike import differing
from genre_dist.config import Config, derive_batches
from genre_dist.config.continuing import settings as flat
from genre_dist.config.files import load_config, parse_config
from genre_dist.config.run import CONFIG, METADATA, WEIGHTS
from genre_dist.stream.manifest import FILE as MANIFEST
from genre_dist.stream.manifest import load_manifest
from genre_dist.study.study_file import StagePlan, Study
from genre_dist.validation import read_json

REPORT = ("comparison.json", "index.html")


class Task(NamedTuple):
    """One process of the chain."""

    name: str
    command: Callable[[], list[str]]
    """Gives the command of one process when the task starts; torchrun starts several ranks."""
    processes: int
    run: Path | None
    """A training run's folder; None for other tasks."""
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


def tasks(study: Study, folder: Path, out: Path, group: str) -> list[Task]:
    """The tasks of a study in order; `folder` is that of its YAML.

    Raises ValueError, as training would, for a stage whose configuration is wrong.
    """
    runs = [stage(study, folder, out, group, name, seed) for seed in study.seeds for name in study.stages]
    shards = Path(study.data.shards)
    data = list(_data(study))
    packed = tuple(task.name for task in data)
    compared = [
        *([_baselines(shards, out / "baselines", study.baselines, packed)] if study.baselines else []),
        *(
            Task(
                each.run.name,
                partial(list, [sys.executable, "-m", "genre_dist.train", *each.options]),
                each.processes,
                each.run,
                _trained(each, shards),
                (*packed, *each.after),
            )
            for each in runs
        ),
    ]
    return [
        *data,
        *([_explore(shards, out / "explore", packed)] if study.explore else []),
        *compared,
        _compare(study, [each.run for each in runs], out, tuple(task.name for task in compared)),
    ]


def stage(study: Study, folder: Path, out: Path, group: str, name: str, seed: int) -> Stage:
    """A stage: its options for training and the configuration that they give."""
    plan: StagePlan = study.stages[name]
    run = out / f"{name}-seed{seed}"
    settings = {"tracking.group": group} | dict(flat(study.overrides)) | dict(flat(plan.overrides))
    sources = {encoder: f"{source}-seed{seed}" for encoder, source in plan.weights.items()}
    for encoder, source in sources.items():
        settings[f"model.{encoder}.weights"] = str(out / source / WEIGHTS)
    settings |= {"data.shards": study.data.shards, "run.dir": str(run), "run.seed": seed}
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
    return Stage(name, run, options, config, processes, tuple(sources.values()))


def _verb(*arguments: str) -> Callable[[], list[str]]:
    return partial(list, [sys.executable, "-m", "genre_dist.cli", *arguments])


def _data(study: Study) -> Iterator[Task]:
    data = study.data
    if data.catalogue is None:
        return
    catalogue, shards = Path(data.catalogue), Path(data.shards)

    def packed() -> bool:
        return (shards / MANIFEST).is_file()

    if data.sample:
        command = _verb("sample", "--films", str(data.sample), "--seed", "0", "--out", data.catalogue)
        yield Task("films", command, 1, None, lambda: packed() or movies_file(catalogue).is_file())
    options = [part for key, value in data.pack.items() for part in (f"--{key}", str(value))]
    command = _verb("pack", "--catalogue", data.catalogue, "--out", data.shards, *options)
    yield Task("shards", command, 1, None, packed, ("films",) if data.sample else ())


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


def _trained(stage: Stage, shards: Path) -> Callable[[], bool]:
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
            stage.run / METADATA, "data_fingerprint", load_manifest(shards).fingerprint
        )

    return done


def _compare(study: Study, runs: list[Path], out: Path, after: tuple[str, ...]) -> Task:
    report = out / "report"

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
