"""The schema, its YAML files and the errors of a wrong configuration."""

import ast
import dataclasses
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from genre_dist import config as schema
from genre_dist.config import Config, DataConfig, derive_batches
from genre_dist.config.files import load_config, parse_config, save_config

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = [path for path in sorted(CONFIGS.glob("*.yaml")) if not path.stem.startswith("study")]  # those are chains


def flat(told: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested dictionaries."""
    for key, value in told.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def differences(first: Config, second: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> the two values, where they are not equal."""
    other = dict(flat(second.to_dict()))
    return {key: (value, other[key]) for key, value in flat(first.to_dict()) if value != other[key]}


def write(folder: Path, text: str) -> str:
    path = folder / "config.yaml"
    path.write_text(text)
    return str(path)


# --- the files in configs/


def test_the_defaults_are_the_experiment_of_end_to_end_yaml() -> None:
    assert load_config(CONFIGS / "end_to_end.yaml") == Config()
    assert parse_config([]).config == Config()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_changes_only_keys_of_the_schema_and_takes_effect_as_written(path: Path) -> None:
    written = dict(flat(yaml.safe_load(path.read_text())))
    found = dict(flat(load_config(path).to_dict()))
    defaults = dict(flat(Config().to_dict()))
    for key, value in found.items():
        expected = written.get(key, defaults[key])
        assert value == (tuple(expected) if isinstance(expected, list) else expected), key
    assert written.keys() <= found.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_begins_with_the_command_that_runs_it(path: Path) -> None:
    comment = path.read_text().split("\n\n")[0].splitlines()
    assert all(line.startswith("#") for line in comment)
    (command,) = [line.lstrip("# ") for line in comment if "-m genre_dist.train" in line and "--help" not in line]
    words = shlex.split(command)
    options = words[words.index("genre_dist.train") + 1 :]
    options[options.index("--config") + 1] = str(CONFIGS.parent / options[options.index("--config") + 1])
    assert parse_config(options).config == load_config(path)


def test_frozen_and_end_to_end_start_alike_and_differ_only_in_what_is_trained_and_how_fast() -> None:
    frozen, warm = (load_config(CONFIGS / f"{name}.yaml") for name in ("combined_frozen", "end_to_end_warm"))
    assert set(differences(frozen, warm)) <= {
        *("model.text.frozen", "model.poster.frozen", "run.dir"),
        *("optim.text_lr", "optim.poster_lr", "optim.heads_lr"),
    }
    assert frozen.model.text.frozen
    assert frozen.model.poster.frozen
    assert not warm.model.text.frozen
    assert not warm.model.poster.frozen
    assert frozen.model.text.weights is not None


# --- reading and writing


def test_a_saved_configuration_is_read_back_as_it_was(tmp_path: Path) -> None:
    options = ["--model.text.weights", "a b.safetensors", "--model.heads.hidden", "[7, 5, 3]", "--train.steps", "12"]
    options += ["--optim.clip_norm", "null", "--data.crop_scale", "[1, 1]", "--data.micro_batch", "4"]
    options += ["--run.max_minutes", "0.5", "--run.dir", "runs/null", "--optim.text_lr", "3e-5"]
    config = parse_config(options).config
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    assert config.model.heads.hidden == (7, 5, 3)
    assert config.optim.clip_norm is None
    assert config.optim.text_lr == 3e-5


def test_the_command_line_overrides_the_file_and_the_file_the_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, "data:\n  global_batch: 8\n  block: 4\noptim:\n  text_lr: 1e-4\n")
    config = parse_config(["--config", path, "--data.global_batch", "16"]).config
    assert (config.data.global_batch, config.data.block, config.data.prefetch) == (16, 4, DataConfig().prefetch)
    assert config.optim.text_lr == 1e-4  # YAML itself would call this a string


def test_printed_configuration_is_yaml_that_parses_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data.global_batch", "24", "--model.poster.arch", "vgg16"]
    with pytest.raises(SystemExit) as stopped:
        parse_config([*options, "--print_config"])
    assert stopped.value.code in (0, None)
    path = write(tmp_path, capsys.readouterr().out)
    assert parse_config(["--config", path]).config == parse_config(options).config


