"""Poster networks whose rank 1 comes to grief in its third step, each in another way, or is slow."""

import os
import time

import helpers
from torch import Tensor, nn


class ComingToGrief(helpers.TinyNetwork):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error, self.calls = error, 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 3 and os.environ.get("RANK") == "1":
            raise self.error
        return super().forward(images)


class Slow(helpers.TinyNetwork):
    """A network with which one rank has long work of its own: each of its batches takes half a second."""

    def forward(self, images: Tensor) -> Tensor:
        if os.environ.get("RANK") == "1" and not self.training:
            time.sleep(0.5)
        return super().forward(images)


def slow() -> nn.Module:
    return Slow()


def mistaken() -> nn.Module:
    return ComingToGrief(ValueError("the poster of film 7 is upside down"))


def broken() -> nn.Module:
    return ComingToGrief(ZeroDivisionError("a bug"))


def interrupted() -> nn.Module:
    return ComingToGrief(KeyboardInterrupt())
