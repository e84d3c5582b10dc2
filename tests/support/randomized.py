"""A randomized defense whose answers are right with known probabilities, named in matrix files as `randomized:Name`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from tiny import OneSplit, Tiny
from torch import Tensor

from manifold_bench.attacks.contract import Verdict
from manifold_bench.attacks.target import Target
from manifold_bench.defenses.base import Defense, LabelledImages

RIGHT, RIGHT_UNDER_ATTACK = 0.9, 0.3
"""Probabilities that an answer is right, for images of `Dark` and for brighter ones."""


@dataclass(frozen=True)
class Dark(OneSplit):
    """400 dark images, all of class 0."""

    name = "dark"
    shape = (1, 2, 2)
    num_classes = 3
    revision = "1"
    zoo = "dark"

    @cached_property
    def test(self) -> LabelledImages:
        images = 0.1 * torch.rand(400, 1, 2, 2, generator=torch.Generator().manual_seed(0))
        return LabelledImages(images, torch.zeros(400, dtype=torch.long))


class Odds(Defense):
    """Answers 0 with these probabilities, and else 1 or 2."""

    randomized: ClassVar[bool] = True

    def verdict(self, x: Tensor) -> Verdict:
        right = torch.where(x.mean((1, 2, 3)) > 0.25, RIGHT_UNDER_ATTACK, RIGHT)
        labels = torch.where(torch.rand(len(x)) < right, 0, torch.randint(1, 3, (len(x),)))
        return Verdict(labels, torch.zeros(len(x), dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(self.verdict(x).labels, 3).float()


@dataclass(frozen=True, kw_only=True)
class Brighten(Tiny):
    """Adds ε to every pixel, and asks nothing."""

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        return x + eps