# --- what is wrong is named


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("data.global_bach", "data.global_batch"),
        ("model.text.hiden", "model.text.hidden"),
        ("model.poster.arc", "model.poster.arch"),
        ("optim.lr_text", "optim.text_lr"),
        ("global_batch", "data.global_batch"),
        ("train.seed", "run.seed"),
    ],
)
@pytest.mark.parametrize("where", ["command line", "YAML"])
def test_an_unknown_key_is_answered_with_the_nearest_right_one(
    wrong: str, right: str, where: str, tmp_path: Path
) -> None:
    options = [f"--{wrong}", "8"]
    if where == "YAML":
        *sections, key = wrong.split(".")
        told: dict[str, Any] = {key: 8}
        for section in reversed(sections):
            told = {section: told}
        options = ["--config", write(tmp_path, yaml.safe_dump(told))]
    with pytest.raises(ValueError, match=re.escape(f"`{wrong}`")) as caught:
        parse_config(options)
    assert f"did you mean `{right}`?" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_key_in_a_file_names_the_file_and_below_a_setting_is_what_the_setting_takes(tmp_path: Path) -> None:
    path = write(tmp_path, "model:\n  poster: {unfreze_at: {layer4: 3}}\n")
    with pytest.raises(ValueError, match=re.escape(f"{path}: unknown configuration key `model.poster.unfreze_at`")):
        parse_config(["--config", path])
    options = ["--model.poster.frozen", "true", "--model.poster.unfreeze_at.layer4", "3"]
    assert parse_config(options).config.model.poster.unfreezing == {"layer4": 3}


def test_a_key_like_no_other_is_answered_with_where_the_keys_are_listed() -> None:
    with pytest.raises(ValueError, match=r"`xyzzy`; --help lists the keys"):
        parse_config(["--xyzzy", "1"])


