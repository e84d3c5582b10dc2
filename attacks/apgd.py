"""Auto-PGD: projected gradient ascent whose step size follows its progress (Croce & Hein 2020, algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from manifold_bench.attacks.base import ViewAttack
from manifold_bench.attacks.batching import all_rows, remaining
from manifold_bench.attacks.contract import AttackableDefense
from manifold_bench.attacks.gradient import NO_RANDOMNESS, Best, Climb, averaged, looking, or_random, steepest
from manifold_bench.attacks.losses import Loss, cross_entropy, dlr, likeliest_wrong, margin, wrong_first
from manifold_bench.attacks.target import Target
from manifold_bench.attacks.threat import expand, project, random_in_ball

MOMENTUM = 0.75
"""α in the paper: share of the new step in each move; the rest repeats the last move."""

LOSSES: Mapping[str, Loss] = {"cross-entropy": cross_entropy, "dlr": dlr, "margin": margin}

RISES = 0.75
"""ρ in the paper: the step size is halved where a smaller share of the steps since the last checkpoint went up."""


@dataclass(frozen=True, kw_only=True)
class APGD(ViewAttack):
    """Auto-PGD: gradient ascent with momentum, whose step size halves where progress stops.

    The first step is 2 ε long; progress is checked at the paper's checkpoints.

    On a defense that rejects, the attack climbs the loss until the answer is wrong, and then minus the reject excess
    (`attacks.losses.wrong_first`), so that a wrong answer is never given up for a right one. An input leaves the batch
    as soon as the attack succeeds on it.

    loss: loss that is climbed: `cross-entropy`; `dlr`, the difference of logits ratio; or `margin`, which unlike `dlr`
    is defined for two and three classes.
    targets: number of wrong classes that are target classes in turn, the likeliest for the clean input first; not with
    loss = `cross-entropy`. None: the attack is untargeted.
    steps: number of steps of each ascent. restarts: number of ascents towards each class.
    eot: number of answers of a randomized defense over which every loss and gradient is averaged (EOT).
    """

    paper = "croce2020apgd"
    version: ClassVar[int] = 2
    adapted_to = ("adversarial training", "gradient masking")

    loss: Literal["cross-entropy", "dlr", "margin"] = "cross-entropy"
    targets: Annotated[int, Ge(1)] | None = None
    steps: Annotated[int, Ge(1)] = 100
    restarts: Annotated[int, Ge(1)] = 1
    eot: Annotated[int, Ge(1)] = 1

    def __post_init__(self) -> None:
        if self.targets is not None and self.loss == "cross-entropy":
            raise ValueError("targets: not for loss = 'cross-entropy'; set another loss, or leave targets out")

    def unsuited(self, defense: AttackableDefense) -> str | None:
        if self.loss == "dlr" and defense.num_classes < 4:
            return f"loss = 'dlr' needs at least 4 classes, and there are {defense.num_classes}; set loss = 'margin'"
        if self.eot > 1 and not defense.randomized:
            return NO_RANDOMNESS
        return super().unsuited(defense)

    def passes(self) -> tuple[int, int]:
        climbs = self.restarts * (self.targets or 1)
        return climbs * (self.steps + 1) * self.eot + (self.targets is not None), climbs * self.steps * self.eot

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        best = Best(x.clone(), torch.full((len(x),), -torch.inf, dtype=torch.float64, device=x.device))
        rows = all_rows(x)
        aims: list[Tensor | None] = [None]
        if self.targets is not None:
            clean = self.view(target).answer(x, rows)
            aims = [*likeliest_wrong(clean, y, target.num_classes)[:, : self.targets].unbind(1)]
        climbed = LOSSES[self.loss]
        climbs = list(product(aims, range(self.restarts)))
        for number, (aim, _) in enumerate(climbs):
            start = random_in_ball(x[rows], self.norm, eps, seed + number)
            views = [self.view(target) for _ in range(self.eot)]
            loss = wrong_first(climbed) if views[0].rejects else climbed
            look = averaged([looking(view, loss, y, aim) for view in views])
            climb = Climb(views[0], look, x, y, eps, best, final=number == len(climbs) - 1)
            rows = self._climb(climb, rows, start)
            if not len(rows):
                break
        return best.point

    def _climb(self, climb: Climb, rows: Tensor, point: Tensor) -> Tensor:
        """Ascend from points [n,C,H,W] of those rows, update `climb.best`, and return the rows without a success."""
        eps = climb.eps
        due, checked = checkpoints(self.steps), 0
        state: Ascent | None = None
        origin = climb.x.index_select(0, rows)
        for step in range(self.steps + 1):
            last = step == self.steps
            logits, values, gradient = climb.look(point, rows, last)
            beaten = climb.beaten(point, rows, logits, step, last)
            climb.best.update(rows, point, values, beaten)
            state = Ascent.begun(point, values, gradient, 2 * eps) if state is None else state
            state.seen(point, values, gradient)
            if step in due:
                point, gradient = state.checked(point, gradient, step - checked)
                checked = step
            state = state.only(~beaten)
            rows, point, gradient, origin = remaining(~beaten, rows, point, gradient, origin)
            if last or not len(rows):
                break
            ahead = steepest(or_random(gradient, point, step), self.norm)
            stepped = project(point + expand(state.size, point) * ahead, origin, self.norm, eps)
            if step:
                moved = point + MOMENTUM * (stepped - point) + (1 - MOMENTUM) * (point - state.previous)
                stepped = project(moved, origin, self.norm, eps)
            state.previous, point = state.point, stepped
        return rows


@dataclass
class Ascent:
    """The state of an ascent for each of n inputs; points and gradients are [n,C,H,W], all others [n].

    point, value: current point and its loss. previous: the point before. top, top_value, top_gradient: the best point,
    its loss and its gradient. size: step size. rises: number of steps since the last checkpoint that raised the loss.
    checked_value: best loss at the last checkpoint. halved: whether the step size was halved there.
    """

    point: Tensor
    value: Tensor
    previous: Tensor
    top: Tensor
    top_value: Tensor
    top_gradient: Tensor
    size: Tensor
    rises: Tensor
    checked_value: Tensor
    halved: Tensor

    @classmethod
    def begun(cls, point: Tensor, value: Tensor, gradient: Tensor, size: float) -> Ascent:
        """Return the state at the first point, with step size `size`."""
        steps = torch.full((len(point),), size, dtype=point.dtype, device=point.device)
        nothing = torch.zeros_like(steps)
        return cls(point, value, point, point, value, gradient, steps, nothing, value, nothing.bool())

    def only(self, going: Tensor) -> Ascent:
        """Return the state of the inputs where `going` [n] is true."""
        return Ascent(*remaining(going, *vars(self).values()))

    def seen(self, point: Tensor, value: Tensor, gradient: Tensor) -> None:
        """Update the state with a new point, its loss and its gradient."""
        self.rises = self.rises + (value > self.value)
        better = value > self.top_value
        self.top = torch.where(expand(better, point), point, self.top)
        self.top_gradient = torch.where(expand(better, point), gradient, self.top_gradient)
        self.top_value = torch.where(better, value, self.top_value)
        self.point, self.value = point, value

    def checked(self, point: Tensor, gradient: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Return the point to continue from and the gradient there, at a checkpoint `steps` steps after the last one.

        The step size is halved, and the ascent returns to its best point, where too few steps raised the loss, or where
        the step size was not halved last time and the best loss is still the same (conditions 1 and 2 of the paper).
        """
        stuck = ~self.halved & (self.top_value <= self.checked_value)
        halve = (self.rises < RISES * steps) | stuck
        self.size = torch.where(halve, self.size / 2, self.size)
        self.halved, self.checked_value, self.rises = halve, self.top_value, torch.zeros_like(self.rises)
        where = expand(halve, point)
        return torch.where(where, self.top, point), torch.where(where, self.top_gradient, gradient)


def checkpoints(steps: int) -> set[int]:
    """Return the numbers of steps after which the step size is checked: ⌈p · steps⌉ for p = 0.22, 0.41, 0.57, …, 0.99.

    Each interval between two p is 0.03 shorter than the last one, but no shorter than 0.06.
    """
    found, at, stretch = set(), 22, 22
    while at <= 100:
        found.add(-(-at * steps // 100))
        stretch = max(stretch - 3, 6)
        at += stretch
    return found
