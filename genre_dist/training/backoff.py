"""Micro-batches that fit: the planner's to begin with, halved on all ranks together when memory runs out.

Ranks must run out of memory together, or those that did not wait for the others for ever. So in *careful* steps nothing
is exchanged until every rank is through its micro-batches: then they agree, and a blank sample of weight 0 carries the
exchange of gradients. A step that failed is taken again from its beginning with the same samples in smaller pieces.
Careful steps give up computing beside communicating, so several ranks take them only at the start and after halving; a
single rank is always careful, it costs nothing there.
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
from genre_dist.training.ranks import memory_to_plan
from genre_dist.training.step import OutOfMemoryTogetherError, StepResult

CAREFUL_STEPS = 20
NOTE = "micro_batch"
"""File in a run's folder: the largest micro-batch that is still to be tried there."""


def may_split(config: Config, world: World) -> bool:
    """Whether micro-batches are this module's to choose: on GPUs, with `data.micro_batch: auto`."""
    return config.data.micro_batch == "auto" and world.device.type == "cuda"


def planned_config(config: Config, world: World) -> Config:
    """On a GPU, `data.micro_batch: auto` as a number: the planner's, at most what an earlier start found to fit.

    The same on all ranks. Elsewhere, and for a model the planner cannot follow, which it says, the configuration as it
    is. Raises ValueError as `choose_precision` does.
    """
    if not may_split(config, world):
        return config
    from genre_dist.planner.options import planned_micro_batch

    card, precision = memory_to_plan(world), choose_precision(config, world.device)
    try:
        own = planned_micro_batch(config, card, world.size, precision)
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
    """Takes steps, in smaller and smaller pieces if it must be.

    `note` is called when memory has run out, while what filled it is still there.
    """

    def __init__(self, experiment: Experiment, folder: Path, note: Callable[[], None] = lambda: None) -> None:
        config, self.world = experiment.config, experiment.world
        self.experiment, self.folder, self._note = experiment, folder, note
        self.piece = experiment.compute.micro_batch
        self._kept: list[tuple[list[Tensor], list[Tensor]]] | None = None  # buffers and copies, by their type
        synchronised = config.model.poster.batch_norm == "sync" and config.model.uses_poster
        exchanges_inside = strategy_name(config, self.world.size) not in ("single", "ddp") or synchronised
        self.can_repeat = self.world.size == 1 or not exchanges_inside
        self.careful_steps = CAREFUL_STEPS

    def step(self, micro_batches: list[Batch], take: Callable[..., StepResult], seed: int) -> StepResult:
        """Take a step, `take(micro_batches, piece, careful=..., failed=...)`, with this seed for dropout.

        ValueError if not even single samples fit. MemoryError where ranks cannot agree to take it again: a new start
        takes smaller pieces, and torchrun makes one."""
        if not self.experiment.compute.splits:
            torch.manual_seed(seed)
            return take(micro_batches, self.piece)
        careful = self.can_repeat and (self.world.size == 1 or self.careful_steps > 0)
        self.careful_steps -= 1
        while True:
            if careful:
                self._keep_buffers()
            pieces = [
                piece
                for batch in micro_batches
                for piece in split(batch, self.experiment.compute.micro_batch, self.piece)
            ]
            problem = None
            try:
                torch.manual_seed(seed)
                result: StepResult | None = take(pieces, self.piece, careful=careful, failed=self._note)
            except OutOfMemoryTogetherError:  # dealt with below: an exception's frames hold on to tensors
                result = None
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._note()
                result, problem = None, str(error).partition(". ")[0]
            if result is not None:
                for batch in micro_batches:  # its memory is needed until the last piece is copied
                    batch.copied = pieces[-1].copied
                return result
            self._halve()
            if problem is not None:
                raise MemoryError(
                    f"out of memory ({problem}); the other ranks could not be told. Start again: the run goes on from "
                    f"its newest checkpoint with micro-batches of {self.piece}"
                )
            self._restore_buffers()

    @torch.no_grad()
    def _keep_buffers(self) -> None:
        """Note the buffers, BatchNorm's statistics, as they are before a step that may fail."""
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
        """The next smaller size of pieces, noted for the next start. ValueError if there is none."""
        if self.piece == 1:
            raise ValueError(
                "out of memory with micro-batches of one sample; `genre-dist plan` shows what fits: bf16, "
                "train.activation_checkpointing, a sharding strategy, or a smaller data.image_size"
            )
        whole = self.experiment.compute.micro_batch
        self.piece = max(n for n in range(1, self.piece // 2 + 1) if whole % n == 0)
        self.careful_steps = CAREFUL_STEPS
        self.world.allow(LONGEST_ALLOWED)  # a compiled model is compiled anew for the smaller size
        if self.world.device.type == "cuda":
            gc.collect()  # what failed may still hold on to its tensors
            torch.cuda.empty_cache()
        with atomic_file(self.folder / NOTE, "w") as file:
            file.write(str(self.piece))
        if self.world.is_first:
            print(f"out of memory: micro-batches of {self.piece} from now on", flush=True)


def split(batch: Batch, whole: int, piece: int) -> list[Batch]:
    """A micro-batch of up to `whole` samples in whole/piece parts, the last ones perhaps empty, as views."""
    if piece == whole:
        return [batch]
    return [part_of(batch, slice(first, first + piece)) for first in range(0, whole, piece)]
