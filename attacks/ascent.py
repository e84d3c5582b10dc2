"""The states of Auto-PGD's ascents: step sizes that follow their progress (Croce & Hein 2020 and, in L1, 2021)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from manifold_bench.attacks.batching import remaining
from manifold_bench.attacks.threat import Norm, draw_per_input, expand, project, random_in_ball, sparse_step, steepest

RISES = 0.75
"""ρ in the paper: the step size is halved where a smaller share of the steps since the last checkpoint went up."""

THINNING = 1.5
"""In L1: number of values that the best point has changed, over the number that the next steps change; and the factor
by which step sizes fall."""

SPARSER = 0.95
"""In L1: step sizes are ε again where the best point has changed fewer values than this share of the last number."""

SHORTEST = 0.1
"""In L1: smallest step size, as a share of ε."""


@dataclass
class Ascent(ABC):
    """The state of an ascent for each of n inputs; points and gradients are [n,C,H,W], all others [n].

    point, value: current point and its loss. previous: the point before. top, top_value, top_gradient: the best point,
    its loss and its gradient. size: step size.
    """

    momentum: ClassVar[float]
    """Share of the last move in each move."""
    wider: ClassVar[tuple[tuple[float, float], ...]] = ()
    """Balls in which the ascent begins: radius, as a multiple of ε, and share of all steps."""

    point: Tensor
    value: Tensor
    previous: Tensor
    top: Tensor
    top_value: Tensor
    top_gradient: Tensor
    size: Tensor

    def only(self, going: Tensor) -> Self:
        """Return the state of the inputs where `going` [n] is true."""
        return type(self)(*remaining(going, *vars(self).values()))

    def update(self, point: Tensor, value: Tensor, gradient: Tensor) -> None:
        """Update the state with a new point, its loss and its gradient."""
        better = value > self.top_value
        self.top = torch.where(expand(better, point), point, self.top)
        self.top_gradient = torch.where(expand(better, point), gradient, self.top_gradient)
        self.top_value = torch.where(better, value, self.top_value)
        self.point, self.value = point, value

    def back_to_best(self, where: Tensor, point: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Return the best point and its gradient where `where` [n] is true, and the given ones elsewhere."""
        where = expand(where, point)
        return torch.where(where, self.top, point), torch.where(where, self.top_gradient, gradient)

    @staticmethod
    @abstractmethod
    def start(x: Tensor, norm: Norm, radius: float, seed: int) -> Tensor:
        """Return a random point of the ball around each x."""

    @staticmethod
    @abstractmethod
    def checkpoints(steps: int) -> Collection[int]:
        """Return the numbers of steps after which `at_checkpoint` is called."""

    @classmethod
    @abstractmethod
    def first(cls, point: Tensor, value: Tensor, gradient: Tensor, origin: Tensor, radius: float) -> Self:
        """Return the state at the first point of a ball around `origin`."""

    @abstractmethod
    def at_checkpoint(self, point: Tensor, gradient: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Return the point to continue from and its gradient, at a checkpoint `steps` steps after the last one."""

    @abstractmethod
    def direction(self, gradient: Tensor, norm: Norm) -> Tensor:
        """Return the direction of the next step, of length 1 in that norm."""


@dataclass
class SteadyAscent(Ascent):
    """The ascent in L∞ and L2: momentum, and a step size that only falls.

    rises: number of steps since the last checkpoint that raised the loss. checked_value: best loss at the last
    checkpoint. halved: whether the step size was halved there.
    """

    momentum = 0.25

    rises: Tensor
    checked_value: Tensor
    halved: Tensor

    @staticmethod
    def start(x: Tensor, norm: Norm, radius: float, seed: int) -> Tensor:
        return random_in_ball(x, norm, radius, seed)

    @staticmethod
    def checkpoints(steps: int) -> Collection[int]:
        """Return the numbers of steps ⌈p · steps⌉ for p = 0.22, 0.41, 0.57, …, 0.99.

        Each interval between two p is 0.03 shorter than the last one, but no shorter than 0.06.
        """
        found, at, stretch = set(), 22, 22
        while at <= 100:
            found.add(-(-at * steps // 100))
            stretch = max(stretch - 3, 6)
            at += stretch
        return found

    @classmethod
    def first(cls, point: Tensor, value: Tensor, gradient: Tensor, origin: Tensor, radius: float) -> Self:
        size = torch.full((len(point),), 2 * radius, dtype=point.dtype, device=point.device)
        nothing = torch.zeros_like(size)
        return cls(point, value, point, point, value, gradient, size, nothing, value, nothing.bool())

    def update(self, point: Tensor, value: Tensor, gradient: Tensor) -> None:
        self.rises = self.rises + (value > self.value)
        super().update(point, value, gradient)

    def at_checkpoint(self, point: Tensor, gradient: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Halve the step size, and return to the best point, where progress has stopped.

        This is where too few steps raised the loss, or where the step size was not halved last time and the best loss
        is still the same (conditions 1 and 2 of the paper).
        """
        stuck = ~self.halved & (self.top_value <= self.checked_value)
        halve = (self.rises < RISES * steps) | stuck
        self.size = torch.where(halve, self.size / 2, self.size)
        self.halved, self.checked_value, self.rises = halve, self.top_value, torch.zeros_like(self.rises)
        return self.back_to_best(halve, point, gradient)

    def direction(self, gradient: Tensor, norm: Norm) -> Tensor:
        return steepest(gradient, norm)


@dataclass
class SparseAscent(Ascent):
    """The ascent in L1: steps along few values of the image, whose number follows the best point so far.

    origin: the input. radius: largest step size. changed: number of values in which the best point differed from the
    input at the last checkpoint. count: number of values that a step changes, int64.
    """

    momentum = 0.0
    wider = ((3.0, 0.3), (2.0, 0.3))

    origin: Tensor
    radius: Tensor
    changed: Tensor
    count: Tensor

    @staticmethod
    def start(x: Tensor, norm: Norm, radius: float, seed: int) -> Tensor:
        """Return normal noise that is projected on the ball; uniform noise would change every value by very little."""
        noise = draw_per_input(x, seed, lambda generator: torch.randn(x.shape[1:], generator=generator))
        return project(x + noise, x, norm, radius)

    @staticmethod
    def checkpoints(steps: int) -> Collection[int]:
        return range(0, steps + 1, max(steps // 25, 1))[1:]

    @classmethod
    def first(cls, point: Tensor, value: Tensor, gradient: Tensor, origin: Tensor, radius: float) -> Self:
        size = torch.full((len(point),), radius, dtype=point.dtype, device=point.device)
        changed = changed_values(point, origin)
        return cls(point, value, point, point, value, gradient, size, origin, size, changed, thinned(changed))

    def at_checkpoint(self, point: Tensor, gradient: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Where the best point became sparser, return to it with the largest step size; elsewhere take shorter steps.

        The steps to come change fewer values than the best point has changed.
        """
        changed = changed_values(self.top, self.origin)
        sparser = changed < SPARSER * self.changed
        self.size = torch.where(sparser, self.radius, torch.maximum(self.size / THINNING, SHORTEST * self.radius))
        self.changed, self.count = changed, thinned(changed)
        return self.back_to_best(sparser, point, gradient)

    def direction(self, gradient: Tensor, norm: Norm) -> Tensor:
        return sparse_step(gradient, self.count)


def changed_values(point: Tensor, origin: Tensor) -> Tensor:
    """Return in how many values each point differs from its input → [N] int64."""
    return (point != origin).flatten(1).sum(1)


def thinned(changed: Tensor) -> Tensor:
    """Return how many values a step changes after a point with that many changed values, [N] int64."""
    return (changed / THINNING).ceil().long().clamp_min(1)


ASCENTS: Mapping[Norm, type[Ascent]] = {"linf": SteadyAscent, "l2": SteadyAscent, "l1": SparseAscent}
