"""Micro-batches that fit: the planner's to begin with, halved on all ranks together when memory runs out.

If one rank ran out of memory alone, the others would wait for its gradients for ever. So *deferred* steps exchange no
gradients until every rank has computed all its micro-batches: then the ranks agree, and a blank sample of weight 0
carries the exchange. A failed step is repeated with the same samples in smaller micro-batches. Deferred steps do not
overlap computation and communication, so several ranks take them only at the start and after halving; for a single rank
they cost nothing, and it takes no others.
"""

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from genre_dist.atomic import atomic_file
from genre_dist.config import Config, derive_batches
from genre_dist.parallel.strategies import strategy_name
from genre_dist.parallel.world import LONGEST_ALLOWED, World
from genre_dist.stream.batch import Batch, part_of
from genre_dist.training.experiment import Experiment, choose_precision
from genre_dist.training.out_of_memory import is_out_of_memory
from genre_dist.training.pretrained_start import going_on
from genre_dist.training.ranks import memory_to_plan
from genre_dist.training.step import OutOfMemoryTogetherError, StepResult

DEFERRED_STEPS = 20
NOTE = "micro_batch"
"""File in a run's folder: the largest micro-batch that is still to be tried there."""


def may_split(config: Config, world: World) -> bool:
    """Whether micro-batches are this module's to choose: on GPUs, with `data.micro_batch: auto`."""
    return config.data.micro_batch == "auto" and world.device.type == "cuda"


def planned_config(config: Config, world: World) -> Config:
    """On a GPU, `data.micro_batch: auto` becomes the planner's number, at most what an earlier start found to fit.

    All ranks get the same. Without a GPU, and for a model that the planner cannot trace (a message says so), the
    configuration stays unchanged. Raises ValueError as `choose_precision` does.
    """
    if not may_split(config, world):
        return config
    from genre_dist.planner.options import planned_micro_batch

    card, precision = memory_to_plan(world), choose_precision(config, world.device)
    try:
        own = planned_micro_batch(going_on(config), card, world.size, precision)
    except ValueError as error:
        if world.is_first:
            micro = derive_batches(config.data, world.size).micro
            print(f"micro-batches of {micro} to begin with, not planned for the memory: {error}", flush=True)
        return config
    if not config.run.overwrite:
        own = min(own, _noted(Path(config.run.dir) / NOTE) or own)
    share = derive_batches(config.data, world.size).per_rank
    least = min(world.broadcast(world.gather(own)))
    micro = max(n for n in range(1, least + 1) if share % n == 0)
    return replace(config, data=replace(config.data, micro_batch=micro))


def _noted(note: Path) -> int | None:
    """The largest micro-batch that an earlier start found to fit, if it noted one."""
    if not note.is_file():
        return None
    written = note.read_bytes()[:100].decode(errors="replace").strip()
    if not (written.isdecimal() and written.isascii() and int(written) >= 1):
        raise ValueError(f"{note}: no number of samples; remove it, and the planner's is tried first")
    return int(written)


class Backoff:
    """Takes steps, in smaller and smaller micro-batches if memory runs out.

    `note` is called when memory has run out, before the tensors that filled it are freed.
    """

    def __init__(self, experiment: Experiment, folder: Path, note: Callable[[], None] = lambda: None) -> None:
        config, self.world = experiment.config, experiment.world
        self.experiment, self.folder, self._note = experiment, folder, note
        self.micro_batch = experiment.compute.micro_batch
        self._kept: list[tuple[list[Tensor], list[Tensor]]] | None = None  # buffers and copies, by their type
        synchronised = config.model.poster.batch_norm == "sync" and config.model.uses_poster
        exchanges_inside = strategy_name(config, self.world.size) not in ("single", "ddp") or synchronised
        self.can_repeat = self.world.size == 1 or not exchanges_inside
        self.deferred_steps = DEFERRED_STEPS

    def step(self, micro_batches: list[Batch], take: Callable[..., StepResult], seed: int) -> StepResult:
        """Take a step, `take(micro_batches, size, deferred=..., failed=...)`, with this seed for dropout.

        Raises ValueError if not even single samples fit; MemoryError where the ranks cannot agree to repeat the step:
        torchrun restarts them, with smaller micro-batches.
        """
        if not self.experiment.compute.splits:
            torch.manual_seed(seed)
            return take(micro_batches, self.micro_batch)
        deferred = self.can_repeat and (self.world.size == 1 or self.deferred_steps > 0)
        self.deferred_steps -= 1
        while True:
            if deferred:
                self._keep_buffers()
            whole = self.experiment.compute.micro_batch
            parts = [part for batch in micro_batches for part in split(batch, whole, self.micro_batch)]
            problem = None
            try:
                torch.manual_seed(seed)
                result: StepResult | None = take(parts, self.micro_batch, deferred=deferred, failed=self._note)
            except OutOfMemoryTogetherError:  # handled below: an exception's frames hold on to tensors
                result = None
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._note()
                result, problem = None, str(error).partition(". ")[0]
            if result is not None:
                for batch in micro_batches:  # its memory is needed until the last part is copied
                    batch.copied = parts[-1].copied
                return result
            self._halve()
            if problem is not None:
                raise MemoryError(
                    f"out of memory ({problem}); the other ranks could not be told. Start again: the run goes on from "
                    f"its newest checkpoint with micro-batches of {self.micro_batch}"
                )
            self._restore_buffers()

    @torch.no_grad()
    def _keep_buffers(self) -> None:
        """Copy the buffers (BatchNorm's statistics) before a step that may fail."""
        if self._kept is None:
            by_type: dict[torch.dtype, list[Tensor]] = {}
            for buffer in self.experiment.model.buffers():
                by_type.setdefault(buffer.dtype, []).append(buffer)
            self._kept = [(own, [buffer.clone() for buffer in own]) for own in by_type.values()]
        for own, copies in self._kept:
            torch._foreach_copy_(copies, own)

    @torch.no_grad()
    def _restore_buffers(self) -> None:
        for own, copies in self._kept or ():
            torch._foreach_copy_(own, copies)

    def _halve(self) -> None:
        """Take the next smaller micro-batch and note it for the next start. Raises ValueError if there is none."""
        if self.micro_batch == 1:
            raise ValueError(
                "out of memory with micro-batches of one sample; `genre-dist plan` shows what fits: bf16, "
                "train.activation_checkpointing, a sharding strategy, or a smaller data.image_size"
            )
        whole = self.experiment.compute.micro_batch
        self.micro_batch = max(n for n in range(1, self.micro_batch // 2 + 1) if whole % n == 0)
        self.deferred_steps = DEFERRED_STEPS
        self.world.allow(LONGEST_ALLOWED)  # a compiled model is compiled anew for the smaller size
        if self.world.device.type == "cuda":
            gc.collect()  # what failed may still hold on to its tensors
            torch.cuda.empty_cache()
        with atomic_file(self.folder / NOTE, "w") as file:
            file.write(str(self.micro_batch))
        if self.world.is_first:
            print(f"out of memory: micro-batches of {self.micro_batch} from now on", flush=True)


def split(batch: Batch, whole: int, size: int) -> list[Batch]:
    """A micro-batch of up to `whole` samples in whole/size parts, the last ones perhaps empty, as views."""
    if size == whole:
        return [batch]
    return [part_of(batch, slice(first, first + size)) for first in range(0, whole, size)]
