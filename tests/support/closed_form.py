"""A linear defense and attacks on it whose distances are known, named in matrix files as `closed_form:Name`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from tiny import SEEN, OneSplit, Tiny
from torch import Tensor

from manifold_bench.attacks.base import ViewAttack
from manifold_bench.attacks.target import Target
from manifold_bench.defenses.base import Defense, DefenseSpec, LabelledImages

WEIGHTS = torch.tensor([1.0, -2.0, 0.5, 1.5])
BIAS = -0.5


@dataclass(frozen=True)
class Grey(OneSplit):
    """Images of 2×2 pixels so far inside [0,1] that the closed forms hold; the labels are those of `Linear`.

    Every sixth label is the wrong one, so that some inputs are beaten before any attack.
    """

    name = "grey"
    shape = (1, 2, 2)
    num_classes = 2
    revision = "1"
    zoo = "grey"

    @cached_property
    def test(self) -> LabelledImages:
        images = 0.35 + 0.3 * torch.rand(24, 1, 2, 2, generator=torch.Generator().manual_seed(0))
        labels = (images.flatten(1) @ WEIGHTS + BIAS > 0).long()
        return LabelledImages(images, torch.where(torch.arange(24) % 6 == 0, 1 - labels, labels))


class Linear(Defense):
    """Two classes, logits 0 and w·x + b: the distance to the boundary is |w·x + b| / ‖w‖ in the dual norm."""

    def __init__(self, spec: DefenseSpec) -> None:
        super().__init__(spec)
        self.register_buffer("weights", WEIGHTS.clone())

    def forward(self, x: Tensor) -> Tensor:
        score = (x.flatten(1) * self.weights).sum(1) + BIAS
        return torch.stack([torch.zeros_like(score), score], dim=1)


def distances(norm: str) -> np.ndarray:
    """From each image of `Grey` to the boundary of `Linear`; 0 where the label is wrong to begin with."""
    data = Grey().test
    score = data.images.flatten(1) @ WEIGHTS + BIAS
    dual = WEIGHTS.abs().sum() if norm == "linf" else WEIGHTS.norm()
    return torch.where((score > 0).long() == data.labels, score.abs() / dual, 0.0).numpy()


class Flat(Linear):
    """The answers of `Linear`, from logits whose gradient is exactly zero."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach() + 0 * x.flatten(1).sum(1, keepdim=True)


class Overflowing(Linear):
    """As `Linear`, with a gradient that is not finite."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits + ((x - x.detach()).abs().sqrt()).flatten(1).sum(1, keepdim=True)


@dataclass(frozen=True, kw_only=True)
class Wanders(ViewAttack):
    """Asks about points along the way beyond the boundary of `Linear`, and returns the input."""

    minimal = True

    def passes(self) -> tuple[int, int]:
        return 20, 0

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        view, score = self.view(target), x.flatten(1) @ WEIGHTS + BIAS
        direction = (-score / WEIGHTS.square().sum()).view(-1, 1, 1, 1) * WEIGHTS.view(1, 1, 2, 2)
        for share in torch.linspace(1.55, 0.55, 11).tolist():
            view.answer(x + share * direction, torch.arange(len(x)))
        return x


@dataclass(frozen=True, kw_only=True)
class Step(Tiny):
    """Moves every pixel by ε away from the label of `Linear`: exact in L∞."""

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        SEEN.append((eps, len(x)))
        target.count(torch.arange(len(x)), 1, 1)
        away = (1 - 2 * y).view(-1, 1, 1, 1)
        return x + eps * away * WEIGHTS.sign().view(1, 1, 2, 2)


@dataclass(frozen=True, kw_only=True)
class Backwards(Tiny):
    """Finds every input at the smallest ε and none at a larger one."""

    smallest: float

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        return Step(norm=self.norm).run(target, x, y, eps, seed) if eps == self.smallest else x


@dataclass(frozen=True, kw_only=True)
class Exact(Tiny):
    """The smallest perturbation of `Linear` in L2, a hair beyond the boundary; NaN where `fails` says so."""

    fails: bool = False

    @property
    def minimal(self) -> bool:
        return True

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        SEEN.append((eps, len(x)))
        target.count(torch.arange(len(x)), 7, 3)
        if self.fails:
            return torch.full_like(x, torch.nan)
        score = x.flatten(1) @ WEIGHTS + BIAS
        step = -score * 1.0001 / WEIGHTS.square().sum()
        return x + step.view(-1, 1, 1, 1) * WEIGHTS.view(1, 1, 2, 2)