@pytest.mark.parametrize(
    ("yaml_text", "key"),
    [
        ("data:\n  global_batch: lots\n", "data.global_batch"),
        ("train:\n  steps: 2.5\n", "train.steps"),
        ("data:\n  micro_batch: many\n", "data.micro_batch"),
        ("data:\n  crop_scale: [0.5]\n", "data.crop_scale"),
        ("data:\n  flip: 3\n", "data.flip"),
        ("model:\n  text:\n    arch: 3.5\n", "model.text.arch"),
        ("data:\n  - 1\n", "data"),
        ("data: 3\nmodel:\n  text: {}\n", "data"),
        ("model:\n  text: 4\n", "model.text"),
        ("optim:\n  text_lr: fast\n", "optim.text_lr"),
        ("data:\n  by_length:\n", "data.by_length"),
        ("run:\n  seed: null\n", "run.seed"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_by_its_key(yaml_text: str, key: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"`{re.escape(key)}`") as caught:
        parse_config(["--config", write(tmp_path, yaml_text)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{{{", "", "- 1\n", "just words"])
def test_a_file_that_is_no_configuration_is_named(text: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=re.escape(path)):
        parse_config(["--config", path])
    with pytest.raises(ValueError, match=r"nowhere\.yaml"):
        parse_config(["--config", str(tmp_path / "nowhere.yaml")])


@pytest.mark.parametrize(
    "content",
    [
        b"data: {shards: \xff\xfe}",
        b"[" * 10_000,
        b"l0: &l0 [x, x, x, x, x, x, x, x, x]\n"
        + b"".join(b"l%d: &l%d [%s]\n" % (n, n, b", ".join([b"*l%d" % (n - 1)] * 9)) for n in range(1, 9)),
        b"a: &a [*a]\n",
        b"# " + b"x" * 200_000,
        b"data: /dev/zero\n",
        b"model: {text: config.yaml}\n",
        b"model.text: config.yaml\n",
        b"data: !!python/object/apply:os.getcwd []\n",
    ],
    ids=["no text", "deep", "laughs", "endless", "large", "a device", "a file", "a file, dotted", "a tag"],
)
def test_a_file_that_no_parser_should_see_is_named_at_once(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    for read in (lambda: load_config(path), lambda: parse_config(["--config", str(path)])):
        with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
            read()
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 1000


def test_a_configuration_is_not_written_again_when_it_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    save_config(Config(), path)
    before = path.stat()
    save_config(Config(), path)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


HF = ("--model.text.arch", "hf:bert", "--model.text.pooling", "max")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (
            ["--model.poster.frozen", "true", "--model.poster.frozen_through", "layer3"],
            ["model.poster.frozen", "model.poster.frozen_through"],
        ),
        (["--model.text.arch", "transformer"], ["model.text.arch", "lstm, gru, none or hf:NAME"]),
        (["--model.text.arch", "hf:"], ["model.text.arch"]),
        (["--model.text.arch", "hf:bert"], ["model.text.pooling", "mean, max, mean_max or first"]),
        (["--model.text.pooling", "first"], ["model.text.pooling", "last, max or mean"]),
        (["--model.text.pooling", "mean_max"], ["model.text.pooling", "hf:NAME"]),
        (["--model.text.inner_dropout", "0"], ["model.text.inner_dropout", "model.text.dropout"]),
        ([*HF, "--model.text.inner_dropout", "1"], ["model.text.inner_dropout", "[0, 1)"]),
        (["--model.text.frozen_through", "encoder"], ["model.text.frozen_through", "hf:NAME"]),
        (
            [*HF, "--model.text.frozen", "true", "--model.text.frozen_through", "encoder"],
            ["model.text.frozen", "model.text.frozen_through"],
        ),
        (
            ["--model.text.frozen", "true", "--model.text.unfreeze_at", '{"rnn": 3}'],
            ["model.text.unfreeze_at", "lstm trains all of it from one point on"],
        ),
        (["--optim.text_layer_decay", "0"], ["optim.text_layer_decay"]),
        (["--optim.text_layer_decay", "1.1"], ["optim.text_layer_decay"]),
        (["--data.crop_scale", "[0.9, 0.5]"], ["data.crop_scale"]),
        (["--data.crop_ratio", "[0, 1]"], ["data.crop_ratio"]),
        (["--data.global_batch", "0"], ["data.global_batch"]),
        (["--data.micro_batch", "0"], ["data.micro_batch"]),
        (["--data.workers", "-1"], ["data.workers"]),
        (["--data.max_bad_fraction", "1.5"], ["data.max_bad_fraction"]),
        (["--model.text.dropout", "1"], ["model.text.dropout"]),
        (["--model.heads.hidden", "[8, 0]"], ["model.heads.hidden"]),
        (["--optim.poster_lr", "-1"], ["optim.poster_lr"]),
        (["--optim.clip_norm", "0"], ["optim.clip_norm"]),
        (["--train.steps", "0"], ["train.steps"]),
        (["--train.epochs", "0"], ["train.epochs"]),
        (["--checkpoint.every_steps", "0"], ["checkpoint.every_steps"]),
        (["--checkpoint.keep", "0"], ["checkpoint.keep"]),
    ],
)
def test_values_that_cannot_be_meant_are_refused(options: list[str], named: list[str]) -> None:
    with pytest.raises(ValueError, match=re.escape(named[0])) as caught:
        parse_config(options)
    assert all(name in str(caught.value) for name in named)


# --- the global batch is given, the rest is derived


@given(per_rank=st.integers(1, 200), world=st.integers(1, 64))
def test_shares_add_up_to_the_global_batch(per_rank: int, world: int) -> None:
    batches = derive_batches(DataConfig(global_batch=per_rank * world), world)
    assert batches.per_rank * world == per_rank * world
    assert batches.micro * batches.accumulation == batches.per_rank
    assert 1 <= batches.micro <= 32


@given(micro=st.integers(1, 20), accumulation=st.integers(1, 20), world=st.integers(1, 8))
def test_a_micro_batch_that_is_given_is_taken(micro: int, accumulation: int, world: int) -> None:
    data = DataConfig(global_batch=micro * accumulation * world, micro_batch=micro)
    assert derive_batches(data, world) == (micro * accumulation, micro, accumulation)


@pytest.mark.parametrize(("global_batch", "world"), [(64, 3), (64, 5), (7, 2), (4, 8)])
def test_a_world_that_does_not_divide_the_batch_is_refused_with_numbers_that_would_do(
    global_batch: int, world: int
) -> None:
    with pytest.raises(ValueError, match=f"{world} ranks cannot share data.global_batch={global_batch}") as caught:
        derive_batches(DataConfig(global_batch=global_batch), world)
    found = re.search(r"use (\d+) ranks, or a global batch .* such as (\d+)", str(caught.value))
    assert found is not None
    derive_batches(DataConfig(global_batch=global_batch), int(found[1]))
    derive_batches(DataConfig(global_batch=int(found[2])), world)


def test_a_micro_batch_that_does_not_divide_the_share_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.micro_batch=3 does not divide the rank's share of 8"):
        derive_batches(DataConfig(global_batch=16, micro_batch=3), 2)


# --- every setting explains itself


def docstrings() -> dict[tuple[str, str], str | None]:
    """(dataclass, field) -> the string below the field."""
    found: dict[tuple[str, str], str | None] = {}
    files = sorted(Path(str(schema.__file__)).parent.glob("*.py"))
    for node in (node for file in files for node in ast.walk(ast.parse(file.read_text()))):
        if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
            for item, after in zip(node.body, [*node.body[1:], None], strict=True):
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                    is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                    found[node.name, item.target.id] = str(after.value.value) if is_text else None
    return found


def all_fields(cls: type = Config, prefix: str = "") -> Iterator[tuple[str, str, str, bool]]:
    """Dotted key, class, field, whether it is a section."""
    for item in dataclasses.fields(cls):
        kind = get_type_hints(cls)[item.name]
        yield prefix + item.name, cls.__name__, item.name, dataclasses.is_dataclass(kind)
        if dataclasses.is_dataclass(kind):
            yield from all_fields(kind, f"{prefix}{item.name}.")


def test_help_explains_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_config(["--help"])
    text = re.sub(r"\s", "", capsys.readouterr().out.split("options:")[1])
    explained = docstrings()
    checked = 0
    for key, cls, name, is_section in all_fields():
        meaning = explained[cls, name]
        assert meaning, f"{cls}.{name} has no docstring"
        if not is_section:
            option = text[text.index(f"--{key}", checked) :]
            wanted = re.sub(r"\s", "", meaning)
            assert wanted in option[: len(wanted) + 120], f"--help says nothing about {key}"
            checked = text.index(f"--{key}", checked)
