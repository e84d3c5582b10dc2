"""Images of nothing that a defense takes for something, by gradients: Ghosh, Losalka and Black 2019, eq. 11."""

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
from manifold_bench.attacks.gradient import CONFIRM_EVERY, steepest
from manifold_bench.attacks.losses import margin
from manifold_bench.attacks.target import Target
from manifold_bench.attacks.threat import Norm, random_in_ball
from manifold_bench.attacks.view import View


@dataclass(frozen=True, kw_only=True)
class Fooling(ViewAttack):
    """Turns noise into an image that is accepted as a chosen class, by gradients (eq. 11).

    Minimises (SSE/τ_dec)^a + (d_t/τ_enc)^b, d_t the Mahalanobis distance² of the encoding to the mean of that class:
    in general the sum over the detectors of score over threshold if the answer were that class, to the power b for the
    detector `encoding` and a for every other. Until the class is reached, what its logit lacks is added. Where a
    defense doesn't tell its detectors apart, its reject score is minded only once the class is reached: before that it
    speaks of another class. Without rejection the class's margin is all there is.

    a, b: the exponents of the detectors' terms, unpublished. With a = b the encoder is led astray first, by a pattern
    that no decoder makes, and many descents end in a local minimum there; with a > b the image is made one the decoder
    knows, and then that class.
    steps, restarts: number of steps of a descent and number of descents. The first starts from the input, the others
    from fresh uniform noise: a descent gets there within some twenty steps or not at all. An image that is accepted as
    its aim leaves the batch.
    step_size: length of the first step of a descent, as a share of the range a pixel has; it falls to 0 along a half
    cosine. The paper names no optimiser; ours is Adam on the gradient's direction, since the powers make its length
    vary by orders of magnitude.
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
        # An attacker who knows a part only can't tell whether one descent was enough
        for descent in range(self.restarts if self.part == "defense" else 1):
            start = random_in_ball(x[rows], "fooling", math.inf, seed + descent) if descent else x[rows]
            rows = self._descend(view, x, rows, start, found)
            if not len(rows):
                break
        return found

    def _descend(self, view: View, x: Tensor, rows: Tensor, image: Tensor, found: Tensor) -> Tensor:
        """One descent of those rows from `image`; writes into `found` and returns the rows not accepted yet."""
        target, aims, memory = view.target, aimed_at(view.target), Moments.none(image)
        # Ratios for the class asked about, or one for whatever the answer is (see View.detection)
        of_aim = bool(target.defense.detectors) and not view.iterative
        detectors = target.defense.detectors if of_aim else ("reject score",)
        powers = x.new_tensor([self.b if name == "encoding" else self.a for name in detectors])

        def loss(_: Tensor, logits: Tensor, ratios: Tensor) -> Tensor:
            lacking = -margin(logits, aims[rows], target.num_classes, aims[rows])
            if not ratios.shape[1]:
                return -lacking
            detected = ratios.clamp_min(0).pow(powers).sum(1)
            return -(F.relu(lacking) + detected) if of_aim else -torch.where(lacking >= 0, lacking, detected)

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
        found[rows] = image  # the points before it were asked about; this one is the judge's to ask
        return rows


def aimed_at(target: Target) -> Tensor:
    """The class that each input is to be taken for [N]; raises ValueError where the attack was handed none."""
    if target.aims is None:
        raise ValueError("this attack needs a class to aim at for each input, and was handed none")
    return target.aims


def accepted_as(aims: Tensor, logits: Tensor, images: Tensor, view: View, rows: Tensor, due: bool = True) -> Tensor:
    """Which images [N,C,H,W] are accepted as the class aimed at [N] → [N] bool, by their logits [N,K] or [N,K+1].

    Where the view is not the deployed defense, what the logits claim is asked of that one, only when due. A view of a
    part is never believed: what it takes for success says nothing of the whole.
    """
    claimed = (logits.argmax(1) == aims) & ~logits.isnan().any(1)
    if view.exact or not claimed.any():
        return claimed
    if not due or view.part != "defense":
        return torch.zeros_like(claimed)
    answer = view.target.verdict(images[claimed], rows[claimed])
    claimed[claimed.clone()] = ~answer.rejected & (answer.labels == aims[claimed])
    return claimed
