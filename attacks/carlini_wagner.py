"""The L2 attack of Carlini & Wagner 2017, "Towards Evaluating the Robustness of Neural Networks"."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor
from torch.nn import functional as F

from manifold_bench.attacks.adam import Moments
from manifold_bench.attacks.base import ViewAttack
from manifold_bench.attacks.batching import all_rows, remaining
from manifold_bench.attacks.gradient import CONFIRM_EVERY, Best, or_random
from manifold_bench.attacks.losses import accepted_and_wrong, selective, typical_temperature
from manifold_bench.attacks.target import Target
from manifold_bench.attacks.threat import Norm, expand
from manifold_bench.attacks.view import View

PROGRESS = 0.9999
"""A descent ends where a tenth of its steps left the loss above this share of its value (as in the authors' code)."""


@dataclass(frozen=True, kw_only=True)
class CarliniWagner(ViewAttack):
    """Carlini and Wagner's L2 attack: the smallest perturbation with a large enough margin, by Adam.

    min ‖δ‖² + c · max(z_y − max_{j≠y} z_j, −κ) over δ, with x + δ clipped to [0,1] after each step; c is found by
    binary search.

    Clipping is one of the three ways in section 5 of the paper. Its final one, x + δ = (tanh w + 1)/2, cannot move
    pixels that are exactly 0 or 1, where tanh is saturated. Logits are in units of the `typical_temperature` of the
    clean input's logits, so that c means the same for logits of any scale. On a defense that rejects, the loss becomes
    the reject excess as soon as the answer is wrong (`attacks.losses.selective`).

    searches: number of values of c that are tried: each is ten times the last until one succeeds; then bisection
    follows. c: the first value. rate, steps: Adam's learning rate and number of steps for each value of c.
    confidence: the margin κ that a success needs. The defaults are those of CleverHans; Defense-GAN's paper uses
    searches = 1, steps = 100, rate = 10, c = 100.
    early: whether an input leaves a descent once a tenth of its steps lowered neither the least loss nor the smallest
    distance of a success (the authors' code stops whole batches, and only by the loss). Inputs that are wrong but
    rejected stay, because their reject excess may be larger than the margin was before.
    """

    paper = "carlini2017"
    version: ClassVar[int] = 2
    norms: ClassVar[tuple[Norm, ...]] = ("l2",)
    minimal = True

    norm: Norm = "l2"
    searches: Annotated[int, Ge(1)] = 5
    steps: Annotated[int, Ge(1)] = 1000
    rate: Annotated[float, Gt(0), Lt(math.inf)] = 5e-3
    c: Annotated[float, Gt(0), Lt(math.inf)] = 0.01
    confidence: Annotated[float, Ge(0), Lt(math.inf)] = 0.0
    early: bool = True

    def passes(self) -> tuple[int, int]:
        return 1 + self.searches * self.steps, self.searches * self.steps

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        rows = all_rows(x)
        view = self.view(target)
        clean = view.answer(x, rows)
        beaten = view.confirmed(x, y, rows, accepted_and_wrong(clean, y, view.num_classes))
        unit = typical_temperature(clean, view.num_classes)
        nearest = Best(x.clone(), torch.where(beaten, 0.0, -torch.inf).to(x))
        rows = rows[~beaten]
        weight, lower, upper = x.new_full((len(x),), self.c), x.new_zeros(len(x)), x.new_full((len(x),), torch.inf)
        for _ in range(self.searches):
            if not len(rows):
                break
            succeeded = self._descend(Search(self.view(target), x, y, weight / unit, nearest), rows)
            upper[rows] = torch.where(succeeded, weight[rows], upper[rows])
            lower[rows] = torch.where(succeeded, lower[rows], weight[rows])
            weight = torch.where(upper.isfinite(), (lower + upper) / 2, 10 * weight)
        return nearest.point

    def _descend(self, search: Search, rows: Tensor) -> Tensor:
        """Run one descent of those rows, update `search.nearest`, and return which of them succeeded, [n] bool."""
        view, x, y, weight, nearest = vars(search).values()
        succeeded = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        begun, image = rows, x.index_select(0, rows)
        origin, memory = image, Moments.none(image)
        least, least_before, distance_before = (x.new_full((len(rows),), torch.inf) for _ in range(3))
        for step in range(self.steps):

            def excess(logits: Tensor, label: Tensor = y[rows]) -> Tensor:
                return F.relu(self.confidence - selective(logits, label, view.num_classes))

            logits, lacking, slope = view.ascent(image, excess, rows)
            claimed = accepted_and_wrong(logits, y[rows], view.num_classes) & (lacking <= 0)
            due = step == self.steps - 1 or step % CONFIRM_EVERY == 0
            beaten = view.confirmed(image, y[rows], rows, claimed, due)
            succeeded[rows[beaten]] = True
            size = (image - origin).square().flatten(1).sum(1)
            nearest.update(rows, image, -size.sqrt().masked_fill(~beaten, torch.inf))
            least = torch.minimum(least, size + weight[rows] * lacking)
            if self.early and step % max(self.steps // 10, 1) == 0:
                distance = -nearest.loss[rows]
                past = (logits[:, : view.num_classes].argmax(1) != y[rows]) & ~beaten
                going = (least < PROGRESS * least_before) | (distance < PROGRESS * distance_before) | past
                least_before, distance_before = least[going], distance[going]
                rows, origin, least, image, slope, lacking = remaining(
                    going, rows, origin, least, image, slope, lacking
                )
                memory = memory.only(going)
                if not len(rows):
                    break
            slope = torch.where(expand(lacking > 0, slope), or_random(slope, image, step), 0.0)
            memory = memory.after(2 * (image - origin) + expand(weight[rows], slope) * slope)
            image = (image - memory.step(self.rate, step + 1, epsilon=1e-8)).clamp(0, 1)
        return succeeded[begun]


@dataclass(frozen=True)
class Search:
    """One descent for images x [N,C,H,W] with labels y [N], each with its own value of c.

    weight: c [N]. It multiplies the margin of the logits, so it is in inverse units of the logits. nearest: the nearest
    adversarial point met so far for each image; `Best` keeps the point of the largest value, here minus the distance.
    """

    view: View
    x: Tensor
    y: Tensor
    weight: Tensor
    nearest: Best
