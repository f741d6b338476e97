"""The roofline: what operations compute and move, counted by hand and by torch too, and the step made of them."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from genre_dist import cli
from genre_dist.config import Config, DataConfig, HeadsConfig, ModelConfig, PosterConfig, TextConfig, TrainConfig
from genre_dist.planner import operations as ops
from genre_dist.planner.gpu_specs import GpuSpec, card_named
from genre_dist.planner.operations import Operation, Recorder, trace_operations
from genre_dist.planner.planned_model import find_vocabulary, meta_model
from genre_dist.planner.roofline import (
    BUCKET_BYTES,
    OPERATION_SECONDS,
    REACHED,
    RECURRENT_STEP_SECONDS,
    Timing,
    at_best,
    ring_seconds,
    time_step,
)
from genre_dist.planner.throughput import training_flops
from genre_dist.stream import images

pytestmark = pytest.mark.slow

H100 = card_named("H100")
META = torch.device("meta")
GIB = 2**30


def small(arch: str = "helpers:tiny_network", batch: int = 16, text: str = "lstm", **more: object) -> Config:
    model = ModelConfig(
        text=TextConfig(arch=text, hidden=16, layers=2),  # type: ignore[arg-type]
        poster=PosterConfig(arch=arch, weights="none"),
        heads=HeadsConfig(hidden=(8,)),
    )
    data = DataConfig(shards="nowhere", image_size=64, global_batch=batch, max_tokens=10)
    return Config(model=model, data=data, **more)  # type: ignore[arg-type]


@cache
def traced(config: Config, precision: str, samples: int = 4) -> list[Operation]:
    return trace_operations(config, find_vocabulary(config), precision, samples, 80)


@cache
def timed(config: Config, card: GpuSpec = H100, ranks: int = 1, micro: int | None = 16) -> Timing:
    return time_step(config, card, ranks, micro, 8 * GIB)


# --- operations


@pytest.mark.parametrize(
    ("arch", "precision", "exact"),
    [("resnet18", "bf16", 1e-6), ("resnet18", "fp32", 1e-6), ("vit_b_32", "bf16", 0.002)],
)
def test_flops_are_those_that_torch_counts(arch: str, precision: str, exact: float) -> None:
    """Attention may be computed by kernels that do part of the forward pass again in the backward pass."""
    config = small(arch, text="none")
    counted = training_flops(meta_model(config, find_vocabulary(config), on_gpu=True), config, META)
    assert sum(operation.flops for operation in traced(config, precision)) == pytest.approx(4 * counted, rel=exact)


def test_bytes_of_a_block_counted_by_hand() -> None:
    """Convolution, BatchNorm, ReLU on n numbers; n by n weights are nothing beside them."""
    network = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU()).to(META)
    recorder = Recorder(None)
    with recorder:
        values = network(torch.empty(8, 4, 64, 64, device=META, requires_grad=True))
    gradient = torch.empty_like(values)
    with recorder.going_back():
        values.backward(gradient)
    n = 4 * values.numel()
    whole = [operation for operation in recorder.operations() if operation.eager > n]
    assert {(o.kind, o.backward): (round(o.eager / n), round(o.compiled / n)) for o in whole} == {
        (ops.CONVOLUTION, False): (2, 2),
        (ops.BATCH_NORM, False): (3, 2),  # read for the statistics and for the values, which go on to ReLU
        (ops.ELEMENTWISE, False): (2, 1),  # nothing to read, ReLU's values to write
        (ops.ELEMENTWISE, True): (3, 2),  # ReLU's values and their gradient to read, nothing to write
        (ops.BATCH_NORM, True): (5, 4),
        (ops.CONVOLUTION_BACKWARD, True): (4, 4),  # the gradient for input and weight, the input; its gradient
    }


def test_half_precision_moves_half_the_bytes_and_casts_the_weights() -> None:
    config = small("resnet18", text="none")
    full, half = traced(config, "fp32"), traced(config, "bf16")
    assert total(half, ops.BATCH_NORM) == pytest.approx(total(full, ops.BATCH_NORM) / 2, rel=0.02)
    assert total(full, ops.CASTS) == 0
    weights = 11.2e6  # of ResNet18: there and back, 4 + 2 bytes each
    assert total(half, ops.CASTS) == pytest.approx(12 * weights, rel=0.05)


def total(operations: list[Operation], kind: str) -> int:
    return sum(operation.eager for operation in operations if operation.kind == kind)


def test_compiled_blocks_move_less_and_never_more() -> None:
    operations = traced(small("resnet18", text="none"), "bf16")
    assert all(operation.compiled <= operation.eager for operation in operations)
    assert all(o.compiled == o.eager for o in operations if o.kind in (ops.CONVOLUTION, ops.HEADS, ops.PIXELS))
    light = [operation for operation in operations if operation.kind in (ops.BATCH_NORM, ops.ELEMENTWISE)]
    assert sum(o.compiled for o in light) < 0.8 * sum(o.eager for o in light)
    assert sum(o.joined for o in light) > len(light) / 2


def test_a_frozen_network_has_no_backward_pass() -> None:
    config = small()
    frozen = replace(config, model=replace(config.model, poster=replace(config.model.poster, frozen=True)))
    backward = [{o.kind for o in traced(each, "bf16") if o.backward} for each in (config, frozen)]
    assert backward[0] > backward[1] == {ops.HEADS}


def test_recomputed_blocks_cost_time_but_are_no_work_of_the_model() -> None:
    plain = timed(small("resnet18", text="none"))
    again = timed(small("resnet18", text="none", train=TrainConfig(activation_checkpointing="blocks")))
    forward = [{work.kind: work.flops for work in timing.ways[0].works}[ops.CONVOLUTION] for timing in (plain, again)]
    assert forward[1] > 1.5 * forward[0]
    assert again.flops == plain.flops
    assert again.ways[0].step > plain.ways[0].step


def test_tracing_leaves_no_fake_tensor_behind() -> None:
    """Constants of the pixels are kept from call to call, on each device."""
    traced(small(), "bf16", samples=2)
    pixels = images.whole(torch.zeros(1, 4, 4, 3, dtype=torch.uint8), 4)
    assert type(pixels) is torch.Tensor
    assert pixels.isfinite().all()


# --- the step


def test_an_operation_takes_the_longer_of_its_bytes_and_its_products() -> None:
    assert at_best(0, 3350e9, "bf16", H100) == pytest.approx(1)
    assert at_best(989e12, 1, "bf16", H100) == pytest.approx(1)
    assert at_best(989e12, 1, "tf32", H100) == pytest.approx(2, rel=0.01)


@pytest.mark.parametrize(("ranks", "seconds"), [(1, 0), (2, 1), (8, 1.75)])
def test_a_ring_sends_almost_twice_the_bytes_in_one_direction(ranks: int, seconds: float) -> None:
    assert ring_seconds(450e9, ranks, H100) == pytest.approx(seconds)


def test_the_recurrent_network_runs_beside_the_posters_and_the_longer_one_counts() -> None:
    timing = timed(small())
    assert timing.recurrent is not None
    latency = 10 * 2 * RECURRENT_STEP_SECONDS  # tokens and layers
    assert [work.seconds for work in timing.recurrent] == pytest.approx([latency, latency])
    network = [work for work in timing.ways[0].works if work.kind not in (ops.HEADS, ops.PIXELS)]
    assert sum(work.seconds for work in network) < 2 * latency < timing.ways[0].passes
    slow = timed(small(), H100._replace(bandwidth=1.0))
    assert slow.ways[0].passes == pytest.approx(sum(work.seconds for work in slow.ways[0].works))


def test_micro_batches_add_up_and_gradients_are_added_to_one_another() -> None:
    whole, halves = timed(small()), timed(small(), micro=8)
    assert (whole.accumulation, halves.accumulation) == (1, 2)
    way = halves.ways[0]
    assert way.step == pytest.approx(2 * way.passes + halves.update.seconds)
    assert halves.update.bytes / whole.update.bytes == pytest.approx((28 + 12 + 12) / (28 + 12))


def test_the_exchange_of_gradients_hides_behind_the_backward_pass_but_for_its_last_part() -> None:
    config = small("resnet18", batch=64)
    fast, slow = timed(config, ranks=4), timed(config, H100._replace(link=1.0), ranks=4)
    assert fast.gradient_bytes > 4 * 11e6
    assert fast.ways[0].exposed == pytest.approx(fast.all_reduce * BUCKET_BYTES / fast.gradient_bytes)
    assert 0.9 * slow.all_reduce < slow.ways[0].exposed < slow.all_reduce
    assert timed(small()).ways[0].exposed == 0


def test_mfu_is_the_models_work_over_the_peak() -> None:
    timing = timed(small())
    assert timing.mfu(2.0) == pytest.approx(timing.flops * 16 / 2 / 989e12)


def test_a_short_step_is_likely_as_long_as_the_host_takes_to_start_it() -> None:
    way = timed(small()).ways[0]
    assert way.likely == pytest.approx((way.launches * OPERATION_SECONDS,) * 2)
    slow = timed(small(), H100._replace(bandwidth=0.1)).ways[0]
    assert slow.likely == pytest.approx((slow.step / REACHED[1], slow.step / REACHED[0]))


@pytest.mark.parametrize(("name", "precision"), [("A100", "bf16"), ("V100", "fp32")])
def test_the_precision_is_what_training_would_take_on_the_card(name: str, precision: str) -> None:
    assert timed(small(), card_named(name)).precision == precision


def test_the_studys_step_on_an_h100_agrees_with_an_independent_estimate() -> None:
    """An audit by hand: about 0.9 GB a sample, bound by bandwidth; 1,100 to 1,500 a second, compiled 1,500 to 1,900."""
    config = Config(data=DataConfig(shards="nowhere", global_batch=128))
    timing = timed(config, micro=128)
    eager, compiled = timing.ways
    assert sum(work.bytes for work in eager.works) / 128 == pytest.approx(0.95e9, rel=0.15)
    assert timing.flops == pytest.approx(74.4e9, rel=1e-3)
    slowest, fastest = (128 / seconds for seconds in reversed(eager.likely))
    assert slowest < 1300 < fastest
    slowest, fastest = (128 / seconds for seconds in reversed(compiled.likely))
    assert slowest < 1700 < fastest


# --- the verb


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(
        "model: {poster: {arch: 'helpers:tiny_network', weights: none}}\ndata: {shards: nowhere, image_size: 64}\n"
    )
    return file


def test_time_alone_takes_the_cards_memory_and_writes_what_it_tells(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plan.json"
    arguments = ["plan", "--config", str(config_file), "--time", "rtx4090", "--gpus", "2", "--json", str(out)]
    assert cli.main(arguments) == 0
    told = capsys.readouterr().out
    for word in (
        "computed, not measured",
        "2 x RTX 4090",
        "micro-batches of 32 (the planner's",
        "all-reduce",
        "exposed",
    ):
        assert word in told
    time = json.loads(out.read_text())["time"]
    assert time["measured"] is False
    assert time["micro_batch"] == 32
    assert {way["name"] for way in time["ways"]} == {"eager", "blocks compiled"}
    assert all(way["samples_per_second"] == pytest.approx(64 / way["step"]) for way in time["ways"])


def test_memory_and_time_together_give_both_answers(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", "--config", str(config_file), "--gpu_memory", "4GB", "--levers", "bf16", "--time", "L4"]
    assert cli.main([*arguments, "--micro_batch", "8"]) == 0
    told = capsys.readouterr().out
    assert "largest micro-batch" in told
    assert "micro-batches of 8 (as given), 8 of them a rank" in told


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "--gpu_memory SIZE tells what fits a card, --time GPU how long"),
        (["--time", "RTX 4090 D"], "nearest: RTX 4090"),
        (["--time", "H100", "--measure"], "give --gpu_memory"),
        (["--gpu_memory", "24GB", "--micro_batch", "8"], "--micro_batch is for --time"),
        (["--time", "H100", "--micro_batch", "7"], "does not divide the rank's share of 64"),
        (["--time", "H100", "--gpus", "0"], "--gpus is at least 1"),
    ],
)
def test_what_cannot_be_timed_is_one_line(arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert word in line
