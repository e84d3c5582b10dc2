"""Random noise, a control that every real attack has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from manifold_bench.attacks.base import Attack
from manifold_bench.attacks.batching import all_rows
from manifold_bench.attacks.target import Target
from manifold_bench.attacks.threat import NORMS, UNBOUNDED, Norm, draw_per_input, random_in_ball


@dataclass(frozen=True, kw_only=True)
class RandomNoise(Attack):
    """Tries random points of the ε-ball: a control, which every real attack has to beat.

    The points are x + δ with ‖δ‖ ≤ ε, clipped to [0,1]. The first one that is accepted and wrong is returned, or else
    the last one, without a query of its own, since the judge decides about it.

    draws: number of points for each input.
    distribution: `uniform` in the ε-ball, or `gaussian`: pixels N(½, ¼²) clipped to [0,1], for norms without ε.
    """

    norms: ClassVar[tuple[Norm, ...]] = NORMS
    knowledge = "decision"

    draws: Annotated[int, Ge(1)] = 10
    distribution: Literal["uniform", "gaussian"] = "uniform"

    def __post_init__(self) -> None:
        if self.distribution == "gaussian" and self.norm not in UNBOUNDED:
            raise ValueError(f"distribution: 'gaussian' is for the norms {', '.join(UNBOUNDED)}, not {self.norm!r}")

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        best = x.clone()
        rows = all_rows(x)
        for draw in range(self.draws):
            candidate = self._points(x[rows], eps, seed + draw)
            best[rows] = candidate
            if draw == self.draws - 1:
                break  # the judge decides about the last draw
            rows = rows[~target.verdict(candidate, rows).wrong(y[rows])]
            if not len(rows):
                break
        return best

    def _points(self, x: Tensor, eps: float, seed: int) -> Tensor:
        """Draw a random point for each x [n,C,H,W]."""
        if self.distribution == "uniform":
            return random_in_ball(x, self.norm, eps, seed)
        pixels = draw_per_input(x, seed, lambda generator: torch.randn(x.shape[1:], generator=generator))
        return (0.5 + 0.25 * pixels).clamp(0, 1)

    def passes(self) -> tuple[int, int]:
        return self.draws - 1, 0
