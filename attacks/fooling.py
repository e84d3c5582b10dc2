"""Gradient search for meaningless images that a defense accepts as a class (Ghosh, Losalka and Black 2019, eq. 11)."""

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
from manifold_bench.attacks.batching import all_rows, remaining
from manifold_bench.attacks.gradient import CONFIRM_EVERY
from manifold_bench.attacks.losses import margin
from manifold_bench.attacks.target import Target
from manifold_bench.attacks.threat import Norm, random_in_ball, steepest
from manifold_bench.attacks.view import View


@dataclass(frozen=True, kw_only=True)
class Fooling(ViewAttack):
    """Turns noise into an image that is accepted as a chosen class, by gradients (eq. 11).

    It minimises (SSE/τ_dec)^a + (d_t/τ_enc)^b, where SSE is the reconstruction error and d_t the squared Mahalanobis
    distance of the encoding to the mean of the target class.

    For other defenses than GMVAE the loss is the sum over the detectors of (score/threshold)^a for the target class as
    the answer, with exponent b for a detector named `encoding`. While the answer is another class, the target class'
    missing margin is added. If a defense has a reject score but no named detectors, the loss is the missing margin
    until the answer is the target class, and the reject score from then on. Without rejection it is the margin alone.

    a, b: exponents of the two detectors' terms; the paper does not give them. With a = b many descents end in a local
    minimum: an image with the right encoding that no decoder could generate. With a > b images become ones that the
    decoder can generate first.
    steps, restarts: number of steps of a descent and number of descents. The first descent starts at the input, the
    others at uniform noise. An image that is accepted as its target class leaves the batch.
    step_size: length of the first step, as a share of a pixel's range; it decreases to 0 along a half cosine. The paper
    names no optimiser. Here it is Adam on normalised gradients, because the exponents make their lengths vary by orders
    of magnitude.
    """

    paper = "ghosh2019"
    norms: ClassVar[tuple[Norm, ...]] = ("fooling",)
    aims = "every"

    norm: Norm = "fooling"
    a: Annotated[float, Ge(1), Le(8)] = 4.0
    b: Annotated[float, Ge(1), Le(8)] = 1.0
    steps: Annotated[int, Ge(1)] = 50
    restarts: Annotated[int, Ge(1)] = 20
    step_size: Annotated[float, Gt(0), Le(1)] = 1.0

    def passes(self) -> tuple[int, int]:
        passes = self.steps * (self.restarts if self.part == "defense" else 1)
        return passes, passes

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        view = self.view(target)
        found, rows = x.clone(), all_rows(x)
        # An attacker who knows only a part cannot know whether one descent was enough
        for descent in range(self.restarts if self.part == "defense" else 1):
            start = random_in_ball(x[rows], "fooling", math.inf, seed + descent) if descent else x[rows]
            rows = self._descend(view, x, rows, start, found)
            if not len(rows):
                break
        return found

    def _descend(self, view: View, x: Tensor, rows: Tensor, image: Tensor, found: Tensor) -> Tensor:
        """Run one descent of those rows from `image`, write into `found`, and return the rows not accepted yet."""
        target, aims, memory = view.target, aimed_at(view.target), Moments.none(image)
        # Either there are ratios for the target class, or one ratio for the actual answer (see View.detection)
        of_aim = bool(target.defense.detectors) and not view.iterative
        detectors = target.defense.detectors if of_aim else ("reject score",)
        powers = x.new_tensor([self.b if name == "encoding" else self.a for name in detectors])

        def loss(_: Tensor, logits: Tensor, ratios: Tensor) -> Tensor:
            gap = -margin(logits, aims[rows], target.num_classes, aims[rows])
            if not ratios.shape[1]:
                return -gap
            detected = ratios.clamp_min(0).pow(powers).sum(1)
            return -(F.relu(gap) + detected) if of_aim else -torch.where(gap >= 0, gap, detected)

        for step in range(self.steps):
            logits, _, _, gradient = view.detected_ascent(image, aims[rows], loss, rows)
            accepted = accepted_as(aims[rows], logits, image, view, rows, due=step % CONFIRM_EVERY == 0)
            found[rows] = image
            rows, image, gradient = remaining(~accepted, rows, image, gradient)
            if not len(rows):
                return rows
            memory = memory.only(~accepted).after(steepest(gradient, "l2"))
            size = self.step_size * (1 + math.cos(math.pi * step / self.steps)) / 2
            image = (image + memory.step(size, step + 1, epsilon=1e-12)).clamp(0, 1)
        found[rows] = image  # the judge decides about the last points
        return rows


def aimed_at(target: Target) -> Tensor:
    """Return the target class of each input [N]; raises ValueError where there are none."""
    if target.aims is None:
        raise ValueError("this attack needs a class to aim at for each input, and there is none")
    return target.aims


def accepted_as(aims: Tensor, logits: Tensor, images: Tensor, view: View, rows: Tensor, due: bool = True) -> Tensor:
    """Return which images [N,C,H,W] with those logits [N,K] or [N,K+1] are accepted as their target class → [N] bool.

    If the view is not exact, the deployed defense has to confirm it, which it does only when `due`. A view of a part
    gives no success, because a success on a part says nothing about the whole defense.
    """
    claimed = (logits.argmax(1) == aims) & ~logits.isnan().any(1)
    if view.exact or not claimed.any():
        return claimed
    if not due or view.part != "defense":
        return torch.zeros_like(claimed)
    answer = view.target.verdict(images[claimed], rows[claimed])
    claimed[claimed.clone()] = ~answer.rejected & (answer.labels == aims[claimed])
    return claimed
