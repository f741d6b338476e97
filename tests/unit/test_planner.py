"""The planner: sizes and activations without weights, data or a GPU, against what autograd itself keeps."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from genre_dist import cli
from genre_dist.config import Config, DataConfig, HeadsConfig, ModelConfig, PosterConfig, TextConfig
from genre_dist.models.classifier import GenreClassifier
from genre_dist.planner.memory import Setting, card_bytes, largest_micro_batch, peak_bytes, static_bytes
from genre_dist.planner.planned_model import PlannedModel, plan_model
from genre_dist.planner.sizes import parse_size
from genre_dist.planner.trace import Trace
from genre_dist.stream.device_feed import FieldInput

pytestmark = pytest.mark.slow

SMALL = ModelConfig(
    text=TextConfig(hidden=16, layers=2),
    poster=PosterConfig(arch="resnet18", weights="none"),
    heads=HeadsConfig(hidden=(8,), kernel="separate"),
)
GIB = 2**30


@pytest.fixture(scope="module")
def study() -> PlannedModel:
    """The study's model at 224 pixels, nothing frozen, without checkpointing and with it per block."""
    return plan_model(Config(data=DataConfig(shards="nowhere")), ("none", "blocks"))


# --- against the figures of an independent measurement, by saved-tensors hooks on real tensors


def test_parameters_and_their_bytes(study: PlannedModel) -> None:
    assert study.parameters == {"text": (15_933_440, 9_000_000), "poster": (58_143_808, 0), "heads": (69_769_235, 0)}
    setting = Setting(strategy="single", ranks=1, precision="fp32", accumulates=True)
    trained = 143_846_483
    held = static_bytes(study.sizes, setting)
    assert held["weights"] - study.sizes.buffers == 4 * (trained + 9_000_000)
    assert held["gradients"] + held["optimizer"] == 12 * trained


def test_activations_of_resnet152_and_their_halves(study: PlannedModel) -> None:
    whole, blocks = study.traces["none"], study.traces["blocks"]
    text_and_heads = 55 * 6 * 512 * 8 * 4 + 55 * 300 * 4 + 0.13e6  # the recurrent layers' part is an assumption
    assert whole.activations - text_and_heads == pytest.approx(177.4e6, rel=0.01)
    assert blocks.activations - text_and_heads == pytest.approx(61.6e6, rel=0.02)
    assert kept_in_bf16(whole) - text_and_heads == pytest.approx(89.5e6, rel=0.01)  # recurrent layers stay in fp32
    assert kept_in_bf16(blocks) - text_and_heads == pytest.approx(31.6e6, rel=0.02)
    convolutions = 117e6  # bytes of their copies in bf16
    assert study.sizes.copied / 2 == pytest.approx(convolutions, rel=0.01)


def kept_in_bf16(trace: Trace) -> float:
    last = trace.forward - 1
    return float(trace.computed[last] / 2 + trace.kept[last] + trace.sample_input / 2)  # pixels are kept as a copy


def test_stacked_heads_are_counted_once_whatever_the_batch(study: PlannedModel) -> None:
    trace = study.traces["none"]
    assert trace.fixed[trace.forward - 1] == pytest.approx(4 * 69_769_235, rel=0.01)


def test_checkpointing_lowers_the_peak_by_about_what_is_not_kept(study: PlannedModel) -> None:
    peaks = {}
    for kind in ("none", "blocks"):
        setting = Setting(strategy="single", ranks=1, precision="fp32", checkpointing=kind)  # type: ignore[arg-type]
        peaks[kind] = peak_bytes(study.traces, study.sizes, setting, 64)
    assert 100e6 < (peaks["none"] - peaks["blocks"]) / 64 < 125e6


# --- against autograd, on any model


@pytest.mark.parametrize("frozen", [False, True])
def test_what_is_kept_is_what_autograd_saves_on_real_tensors(frozen: bool) -> None:
    """The poster's network and the heads; the recurrent kernel's memory is an assumption."""
    model = ModelConfig(
        text=TextConfig(arch="none"),
        poster=PosterConfig(arch="resnet18", weights="none", frozen=frozen),
        heads=HeadsConfig(hidden=(8,), kernel="separate"),
    )
    config = Config(model=model, data=DataConfig(image_size=64, shards="nowhere"))
    trace = plan_model(config, ("none",)).traces["none"]
    real = GenreClassifier(model, 19, 64, 0, None, load_weights=False)
    saved = saved_bytes(real, 3) - saved_bytes(real, 2)
    pixels = 4 * 3 * 64 * 64
    assert trace.activations - (pixels if frozen else 0) == pytest.approx(saved, rel=0.01, abs=100)


