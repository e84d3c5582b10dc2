"""Adversarial training by PGD (Madry et al. 2018, "Towards Deep Learning Models Resistant to Adversarial Attacks")."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt
from torch import Tensor
from torch.nn import functional as F

from manifold_bench.attacks.threat import project, steepest
from manifold_bench.defenses.adversarial_training import AdversarialTraining, AdversarialTrainingSpec


@dataclass(frozen=True, kw_only=True)
class PGDTrainingSpec(AdversarialTrainingSpec):
    """Parameters of `PGDTraining`.

    steps: number of steps of the PGD that makes the training images, from a random start (paper: 40). step_size: length
    of a step of this PGD (paper: 0.01).

    In L2 the start is the image plus noise of a tenth of the radius (Ilyas et al. 2017: ε 1.5 and 40 steps of ε / 20).
    Other fields are as in the base class.
    """

    steps: Annotated[int, Ge(1)] = 40
    step_size: Annotated[float, Gt(0)] = 0.01


class PGDTraining(AdversarialTraining):
    """Adversarial training: the classifier learns from the worst inputs that PGD finds.

    It minimises E max_{‖δ‖ ≤ ε} CE(C_θ(x + δ), y) over θ, with the network of `undefended`.
    """

    paper = "madry2018"
    Spec: ClassVar = PGDTrainingSpec
    stage: ClassVar[str] = "pgd-training"
    spec: PGDTrainingSpec

    def loss(self, images: Tensor, labels: Tensor, ramp: float) -> Tensor:
        return F.cross_entropy(self.network(self.perturbed(images, labels, ramp)), labels)

    def objective(self, images: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the objective of the inner attack: the loss, summed over the batch, as a function of logits [N,K]."""
        return lambda logits: F.cross_entropy(logits, labels, reduction="sum")

    def perturbed(self, images: Tensor, labels: Tensor, ramp: float) -> Tensor:
        """Return the images [N,C,H,W] that the inner PGD finds at radius `ramp` · ε, with all of its steps."""
        spec = self.spec
        eps, size = ramp * spec.eps, ramp * spec.step_size
        objective = self.objective(images, labels)
        noise = (
            2 * torch.rand_like(images) - 1 if spec.norm == "linf" else 0.1 * steepest(torch.randn_like(images), "l2")
        )
        x = project(images + eps * noise, images, spec.norm, eps)
        weights = [p for p in self.network.parameters() if p.requires_grad]
        for weight in weights:  # gradients for weights are not needed here, and cost a third of the pass
            weight.requires_grad_(False)
        for _ in range(spec.steps):
            x.requires_grad_(True)
            # bfloat16 doubles the speed of the inner loop; the weights themselves learn in float32
            with torch.autocast(x.device.type, torch.bfloat16):
                loss = objective(self.network(x))
            (gradient,) = torch.autograd.grad(loss, x)
            x = project(x.detach() + size * steepest(gradient, spec.norm), images, spec.norm, eps)
        for weight in weights:
            weight.requires_grad_(True)
        return x
