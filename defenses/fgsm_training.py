"""Adversarial training by FGSM (Goodfellow et al. 2015, "Explaining and Harnessing Adversarial Examples").

The paper is at https://arxiv.org/abs/1412.6572.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from torch.nn import functional as F

from manifold_bench.attacks.threat import project, steepest
from manifold_bench.defenses.adversarial_training import AdversarialTraining, AdversarialTrainingSpec


@dataclass(frozen=True, kw_only=True)
class FGSMTrainingSpec(AdversarialTrainingSpec):
    """Parameters of `FGSMTraining`.

    clean_share: weight α of the loss on clean images (paper: 0.5).

    Other fields are as in the base class.
    """

    clean_share: Annotated[float, Ge(0), Le(1)] = 0.5
    epochs: Annotated[int, Ge(1)] = 3
    rate: Annotated[float, Gt(0)] = 2e-3
    mixed_precision: bool = True


class FGSMTraining(AdversarialTraining):
    """Adversarial training with a single step: the classifier learns from clean inputs and from FGSM's.

    It minimises E [α CE(C_θ(x), y) + (1 − α) CE(C_θ(x + ε sign ∇ₓ CE(C_θ(x), y)), y)] over θ (section 6 of the paper).

    Networks learn to resist that single step but not other perturbations of the ball ("catastrophic overfitting", Wong
    et al. 2020; "label leaking", Kurakin et al. 2017). Nothing here prevents that. So this defense is a control for the
    masking diagnosis: iterative attacks have to be far stronger on it than the single step.
    """

    paper = "goodfellow2015"
    Spec: ClassVar = FGSMTrainingSpec
    stage: ClassVar[str] = "fgsm-training"
    spec: FGSMTrainingSpec

    def loss(self, images: Tensor, labels: Tensor, ramp: float) -> Tensor:
        share = self.spec.clean_share
        adversarial = F.cross_entropy(self.network(self.perturbed(images, labels, ramp)), labels)
        return share * F.cross_entropy(self.network(images), labels) + (1 - share) * adversarial

    def perturbed(self, images: Tensor, labels: Tensor, ramp: float) -> Tensor:
        """Return images [N,C,H,W] after one step of length `ramp` · ε along the loss' gradient."""
        norm, eps = self.spec.norm, ramp * self.spec.eps
        x = images.clone().requires_grad_(True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(F.cross_entropy(self.network(x), labels, reduction="sum"), x)
        return project(images + eps * steepest(gradient, norm), images, norm, eps)