def saved_bytes(model: nn.Module, samples: int) -> int:
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logits = model({"poster": FieldInput(torch.zeros(samples, 3, 64, 64))})
        assert logits.shape == (samples, 19)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_a_trace_ends_with_all_gradients_and_nothing_else() -> None:
    config = Config(model=SMALL, data=DataConfig(image_size=64, shards="nowhere"))
    planned = plan_model(config, ("none",))
    trace = planned.traces["none"]
    trained = 4 * sum(trained for trained, _ in planned.parameters.values())
    assert trace.gradients[-1] == pytest.approx(trained, rel=1e-4)
    assert trace.gradients[trace.forward - 1] == 0
    assert trace.computed[-1] < 0.02 * trace.computed.max()


def test_frozen_encoders_keep_next_to_nothing() -> None:
    frozen = ModelConfig(text=TextConfig(frozen=True), poster=PosterConfig(arch="resnet18", frozen=True))
    data = DataConfig(image_size=64, shards="nowhere")
    kept = [
        plan_model(Config(model=model, data=data), ("none",)).traces["none"].activations
        for model in (frozen, ModelConfig(poster=PosterConfig(arch="resnet18")))
    ]
    assert kept[0] < 0.1 * kept[1]


def test_a_network_of_ones_own_and_the_vocabulary_of_shards_in_reach(sample_shards: Path) -> None:
    planned = plan_model(
        Config(
            model=ModelConfig(poster=PosterConfig(arch="helpers:tiny_network", weights="none")),
            data=DataConfig(image_size=32, shards=str(sample_shards)),
        ),
        ("none",),
    )
    assert planned.vocabulary.source == str(sample_shards)
    words = json.loads((sample_shards / "manifest.json").read_text())["text"]["words"]
    assert planned.vocabulary.words == words
    assert planned.parameters["poster"] == (824, 0)


# --- strategies


def made_up(strategy: str, ranks: int, **more: object) -> dict[str, float]:
    from genre_dist.planner.memory import Sizes

    sizes = Sizes(trained=4 * 10**9, frozen=0, buffers=0, copied=0, units=())
    return static_bytes(sizes, Setting(strategy=strategy, ranks=ranks, precision="fp32", **more))  # type: ignore[arg-type]


@pytest.mark.parametrize("ranks", [2, 4, 64])
def test_sixteen_bytes_a_parameter_are_spread_as_each_strategy_does(ranks: int) -> None:
    """In bytes a parameter: DDP 16, ZeRO-1 8 + 8/N, ZeRO-2 4 + 12/N, ZeRO-3 and FSDP 16/N; DeepSpeed adds 4/N."""
    per_parameter = {
        name: (sum(parts.values()) - parts["extra"]) / 10**9
        for name in ("ddp", "fsdp", "zero1", "zero2", "zero3")
        for parts in [made_up(name, ranks)]
    }
    assert per_parameter == pytest.approx(
        {
            "ddp": 16,
            "fsdp": 16 / ranks,
            "zero1": 8 + 12 / ranks,
            "zero2": 4 + 16 / ranks,
            "zero3": 20 / ranks,
        }
    )


def test_offloading_takes_the_states_off_the_card() -> None:
    assert made_up("zero2", 4, offload=True)["optimizer"] == 0


def test_deepspeeds_buffer_of_gradients_is_counted_as_it_is_configured() -> None:
    for strategy in ("zero1", "zero2", "zero3"):
        assert made_up(strategy, 4)["extra"] == 200e6
        assert made_up(strategy, 4, bucket=7)["extra"] == 7
    assert made_up("ddp", 4)["extra"] == 0


# --- micro-batches


def test_the_largest_micro_batch_divides_the_share_and_the_next_one_would_not_fit(study: PlannedModel) -> None:
    setting = Setting(strategy="ddp", ranks=4, precision="bf16")
    share, card = 96, 8 * GIB
    found = largest_micro_batch(study.traces, study.sizes, setting, share, card)
    assert found is not None
    micro, made = found
    assert share % micro == 0
    assert made.accumulates
    needs = {n: card_bytes(peak_bytes(study.traces, study.sizes, made, n)) for n in range(1, share + 1)}
    assert needs[micro] <= card
    assert all(needs[n] > card for n in range(micro + 1, share + 1) if share % n == 0)
    assert largest_micro_batch(study.traces, study.sizes, setting, share, 1 * GIB) is None


