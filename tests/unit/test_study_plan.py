"""A study's YAML: every mistake is named before anything runs; what is done is skipped, what differs is refused."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
import yaml

from genre_dist.cli import _parser
from genre_dist.config.files import save_config
from genre_dist.metrics.derived import MODEL, PREDICTIONS, checksums
from genre_dist.sealed import write_sealed
from genre_dist.stream.manifest import load_manifest
from genre_dist.study.running import started_as
from genre_dist.study.study_file import Study, load_study
from genre_dist.study.tasks import REPORT, Task, differing, stage, tasks

CONFIGS = Path(__file__).parents[2] / "configs"
STUDIES = ("study.yaml", "study_small.yaml", "study_films.yaml")
SMALL = CONFIGS / "study_small.yaml"


def chain(study: Study, out: Path = Path("out")) -> list[Task]:
    return tasks(study, CONFIGS, out, "group")


@pytest.mark.parametrize("name", STUDIES)
def test_the_studies_we_ship_run_the_whole_chain(name: str) -> None:
    study = load_study(CONFIGS / name, ["seeds=[4]"])  # reading a configuration takes its time
    planned = chain(study)
    found = [task.name for task in planned]
    data = ["films"] * bool(study.data.sample) + ["shards", *(f"shards-{name}" for name in study.data.packings)]
    assert found[: len(data) + 1] == [*data, "explore"]
    assert found[-1] == "report"
    assert {f"{name}-seed4" for name in study.stages} <= set(found)
    for task in planned:
        if task.run is None and task.name != "report":  # training's options were parsed, these not yet
            _parser().parse_args(task.command()[3:])
    assert load_study(CONFIGS / name).seeds in ((0,), (0, 1, 2))


def test_every_stage_runs_once_for_each_seed() -> None:
    few = ["seeds=[5, 2]", "stages.combined_frozen=null", "stages.end_to_end_warm=null", "stages.end_to_end=null"]
    trained = [task.name for task in chain(load_study(SMALL, few)) if task.run]
    assert trained == ["text-seed5", "poster-seed5", "text-seed2", "poster-seed2"]


@pytest.mark.parametrize(
    ("name", "ways"),
    [
        ("study.yaml", ("combined_frozen", "end_to_end_warm")),
        ("study_small.yaml", ("combined_frozen", "end_to_end_warm")),
        ("study_films.yaml", ("lstm_poster_frozen", "lstm_poster")),
        ("study_films.yaml", ("minilm_poster_frozen", "minilm_poster")),
    ],
)
def test_frozen_and_warm_start_alike_and_differ_in_what_is_frozen_and_in_learning_rates(
    name: str, ways: tuple[str, str]
) -> None:
    study = load_study(CONFIGS / name)
    frozen, warm = (dataclasses.asdict(stage(study, CONFIGS, Path("out"), "g", way, 1).config) for way in ways)
    assert [frozen["model"][part]["frozen"] for part in ("text", "poster")] == [True, True]
    assert [warm["model"][part]["frozen"] for part in ("text", "poster")] == [False, False]
    assert frozen["model"]["text"]["weights"].endswith("seed1/model.safetensors")
    for config in (frozen, warm):
        for part in ("text", "poster"):
            del config["model"][part]["frozen"]
        for rate in ("text_lr", "poster_lr", "text_layer_decay"):
            del config["optim"][rate]
        # an encoder that is frozen stays in eval mode
        del config["model"]["text"]["dropout"], config["model"]["text"]["inner_dropout"]
        del config["model"]["poster"]["batch_norm"]
        del config["run"]["dir"]
    assert frozen == warm


def test_a_stage_takes_the_weights_of_its_own_seed_and_its_overrides_win() -> None:
    changes = ["seeds=[3]", "overrides.optim.heads_lr=0.5", "stages.text.overrides.optim.heads_lr=0.25"]
    study = load_study(SMALL, changes)
    text, warm = (stage(study, CONFIGS, Path("o"), "g", name, 3).config for name in ("text", "end_to_end_warm"))
    assert (text.optim.heads_lr, warm.optim.heads_lr) == (0.25, 0.5)
    assert warm.model.text.weights == str(Path("o/text-seed3/model.safetensors"))
    assert warm.model.poster.weights == str(Path("o/poster-seed3/model.safetensors"))
    assert (warm.run.seed, warm.run.dir, warm.tracking.group) == (3, "o/end_to_end_warm-seed3", "g")


def test_off_is_a_word_and_not_a_truth_value() -> None:
    study = load_study(SMALL, ["overrides.tracking.wandb=off", "explore=false"])
    assert stage(study, CONFIGS, Path("o"), "g", "text", 0).config.tracking.wandb == "off"
    assert study.explore is False


def test_several_ranks_are_started_by_torchrun() -> None:
    task = Task("poster-seed0", lambda: ["python", "-m", "genre_dist.train"], 2, Path("run"), lambda: False)
    launcher = ["python", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    assert started_as(task) == [*launcher, "-m", "genre_dist.train"]
    assert started_as(task._replace(processes=1)) == ["python", "-m", "genre_dist.train"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("stage.text.processes=2", "`stage`; did you mean `stages`?"),
        ("data.shard=x", "`data.shard`; did you mean `shards`?"),
        ("stages.text.override=x", "did you mean `overrides`?"),
        ("stages.text.overrides.model.text.hiden=3", "did you mean `model.text.hidden`?"),
        ("overrides.model.text.hidden=many", "model.text.hidden"),
        ("stages.end_to_end.weights.text=texts", "`texts` is no stage before it"),
        ("stages.end_to_end.weights.texts=text", "did you mean `text`?"),
        ("stages.poster.weights.text=text", "has no text encoder"),
        ("stages.text.config=text_lstn.yaml", "no such configuration file"),
        ("stages.text.processes=7", "stages.text: 7 ranks cannot share"),
        ("stages=[]", "stages: Input should be an object, found []"),
        ("seeds=[]", "seeds: "),
        ("seeds=[1, 1]", "seeds must differ"),
        ("seeds=3", "seeds: Input should be a valid array, found 3"),
        ("seeds=[one]", "seeds.0: Input should be a valid integer"),
        ("seeds=[-1]", "seeds.0: Input should be greater than or equal to 0"),
        ("baselines=[[svm_bow]]", "baselines.0: Input should be a valid string, found ['svm_bow']"),
        ("overrides=&a {x: *a}", "Circular reference"),
        ("group=[: {", "--set group: not YAML"),
        ("group=" + 4000 * "[", "--set group: not YAML"),
        ("stages.a/b.config=text_lstm.yaml", "stages.a/b: the name is that of a folder, without /"),
        ("processes=two", "processes: Input should be a valid integer, found 'two'"),
        ("explore=1", "explore: Input should be a valid boolean, found 1"),
        ("baselines=[svm_bow, svm_tfdif]", "did you mean `svm_tfidf`?"),
        ("split=testing", "split: Input should be 'train', 'val' or 'test', found 'testing'"),
        ("data.catalogue=null", "data.catalogue is missing"),
        ("data.packings.big={shards: shards/study_small}", "data.packings.big.shards: shards/study_small is that of"),
        ("data.packings.big={shards: x, packs: {}}", "did you mean `pack`?"),
        ("data.packings.big={pack: {size: 9}}", "data.packings.big.shards: Field required"),
        ("data.packings={a/b: {shards: x}}", "data.packings.a/b: a packing's name is one of a file"),
        ("stages.text.packing=big", "stages.text.packing: there are no data.packings"),
        ("hidden.blind={of: texts, hide: poster}", "hidden.blind.of: `texts` is no stage; those are text, poster"),
        ("hidden.blind={of: text}", "hidden.blind.hide: Field required"),
        (
            "hidden.blind={of: end_to_end, hide: title}",
            "hidden.blind: title cannot be hidden: the model takes",
        ),
        (
            "hidden.blind={of: text, hide: overview}",
            "overview cannot be hidden: the model takes no other",
        ),
        ("hidden.text={of: end_to_end, hide: poster}", "hidden.text: stages.text has the same name"),
        ("hidden.blind={of: end_to_end, hides: poster}", "did you mean `hide`?"),
        ("fused.late={of: [text, posters]}", "fused.late.of: `posters` is none of stages and hidden: text, poster"),
        ("fused={one: {of: [text, poster]}, two: {of: [one, text]}}", "fused.two.of: `one` is none of stages"),
        ("fused.late={of: [text]}", "fused.late.of: a fusion needs two runs"),
        ("fused.late={of: [text, text]}", "fused.late.of: names must differ"),
        ("fused.report={of: [text, poster], seeds: together}", "fused.report: the study has report"),
        ("fused.text-seed0={of: [text, poster], seeds: together}", "fused.text-seed0: stages.text has text-seed0"),
        ("fused.late={of: [text, poster], seeds: all}", "fused.late.seeds: Input should be 'each' or 'together'"),
        ("data.shards=null", "data.shards: Field required"),
        ("seeds", "KEY=VALUE"),
    ],
)
def test_a_mistake_is_named(change: str, named: str) -> None:
    few = ["stages.combined_frozen=null", "stages.end_to_end_warm=null"]
    with pytest.raises(ValueError, match=r".") as error:
        chain(load_study(SMALL, [*few, change]))
    assert named in str(error.value)
    assert "\n" not in str(error.value)


def test_a_mistake_about_several_packings_is_named() -> None:
    two = ["data.packings.big={shards: x}", "data.packings.small={shards: y}"]
    for change, named in (
        ("stages.text.packing=bigger", "unknown key `data.packings.bigger`; did you mean `big`?"),
        ("data.packings.small={shards: x}", "data.packings.small.shards: x is that of data.packings.big"),
        ("stages.shards={config: text_lstm.yaml}", "stages.shards: data.packings.seed0 has shards-seed0"),
    ):
        with pytest.raises(ValueError, match=r".") as error:
            load_study(SMALL, [*two, "data.packings.seed0={shards: z}", change])
        assert named in str(error.value)


DERIVED = (
    *("data.packings.tokens={shards: shards/tokens, pack: {size: 8, require: null}}", "stages.text.packing=tokens"),
    *("stages.combined_frozen=null", "stages.end_to_end_warm=null", "seeds=[5, 2]"),
    "hidden.blind={of: end_to_end, hide: poster}",
    "fused={late: {of: [text, blind]}, all: {of: [text, end_to_end], seeds: together}}",
)


def test_further_packings_are_packed_with_their_options_over_the_datas_and_trained_on() -> None:
    study = load_study(SMALL, DERIVED)
    named = {task.name: task for task in chain(study)}
    options = named["shards-tokens"].command()[3:]
    assert options[options.index("--out") + 1] == "shards/tokens"
    assert options[options.index("--size") + 1] == "8"
    assert options[options.index("--shard_size") + 1] == "200"
    assert "--require" not in options
    assert "--require" in named["shards"].command()
    _parser().parse_args(options)
    assert named["shards-tokens"].after == ("films",)
    assert stage(study, CONFIGS, Path("o"), "g", "text", 5).config.data.shards == "shards/tokens"
    assert stage(study, CONFIGS, Path("o"), "g", "poster", 5).config.data.shards == study.data.shards
    assert (named["text-seed5"].after, named["poster-seed5"].after) == (("shards-tokens",), ("shards",))
    assert study.data.shards in named["explore"].command()
    assert study.data.shards in named["baselines"].command()


def test_hidden_fields_and_fusions_follow_their_stages_and_join_the_comparison() -> None:
    named = {task.name: task for task in chain(load_study(SMALL, DERIVED))}
    assert list(named)[-6:] == ["blind-seed5", "blind-seed2", "late-seed5", "late-seed2", "all", "report"]
    assert named["blind-seed2"].after == ("end_to_end-seed2",)
    assert named["late-seed2"].after == ("text-seed2", "blind-seed2")
    seeds = ("text-seed5", "text-seed2", "end_to_end-seed5", "end_to_end-seed2")
    assert named["all"].after == seeds
    assert named["blind-seed2"].command()[3:] == (
        ["evaluate", "out/end_to_end-seed2", "--hide", "poster", "--out", "out/blind-seed2", "--split", "test"]
    )
    assert named["late-seed2"].command()[3:] == (
        ["fuse", "out/text-seed2", "out/blind-seed2", "--out", "out/late-seed2", "--weights", "fit"]
    )
    assert named["all"].command()[3:-4] == ["fuse", *(f"out/{seed}" for seed in seeds)]
    assert named["all"].command()[-1] == "equal"
    for name in ("blind-seed2", "late-seed2", "all"):
        _parser().parse_args(named[name].command()[3:])
    report = named["report"].command()
    assert [part for part in report if part.startswith("out/") and "report" not in part][-5:] == [
        *("out/blind-seed5", "out/blind-seed2", "out/late-seed5", "out/late-seed2", "out/all")
    ]


CHANGES = ("", "hidden.blind.hide=overview", "split=val", "fused.late.of=[blind, text]")


@pytest.mark.slow
def test_what_is_derived_is_done_until_a_file_it_was_made_from_or_the_study_changes(tmp_path: Path) -> None:
    planned = {change: chain(load_study(SMALL, [*DERIVED, *filter(None, [change])]), tmp_path) for change in CHANGES}

    def done(name: str, change: str = "") -> bool:
        return next(task for task in planned[change] if task.name == name).done()

    def write(folder: Path, kind: str, made_from: list[dict[str, str]], hidden: list[str]) -> None:
        folder.mkdir(exist_ok=True)
        derived = {"kind": kind, "title": "T", "of": [], "hidden": hidden, "weights": None, "data_fingerprint": None}
        write_sealed(folder / "derived.json", derived | {"made_from": made_from})

    run, text, blind = (tmp_path / f"{name}-seed5" for name in ("end_to_end", "text", "blind"))
    for folder, names in ((run, MODEL), (text, PREDICTIONS), (blind, PREDICTIONS)):
        folder.mkdir()
        for name in names:
            (folder / name).write_text(f"{folder.name} {name}")
    assert not done("blind-seed5")
    write(blind, "hidden", [checksums(run, MODEL)], ["poster"])
    assert not done("blind-seed5")  # not evaluated on the study's split
    (blind / "metrics-test.json").touch()
    assert done("blind-seed5")
    assert not done("blind-seed5", "hidden.blind.hide=overview")
    assert not done("blind-seed5", "split=val")
    assert not done("late-seed5")
    write(tmp_path / "late-seed5", "late fusion", [checksums(one, PREDICTIONS) for one in (text, blind)], [])
    assert done("late-seed5")
    assert not done("late-seed5", "fused.late.of=[blind, text]")
    (text / PREDICTIONS[0]).write_text("evaluated again")
    assert not done("late-seed5")
    (run / MODEL[1]).write_text("trained on")
    assert not done("blind-seed5")


@pytest.mark.parametrize("content", ["a: [", "- 1", "", "a: \x07", "a: 2020-13-45", "a: !!python/name:os.system x"])
def test_a_file_that_is_no_study_is_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=str(path)):
        load_study(path)
    with pytest.raises(ValueError, match="no such study"):
        load_study(tmp_path / "nowhere.yaml")


@pytest.mark.slow
def test_a_run_is_done_when_it_is_whole_and_of_the_same_settings_and_data(sample_shards: Path, tmp_path: Path) -> None:
    def text(*changes: str) -> Task:
        few = [f"stages.{name}=null" for name in ("poster", "combined_frozen", "end_to_end_warm", "end_to_end")]
        study = load_study(SMALL, [f"data.shards={sample_shards}", *few, *changes])
        return next(task for task in chain(study, tmp_path) if task.name == "text-seed0")

    run = tmp_path / "text-seed0"
    assert not text().done()
    run.mkdir()
    study = load_study(SMALL, [f"data.shards={sample_shards}"])
    config = stage(study, CONFIGS, tmp_path, "g", "text", 0).config
    save_config(config, run / "config.yaml")
    assert not text().done()  # begun, not exported
    fingerprint = load_manifest(sample_shards).fingerprint
    (run / "model.json").write_text(json.dumps({"data_fingerprint": fingerprint}))
    assert text().done()
    assert text("overrides.data.workers=4", "overrides.train.log_every_steps=9").done()  # without effect
    assert text("overrides.model.poster.batch_norm=eval").done()  # of an encoder that it does not have
    assert not text("overrides.train.epochs=9").done()  # to be trained on
    with pytest.raises(ValueError, match=r"model\.text\.hidden=48, the study asks for 64"):
        text("overrides.model.text.hidden=64").done()
    (run / "model.json").write_text(json.dumps({"data_fingerprint": "of other shards"}))
    assert not text().done()


def test_a_report_that_is_older_than_one_of_its_runs_is_made_again(tmp_path: Path) -> None:
    few = [f"stages.{name}=null" for name in ("poster", "combined_frozen", "end_to_end_warm", "end_to_end")]
    study = load_study(SMALL, ["seeds=[0, 1]", *few])
    report = next(task for task in chain(study, tmp_path) if task.name == "report")
    evaluations = [tmp_path / f"text-seed{seed}" / f"metrics-{study.split}.json" for seed in study.seeds]
    pages = [tmp_path / "report" / name for name in REPORT]
    for second, path in enumerate([*evaluations, *pages], start=1):
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.utime(path, (second, second))
    assert report.done()
    os.utime(evaluations[1], (9, 9))
    assert not report.done()
    os.utime(evaluations[1], (2, 2))
    pages[1].unlink()
    assert not report.done()


def test_a_file_of_weights_is_the_same_by_whatever_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    study = load_study(SMALL)
    one = stage(study, CONFIGS, Path("out"), "g", "combined_frozen", 0).config
    other = stage(study, CONFIGS, tmp_path / "out", "g", "combined_frozen", 0).config
    assert differing(one, other) is None
    elsewhere = stage(study, CONFIGS, tmp_path / "elsewhere", "g", "combined_frozen", 0).config
    assert differing(one, elsewhere) is not None


def test_nested_and_dotted_settings_mean_the_same(tmp_path: Path) -> None:
    told = yaml.safe_load(SMALL.read_text())
    dotted, nested = tmp_path / "dotted.yaml", tmp_path / "nested.yaml"
    for path, overrides in (
        (dotted, {"model.text.hidden": 9, "model.text.layers": 2}),
        (nested, {"model": {"text": {"hidden": 9, "layers": 2}}}),
    ):
        path.write_text(yaml.safe_dump(told | {"overrides": overrides}, sort_keys=False))
    first, second = (stage(load_study(path), CONFIGS, Path("o"), "g", "text", 0).config for path in (dotted, nested))
    assert first == second
