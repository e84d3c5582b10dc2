"""Training by interval bounds: Gowal et al. 2018, "On the Effectiveness of Interval Bound Propagation for Training
Verifiably Robust Models" (https://arxiv.org/abs/1810.12715)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, cast

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from torch.nn import functional as F

from manifold_bench.defenses.adversarial_training import AdversarialTraining, AdversarialTrainingSpec
from manifold_bench.defenses.base import LabelledImages
from manifold_bench.defenses.interval_bounds import largest_margins
from manifold_bench.defenses.networks import StridedCNN
from manifold_bench.defenses.training import accuracy, device_of


@dataclass(frozen=True, kw_only=True)
class IntervalTrainingSpec(AdversarialTrainingSpec):
    """Parameters of `IntervalTraining`.

    clean_share: weight κ of the loss on unperturbed images once the radius is whole; it begins at 1 (paper: 0.5).

    reach: radius of the training over the radius `eps` that is to be certified (paper, MNIST at 0.3: 4/3). warm_up:
    share of the training over which radius and κ move (paper: 0.2 of 100 epochs).

    Other fields are as in the base class.
    """

    norm: Literal["linf"] = "linf"
    network: Literal["strided"] = "strided"
    clean_share: Annotated[float, Ge(0), Le(1)] = 0.5
    reach: Annotated[float, Gt(0)] = 1.0
    warm_up: Annotated[float, Ge(0), Le(1)] = 0.6
    width: Annotated[int, Ge(1)] = 16
    hidden: Annotated[int, Ge(1)] = 128
    epochs: Annotated[int, Ge(1)] = 12
    rate: Annotated[float, Gt(0)] = 3e-3
    mixed_precision: bool = True


class IntervalTraining(AdversarialTraining):
    """Training by interval bounds: the classifier learns from bounds on its answers within the ball.

    min_θ E [κ CE(z(x), y) + (1 − κ) CE(ẑ(x), y)] with ẑ_j ≥ z_j(x′) − z_y(x′) for every x′ with ‖x′ − x‖∞ ≤ ε.

    ẑ are bounds, so that what they certify holds against every attack (`certified`); what they don't may hold too.
    """

    paper = "gowal2018"
    Spec: ClassVar = IntervalTrainingSpec
    family: ClassVar[str] = "certified"
    stage: ClassVar[str] = "interval-training"
    spec: IntervalTrainingSpec

    def loss(self, images: Tensor, labels: Tensor, ramp: float) -> Tensor:
        spec = self.spec
        eps = images.new_full((len(images),), ramp * spec.reach * spec.eps)
        bounds = largest_margins(cast(StridedCNN, self.network), images, labels, eps)
        share = 1 - ramp * (1 - spec.clean_share)
        return share * F.cross_entropy(self.network(images), labels) + (1 - share) * F.cross_entropy(bounds, labels)

    def figures(self, validation: LabelledImages) -> dict[str, float]:
        """Return the accuracy on the validation images, and the share of the first 1,000 that is certified at `eps`."""
        device = device_of(self)
        images, labels = validation.images[:1000].to(device), validation.labels[:1000].to(device)
        eps = torch.full((len(images), 1), self.spec.eps, device=device)
        return {
            "validation_accuracy": accuracy(self.network, validation),
            "validation_certified_accuracy": float(self.certified(images, labels, eps).double().mean()),
        }
