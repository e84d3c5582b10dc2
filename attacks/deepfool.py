"""DeepFool: repeated steps to the nearest linearised boundary (Moosavi-Dezfooli et al. 2016)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Lt
from torch import Tensor

from manifold_bench.attacks.base import ViewAttack
from manifold_bench.attacks.batching import all_rows, remaining
from manifold_bench.attacks.gradient import CONFIRM_EVERY, or_stray
from manifold_bench.attacks.losses import accepted_and_wrong, boundary, likeliest_wrong
from manifold_bench.attacks.target import Target
from manifold_bench.attacks.threat import expand, steepest

SHORTEST = 1e-5
"""Length of the shortest step; without it steps would become ever shorter right before a boundary."""

DOUBLINGS = 12
"""Largest number of times that the shortest step is doubled where outputs of few bits stay equal."""


@dataclass(frozen=True, kw_only=True)
class DeepFool(ViewAttack):
    """DeepFool: steps to the nearest linearised class boundary until one is crossed.

    A step goes to the boundary with the least |g_k| / ‖∇g_k‖_*, g_k = f_k − f_y, and is |g_k| ∇g_k / ‖∇g_k‖₂² in L2
    (algorithm 2 of the paper), |g_k| sign(∇g_k) / ‖∇g_k‖₁ in L∞. The perturbation is small, but rarely the smallest.

    steps: largest number of steps. overshoot: how much farther than the linearised boundary each step goes, as a share
    of the step. candidates: number of wrong classes whose boundaries count, the likeliest at the current point.

    The point is clipped to [0,1] after every step. On a defense that rejects, the boundary is that of acceptance as
    soon as the answer is wrong. An input leaves the batch as soon as the attack succeeds on it.
    """

    paper = "moosavi2016"
    version: ClassVar[int] = 2
    minimal = True

    steps: Annotated[int, Ge(1)] = 50
    overshoot: Annotated[float, Ge(0), Lt(math.inf)] = 0.02
    candidates: Annotated[int, Ge(1)] = 10

    def passes(self) -> tuple[int, int]:
        return self.steps, self.steps * min(self.candidates, 9)  # a guess: no number of classes is known here

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        view = self.view(target)
        point, rows = x.clone(), all_rows(x)
        ties = torch.zeros(len(x), device=x.device)
        for step in range(self.steps):
            label = y[rows]

            def scores(logits: Tensor, label: Tensor = label) -> Tensor:
                nearest = likeliest_wrong(logits.detach(), label, view.num_classes)[:, : self.candidates]
                return boundary(logits, label, view.num_classes, nearest)

            here = point.index_select(0, rows)
            logits, values, slopes = view.ascent(here, scores, rows)
            claimed = accepted_and_wrong(logits, label, view.num_classes)
            beaten = view.confirmed(here, label, rows, claimed, due=step % CONFIRM_EVERY == 0)
            rows, here, values, slopes = remaining(~beaten, rows, here, values, slopes)
            if not len(rows):
                break
            tied = (values == 0).any(1)
            least = SHORTEST * 2 ** torch.where(tied, ties[rows], 0.0)
            ties[rows] = (ties[rows] + 1).clamp_max(DOUBLINGS) * tied
            step_taken = or_stray(self._step(values, slopes, least), slopes, here, self.norm, step)
            point.index_copy_(0, rows, (here + (1 + self.overshoot) * step_taken).clamp(0, 1))
        return point  # the judge decides about the last points

    def _step(self, values: Tensor, slopes: Tensor, least: Tensor) -> Tensor:
        """Return the steps [n,C,H,W] to the nearest of M boundaries with those values [n,M] and gradients [n,M,C,H,W].

        The distance to a boundary is |value| over the gradient's dual norm, and at least `least` [n]; boundaries
        without a gradient are left out.
        """
        order = 1 if self.norm == "linf" else 2
        lengths = torch.linalg.vector_norm(slopes.flatten(2), ord=order, dim=2)
        distances = (values.abs() / lengths).maximum(least[:, None]).masked_fill(lengths == 0, torch.inf)
        nearest = distances.argmin(1, keepdim=True)
        distance = distances.gather(1, nearest)[:, 0]
        slope = slopes[torch.arange(len(slopes), device=slopes.device), nearest[:, 0]]
        return expand(distance.masked_fill(distance.isinf(), 0.0), slope) * steepest(slope, self.norm)