def test_a_larger_card_never_gets_a_smaller_micro_batch(study: PlannedModel) -> None:
    setting = Setting(strategy="single", ranks=1, precision="bf16")
    found = [largest_micro_batch(study.traces, study.sizes, setting, 256, n * GIB) for n in range(2, 40)]
    micros = [0 if each is None else each[0] for each in found]
    assert micros == sorted(micros)
    assert micros[-1] == 256


# --- the verb


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("config") / "small.yaml"
    file.write_text("model: {poster: {arch: resnet18, weights: none}}\ndata: {shards: nowhere, image_size: 64}\n")
    return file


def test_plan_prints_what_fits_and_a_command_that_training_takes(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plan.json"
    arguments = ["plan", "--config", str(config_file), "--gpu_memory", "2GB", "--gpus", "4", "--json", str(out)]
    assert cli.main(arguments) == 0
    told = capsys.readouterr().out
    for word in ("parameters trained", "30,000 words (assumed", "ddp", "fsdp", "zero1", "zero2", "zero3", "offload"):
        assert word in told
    plan = json.loads(out.read_text())
    assert plan["best"]["fits"]
    assert plan["best"]["command"] in told
    assert f"*{plan['best']['micro_batch']} ({plan['best']['card'] / 2**30:.1f})" in told
    assert {o["setting"]["strategy"] for o in plan["options"]} == {"ddp", "fsdp", "zero1", "zero2", "zero3"}
    words = plan["best"]["command"].split()
    assert words[:4] == ["torchrun", "--nproc_per_node=4", "-m", "genre_dist.train"]
    from genre_dist.config.files import parse_config

    assert parse_config(words[4:]).config.data.micro_batch == plan["best"]["micro_batch"]


def test_options_that_all_hold_the_whole_share_are_one_line(
    config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", "--config", str(config_file), "--gpu_memory", "24GB", "--gpus", "4"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("largest micro-batch")]
    assert "for 16 samples a rank, 4 ranks of 24.00 GB: 16 (1.7" in line
    assert line.endswith("by each of 56 options")


def test_settings_after_two_dashes_and_another_batch(config_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    arguments = [
        "plan",
        "--config",
        str(config_file),
        "--gpu_memory",
        "16GB",
        "--global_batch",
        "24",
        "--levers",
        "none",
    ]
    assert cli.main([*arguments, "--json", str(out), "--", "--model.poster.frozen", "true"]) == 2  # no such lever
    arguments[-1] = "bf16,accumulation"
    assert cli.main([*arguments, "--json", str(out), "--", "--model.poster.frozen", "true"]) == 0
    plan = json.loads(out.read_text())
    assert plan["parameters"]["poster"]["trained"] == 0
    assert plan["samples_per_rank"] == 24
    assert {(o["setting"]["strategy"], o["setting"]["checkpointing"]) for o in plan["options"]} == {("single", "none")}


def test_a_card_too_small_for_anything_says_so_and_what_to_do(
    config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["plan", "--config", str(config_file), "--gpu_memory", "0.5GB", "--levers", "bf16"]
    assert cli.main(arguments) == 0
    assert "nothing fits: the least is" in capsys.readouterr().out


@pytest.mark.parametrize("size", ["24", "24 XB", "GB", "-3GB", "0GB", "", "1e3GB"])
def test_a_wrong_size_is_one_line(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", f"--gpu_memory={size}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"`{size}`" in line
    assert "24GB" in line


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (["--gpus", "0"], "--gpus is at least 1"),
        (["--gpus", "3"], "3 ranks cannot share"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: no such configuration file"),
        (["--levers", "magic"], "unknown lever magic"),
        (["--", "--data.imagesize", "3"], "did you mean `data.image_size`?"),
    ],
)
def test_what_cannot_be_planned_is_one_line(more: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--gpu_memory", "24GB", *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert word in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_measuring_needs_a_gpu_and_says_so(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", "--config", str(config_file), "--gpu_memory", "24GB", "--levers", "bf16", "--measure"]
    assert cli.main(arguments) == 2
    assert "--measure needs a CUDA GPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "size"), [("24GB", 24 * GIB), ("1.5 GiB", 3 * GIB // 2), ("512mb", 2**29), ("1TB", 2**40)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_measuring_without_the_sources_says_what_is_missing(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("genre_dist.planner.verbs.__file__", str(tmp_path / "genre_dist" / "planner" / "verbs.py"))
    assert cli.main(["plan", "--config", str(config_file), "--gpu_memory", "24GB", "--levers", "", "--measure"]) == 2
    assert f"--measure needs {tmp_path}/benchmarks/gpu_measure.py" in capsys.readouterr().err
