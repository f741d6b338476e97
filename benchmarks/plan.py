"""The study's question: what does its model need at its batch of 32, frozen and end to end, and what makes it fit?

    python benchmarks/plan.py [--quick]

All rows are computed by the planner, on no GPU; `benchmarks/gpu.py` compares the planner with one.
"""

from typing import get_args

from common import Row, options, report

from genre_dist.config import Config, DataConfig, ModelConfig, PosterConfig, TextConfig
from genre_dist.planner.memory import Checkpointing, Setting, card_bytes, largest_micro_batch, peak_bytes
from genre_dist.planner.options import make_plan
from genre_dist.planner.plan_report import describe
from genre_dist.planner.planned_model import plan_model

CARDS, BATCH = (8, 11, 16), 32


def main() -> None:
    arguments = options(__doc__ or "")
    arch = "resnet18" if arguments.quick else "resnet152"
    rows = []
    for name, frozen in (("both encoders frozen", True), ("end to end", False)):
        model = ModelConfig(
            text=TextConfig(frozen=frozen), poster=PosterConfig(arch=arch, weights="none", frozen=frozen)
        )
        config = Config(model=model, data=DataConfig(shards="nowhere", global_batch=BATCH))
        planned = plan_model(config, ("none",) if arguments.quick else get_args(Checkpointing))
        for precision in ("fp32", "bf16"):
            setting = Setting(strategy="single", ranks=1, precision=precision)  # type: ignore[arg-type]
            needs = card_bytes(peak_bytes(planned.traces, planned.sizes, setting, BATCH)) / 2**30
            fit = ", ".join(f"{card} GB {'yes' if needs <= card else 'no'}" for card in CARDS)
            claim = f"computed: {name}, {precision}"
            whole = Row(claim=f"{claim}, one batch of {BATCH}", value=needs, unit="GiB of the card", spread=fit)
            rows.append(whole)
            for card in CARDS:
                found = largest_micro_batch(planned.traces, planned.sizes, setting, BATCH, card * 2**30)
                micro = found[0] if found else 0
                rows.append(Row(claim=f"{claim}, largest micro-batch on {card} GB", value=micro, unit="samples"))
        if arguments.quick:
            continue
        for card in CARDS:
            best = make_plan(config, card * 2**30, 1, planned=planned).best
            if best is not None:
                claim, told = f"computed: {name} on {card} GB: {describe(best)}", f"micro-batch {best.micro_batch}"
                rows.append(Row(claim=claim, value=best.card / 2**30, unit="GiB of the card", spread=told))
    report(rows, arguments.json)


if __name__ == "__main__":
    main()
