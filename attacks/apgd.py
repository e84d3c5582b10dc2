"""Auto-PGD: projected gradient ascent whose step size follows its progress (Croce & Hein 2020 and, in L1, 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from manifold_bench.attacks.ascent import ASCENTS
from manifold_bench.attacks.base import ViewAttack
from manifold_bench.attacks.batching import all_rows, remaining
from manifold_bench.attacks.contract import AttackableDefense
from manifold_bench.attacks.gradient import NO_RANDOMNESS, Best, Climb, averaged, evaluator_of, or_random
from manifold_bench.attacks.losses import Loss, cross_entropy, dlr, likeliest_wrong, margin, wrong_first
from manifold_bench.attacks.target import Target
from manifold_bench.attacks.threat import Norm, expand, project

LOSSES: Mapping[str, Loss] = {"cross-entropy": cross_entropy, "dlr": dlr, "margin": margin}


@dataclass(frozen=True, kw_only=True)
class APGD(ViewAttack):
    """Auto-PGD: gradient ascent with momentum, whose step size halves where progress stops.

    The first step is 2 ε long; progress is checked at the paper's checkpoints.

    In L1 it is APGD-L1 (Croce & Hein 2021, "Mind the box"): each step changes a few pixels, whose number follows the
    best point so far, and ends at the nearest point of the ball within [0,1]. The first three tenths of the steps go
    within 3 ε, the next three tenths within 2 ε, and the rest within ε.

    On a defense that rejects, the attack climbs the loss until the answer is wrong, and then minus the reject excess
    (`attacks.losses.wrong_first`), so that a wrong answer is never given up for a right one. An input leaves the batch
    as soon as the attack succeeds on it.

    loss: loss that is climbed: `cross-entropy`; `dlr`, the difference of logits ratio, which needs four classes, so
    that with two or three the margin takes its place; or `margin`, the largest wrong logit minus the true one.
    targets: number of wrong classes that are target classes in turn, the likeliest for the clean input first; not with
    loss = `cross-entropy`. None: the attack is untargeted.
    steps: number of steps of each ascent. restarts: number of ascents towards each class.
    eot: number of answers of a randomized defense over which every loss and gradient is averaged (EOT).
    """

    paper = "croce2020apgd"
    version: ClassVar[int] = 2
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")
    adapted_to = ("adversarial training", "gradient masking", "input transformation")

    loss: Literal["cross-entropy", "dlr", "margin"] = "cross-entropy"
    targets: Annotated[int, Ge(1)] | None = None
    steps: Annotated[int, Ge(1)] = 100
    restarts: Annotated[int, Ge(1)] = 1
    eot: Annotated[int, Ge(1)] = 1

    def __post_init__(self) -> None:
        if self.targets is not None and self.loss == "cross-entropy":
            raise ValueError("targets: is not allowed with loss = 'cross-entropy'; set another, or leave targets out")

    def unsuited(self, defense: AttackableDefense) -> str | None:
        return (NO_RANDOMNESS if self.eot > 1 and not defense.randomized else None) or super().unsuited(defense)

    def passes(self) -> tuple[int, int]:
        climbs, balls = self.restarts * (self.targets or 1), len(self._balls(1.0))
        forwards = climbs * (self.steps + balls) * self.eot
        return forwards + (self.targets is not None), climbs * self.steps * self.eot

    def _balls(self, eps: float) -> list[tuple[float, int]]:
        """Return radius and number of steps of each ball that an ascent goes through; the last radius is ε."""
        balls = [(factor * eps, int(share * self.steps)) for factor, share in ASCENTS[self.norm].wider]
        return [*(ball for ball in balls if ball[1]), (eps, self.steps - sum(steps for _, steps in balls))]

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        best = Best(x.clone(), torch.full((len(x),), -torch.inf, dtype=torch.float64, device=x.device))
        rows = all_rows(x)
        aims: list[Tensor | None] = [None]
        if self.targets is not None:
            clean = self.view(target).answer(x, rows)
            aims = [*likeliest_wrong(clean, y, target.num_classes)[:, : self.targets].unbind(1)]
        climbed = LOSSES["margin" if self.loss == "dlr" and target.num_classes < 4 else self.loss]
        balls = self._balls(eps)
        climbs = list(product(aims, range(self.restarts)))
        for number, (aim, _) in enumerate(climbs):
            point = ASCENTS[self.norm].start(x[rows], self.norm, balls[0][0], seed + number)
            views = [self.view(target) for _ in range(self.eot)]
            loss = wrong_first(climbed) if views[0].rejects else climbed
            evaluate = averaged([evaluator_of(view, loss, y, aim) for view in views])
            climb = Climb(views[0], evaluate, x, y, eps, best, final=number == len(climbs) - 1)
            for radius, steps in balls:
                if radius != balls[0][0]:
                    point = project(point, x[rows], self.norm, radius)
                rows, point = self._ascend(climb, rows, point, radius, steps)
            if not len(rows):
                break
        return best.point

    def _ascend(self, climb: Climb, rows: Tensor, point: Tensor, radius: float, steps: int) -> tuple[Tensor, Tensor]:
        """Ascend from points [n,C,H,W] of those rows within a ball; return the rows without a success, and their best.

        Within the ball of ε, `climb.best` is updated and successes leave. Within a wider one nothing is a success.
        """
        kind, checked = ASCENTS[self.norm], 0
        due, state = kind.checkpoints(steps), None
        origin = climb.x.index_select(0, rows)
        for step in range(steps + 1):
            last = step == steps
            logits, values, gradient = climb.evaluate(point, rows, last)
            beaten = torch.zeros_like(rows, dtype=torch.bool)
            if radius == climb.eps:
                beaten = climb.beaten(point, rows, logits, step, last)
                climb.best.update(rows, point, values, beaten)
            state = kind.first(point, values, gradient, origin, radius) if state is None else state
            state.update(point, values, gradient)
            if step in due:
                point, gradient = state.at_checkpoint(point, gradient, step - checked)
                checked = step
            state = state.only(~beaten)
            rows, point, gradient, origin = remaining(~beaten, rows, point, gradient, origin)
            if last or not len(rows):
                break
            direction = state.direction(or_random(gradient, point, step), self.norm)
            stepped = project(point + expand(state.size, point) * direction, origin, self.norm, radius)
            if step and state.momentum:
                moved = point + (1 - state.momentum) * (stepped - point) + state.momentum * (point - state.previous)
                stepped = project(moved, origin, self.norm, radius)
            state.previous, point = state.point, stepped
        assert state is not None  # there is at least one step
        return rows, state.top
