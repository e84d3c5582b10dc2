"""σ-zero: minimal L0 perturbations by gradient descent on a smooth approximation of L0 (Cinà et al. 2025)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from torch.nn import functional as F

from manifold_bench.attacks.adam import Moments
from manifold_bench.attacks.base import ViewAttack
from manifold_bench.attacks.batching import all_rows
from manifold_bench.attacks.gradient import CONFIRM_EVERY, nearest_so_far, or_random
from manifold_bench.attacks.losses import accepted_and_wrong, selective, typical_temperature
from manifold_bench.attacks.target import Target
from manifold_bench.attacks.threat import Norm, expand, flat_norm

SHORTEST = 0.1
"""Learning rate at the end, as a share of the first."""


@dataclass(frozen=True, kw_only=True)
class SigmaZero(ViewAttack):
    """σ-zero: descends a smooth approximation of L0 and a margin together, and drops pixels that changed little.

    δ ← Π(δ − η Adam(∇ / ‖∇‖∞)) with ∇ the gradient of max(margin, 0) + mean over pixels of ‖δ_p‖² / (‖δ_p‖² + σ), where
    Π clips x + δ to [0,1] and sets pixels with max |δ_p| < τ to zero; then τ grows by t η after a success, and falls by
    t η otherwise.

    In the paper every value of the image is a component of its own. L0 counts pixels here, so that the channels of a
    pixel change together; in grey images both are the same. The margin is in units of the `typical_temperature`, so
    that a network whose logits are multiplied by 10 is attacked in the same way.

    steps: number of descent steps, each one forward and one backward pass. rate: learning rate η at the
    beginning; it falls to a tenth along a cosine. sigma: σ, the smoothness of the approximation of L0. threshold: τ at
    the beginning, the size below which the change of a pixel is dropped. change: factor t by which τ is adapted.

    On a defense that rejects, the margin leads to a wrong answer first, and then to one that is accepted
    (`attacks.losses.selective`). The perturbation of fewest pixels is returned.
    """

    paper = "cina2025"
    norms: ClassVar[tuple[Norm, ...]] = ("l0",)
    minimal = True
    adapted_to = ("adversarial training", "gradient masking", "input transformation")
    """As for APGD: the paper attacks adversarially trained models, the margin of the logits in their own unit does not
    vanish behind distillation, and the gradient passes a transformation by the defense's own estimate (BPDA)."""

    norm: Norm = "l0"
    steps: Annotated[int, Ge(1)] = 1000
    rate: Annotated[float, Gt(0), Le(10)] = 1.0
    sigma: Annotated[float, Gt(0), Le(1)] = 1e-3
    threshold: Annotated[float, Ge(0), Le(1)] = 0.3
    change: Annotated[float, Ge(0), Le(1)] = 0.01

    def passes(self) -> tuple[int, int]:
        return 1 + self.steps, self.steps

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        view = self.view(target)
        nearest, rows = nearest_so_far(view, x, y, view.answer(x, all_rows(x)))
        point = origin = x[rows]
        label, memory = y[rows], Moments.none(origin)
        threshold = origin.new_full((len(rows),), self.threshold)

        def margin_loss(logits: Tensor) -> Tensor:
            return F.relu(-selective(logits, label, view.num_classes)) / typical_temperature(logits, view.num_classes)

        for step in range(self.steps if len(rows) else 0):
            logits, short, slope = view.ascent(point, margin_loss, rows)
            claimed = accepted_and_wrong(logits, label, view.num_classes)
            due = step == self.steps - 1 or step % CONFIRM_EVERY == 0
            beaten = view.confirmed(point, label, rows, claimed, due)
            size = flat_norm(point - origin, "l0")
            nearest.update(rows, point, -size.masked_fill(~beaten, torch.inf))
            slope = torch.where(expand(short > 0, slope), or_random(slope, point, step), 0.0)
            slope = slope + smooth_slope(point - origin, self.sigma)
            memory = memory.after(slope / expand(flat_norm(slope, "linf").clamp_min(1e-12), slope))
            point = (point - memory.step(self._rate(step), step + 1, epsilon=1e-8)).clamp(0, 1)
            rate = self.change * self._rate(step + 1)
            threshold = (threshold + torch.where(claimed, rate, -rate)).clamp(0, 1)
            kept = (point - origin).abs().amax(1, keepdim=True) >= expand(threshold, point)
            point = torch.where(kept, point, origin)
        return nearest.point

    def _rate(self, step: int) -> float:
        """Return η after that many steps."""
        return self.rate * (SHORTEST + (1 - SHORTEST) * (1 + math.cos(math.pi * step / self.steps)) / 2)


def smooth_slope(delta: Tensor, sigma: float) -> Tensor:
    """Return the gradient of the mean over pixels of ‖δ_p‖² / (‖δ_p‖² + σ) at δ [N,C,H,W]; same shape."""
    square = delta.square().sum(1, keepdim=True)
    return 2 * sigma * delta / (square + sigma).square() / delta[0, 0].numel()
