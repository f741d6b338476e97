"""Poster networks whose rank 1 comes to grief in its third step, each in another way."""

import os

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


def mistaken() -> nn.Module:
    return ComingToGrief(ValueError("the poster of film 7 is upside down"))


def broken() -> nn.Module:
    return ComingToGrief(ZeroDivisionError("a bug"))


def interrupted() -> nn.Module:
    return ComingToGrief(KeyboardInterrupt())
