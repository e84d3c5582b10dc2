"""Images of nothing that a defense takes for something, by gradients: Ghosh, Losalka and Black 2019, eq. 11."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from torch.nn import functional as F

from attacks.gradient import CONFIRM_EVERY, GradientAttack, steepest
from attacks.losses import margin
from attacks.target import Target, View
from attacks.threat import Norm, project

DECAYS = (0.9, 0.999)
"""Adam's, of the gradient's mean and of its square."""


@dataclass(frozen=True, kw_only=True)
class Fooling(GradientAttack):
    """Descends from noise to an image that is accepted as the class aimed at (Ghosh et al. 2019, eq. 11).

    Minimises (SSE/τ_dec)^a + (d_t/τ_enc)^b, d_t the Mahalanobis distance² of the encoding to the mean of that class:
    in general the sum over the detectors of score over threshold if the answer were that class, to the power b for the
    detector `encoding` and a for every other. Until the class is reached, what its logit lacks is added. Where a
    defense doesn't tell its detectors apart, its reject score is minded only once the class is reached: before that it
    speaks of another class. Without rejection the class's margin is all there is.

    The paper gives no a and b. With a = b the encoder is led astray first, by a pattern that no decoder makes, and
    some classes end in a local minimum there; with a > b the image is made one the decoder knows, and then that class.

    The paper names no optimiser. Ours is Adam on the gradient's direction, as a power's length says nothing of the way
    left, in [0,1], with the step falling from step_size to 0 along a half cosine. An image that is accepted as its aim
    leaves the batch.
    stay: L∞ radius about the noise that the image may not leave; None, as in the paper, lets it become a real image.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("fooling",)

    norm: Norm = "fooling"
    steps: Annotated[int, Ge(1)] = 500
    step_size: Annotated[float, Gt(0), Le(1)] = 0.2
    a: Annotated[float, Ge(1), Le(8)] = 4.0
    b: Annotated[float, Ge(1), Le(8)] = 1.0
    stay: Annotated[float, Gt(0), Le(1)] | None = None

    @property
    def aims(self) -> Literal["every"]:
        return "every"

    def passes(self) -> tuple[int, int]:
        return self.steps, self.steps

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        view = self.view(target)
        # Ratios for the class asked about, or one for whatever the answer is (see View.detection)
        of_aim = bool(target.defense.detectors) and not view.iterative
        named = target.defense.detectors if of_aim else ("reject score",)
        powers = x.new_tensor([self.b if name == "encoding" else self.a for name in named])
        rows, aims = torch.arange(len(x), device=x.device), aimed_at(target)
        found, image = x.clone(), x
        mean, square = torch.zeros_like(x), torch.zeros_like(x)

        def loss(_: Tensor, logits: Tensor, ratios: Tensor) -> Tensor:
            lacking = -margin(logits, aims, target.num_classes, aims)
            if not ratios.shape[1]:
                return -lacking
            detected = ratios.clamp_min(0).pow(powers).sum(1)
            return -(F.relu(lacking) + detected) if of_aim else -torch.where(lacking >= 0, lacking, detected)

        for step in range(self.steps):
            logits, _, _, gradient = view.detected_ascent(image, aims, loss, rows)
            accepted = accepted_as(aims, logits, image, target, view, rows, due=step % CONFIRM_EVERY == 0)
            found[rows[accepted]] = image[accepted]
            rows, aims, image, gradient = rows[~accepted], aims[~accepted], image[~accepted], gradient[~accepted]
            if not len(rows):
                return found
            direction = steepest(gradient, "l2")
            mean = DECAYS[0] * mean[~accepted] + (1 - DECAYS[0]) * direction
            square = DECAYS[1] * square[~accepted] + (1 - DECAYS[1]) * direction.square()
            momentum, spread = (m / (1 - d ** (step + 1)) for m, d in zip((mean, square), DECAYS, strict=True))
            size = self.step_size * (1 + math.cos(math.pi * step / self.steps)) / 2
            image = image + size * momentum / (spread.sqrt() + 1e-12)
            image = project(image, x[rows], "linf", math.inf if self.stay is None else self.stay)
        found[rows] = image  # every point before it was asked about; this one is the judge's to ask
        return found


def aimed_at(target: Target) -> Tensor:
    """The class that each input is to be taken for [N]; raises ValueError where the attack was handed none."""
    if target.aims is None:
        raise ValueError("this attack needs a class to aim at for each input, and was handed none")
    return target.aims


def accepted_as(
    aims: Tensor, logits: Tensor, images: Tensor, target: Target, view: View, rows: Tensor, due: bool = True
) -> Tensor:
    """Which images [N,C,H,W] are accepted as the class aimed at [N] → [N] bool, by their logits [N,K] or [N,K+1].

    Where the view is not the deployed defense, what the logits claim is asked of that one, only when due. A view of a
    part is never believed: what it takes for success says nothing of the whole.
    """
    claimed = (logits.argmax(1) == aims) & logits.isfinite().all(1)
    if view.exact or not claimed.any():
        return claimed
    if not due or view.part != "defense":
        return torch.zeros_like(claimed)
    answer = target.verdict(images[claimed], rows[claimed])
    claimed[claimed.clone()] = ~answer.rejected & (answer.labels == aims[claimed])
    return claimed
