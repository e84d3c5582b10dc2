"""Simultaneous perturbation stochastic approximation: gradients estimated from scores (Uesato et al. 2018)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from manifold_bench.attacks.adam import Moments
from manifold_bench.attacks.base import Attack
from manifold_bench.attacks.batching import all_rows, remaining
from manifold_bench.attacks.gradient import Best
from manifold_bench.attacks.square import score
from manifold_bench.attacks.target import Target
from manifold_bench.attacks.threat import draw_per_input, expand, project
from manifold_bench.attacks.view import View


@dataclass(frozen=True, kw_only=True)
class SPSA(Attack):
    """SPSA: climbs a gradient that is estimated from scores at pairs of random points.

    g = mean of v (f(x + δv) − f(x − δv)) / 2δ over random signs v, where f is the margin; then an Adam step along g and
    a projection on the ball. It needs no gradient, so that it also climbs where a defense's gradient is zero or
    shattered.

    steps: number of Adam steps. pairs: number of pairs of points for each estimate (CleverHans: 128). delta: difference
    of every pixel of these points from the pixel of x. rate: Adam's learning rate.

    On a defense that rejects, f leads to a wrong answer first, and then to one that is accepted
    (`attacks.losses.wrong_first` of the margin). An input leaves the batch as soon as the attack succeeds on it.
    """

    paper = "uesato2018"
    knowledge = "score"

    steps: Annotated[int, Ge(1)] = 100
    pairs: Annotated[int, Ge(1)] = 32
    delta: Annotated[float, Gt(0), Lt(math.inf)] = 0.01
    rate: Annotated[float, Gt(0), Lt(math.inf)] = 0.01

    def passes(self) -> tuple[int, int]:
        return 1 + self.steps * (1 + 2 * self.pairs), 0

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        view = target.view()
        best = Best(x.clone(), torch.full((len(x),), -torch.inf, dtype=torch.float64, device=x.device))
        rows, label, point, origin, memory = all_rows(x), y, x, x, Moments.none(x)
        for step in range(self.steps + 1):
            value, beaten = score(view, point, label, rows)
            best.update(rows, point, value, beaten)
            rows, label, point, origin = remaining(~beaten, rows, label, point, origin)
            memory = memory.only(~beaten)
            if step == self.steps or not len(rows):
                break
            memory = memory.after(self._slope(view, point, label, rows, draws(origin, self.pairs, seed + step)))
            point = project(point + memory.step(self.rate, step + 1, epsilon=1e-30), origin, self.norm, eps)
        return best.point

    def _slope(self, view: View, x: Tensor, y: Tensor, rows: Tensor, signs: Tensor) -> Tensor:
        """Return the estimated gradient at x [n,C,H,W], from signs [n,pairs,C,H,W]."""
        total = torch.zeros_like(x)
        for way in signs.unbind(1):
            up, down = (score(view, (x + self.delta * side * way).clamp(0, 1), y, rows)[0] for side in (1, -1))
            total += expand(((up - down) / (2 * self.delta)).nan_to_num(0.0, 0.0, 0.0).to(x), x) * way
        return total / self.pairs


def draws(x: Tensor, pairs: int, seed: int) -> Tensor:
    """Return random signs −1 and 1 for each input x [N,C,H,W], [N,pairs,C,H,W]."""
    shape = (pairs, *x.shape[1:])
    return 2 * draw_per_input(x, seed, lambda generator: torch.randint(0, 2, shape, generator=generator)) - 1
