"""Adversarial training by projected gradient descent: Madry et al. 2018, "Towards Deep Learning Models Resistant
to Adversarial Attacks"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from torch.nn import functional as F

from manifold_bench.attacks.gradient import steepest
from manifold_bench.attacks.threat import project
from manifold_bench.defenses.base import LabelledImages, Progress
from manifold_bench.defenses.training import Training, accuracy, device_of, epochs_for, initialise, train_module
from manifold_bench.defenses.undefended import Undefended, UndefendedSpec


@dataclass(frozen=True, kw_only=True)
class PGDTrainingSpec(UndefendedSpec):
    """norm, eps: the radius trained for. steps, step_size: the inner PGD from a random start (paper: 40 of .01).

    In L2 it starts with noise a tenth of the radius long (Ilyas et al. 2017: ε 1.5 and 40 steps of ε / 20).
    warm_up: share of the training over which the radius grows from 0 to eps (without it the network collapses to a
    constant at L∞ .3). mixed_precision: see `train_module`. Other fields as for `undefended`.
    """

    norm: Literal["linf", "l2"] = "linf"
    eps: Annotated[float, Gt(0)] = 0.3
    steps: Annotated[int, Ge(1)] = 40
    step_size: Annotated[float, Gt(0)] = 0.01
    warm_up: Annotated[float, Ge(0), Le(1)] = 0.3
    epochs: Annotated[int, Ge(1)] = 14
    rate: Annotated[float, Gt(0)] = 1e-3
    mixed_precision: bool = False


class PGDTraining(Undefended):
    """The undefended classifier's network, trained on the worst inputs that PGD finds in the ε-balls around images."""

    Spec: ClassVar = PGDTrainingSpec
    family: ClassVar[str] = "adversarial training"
    spec: PGDTrainingSpec

    def fit(
        self, train: LabelledImages, validation: LabelledImages, budget: float, seed: int, progress: Progress
    ) -> dict[str, float]:
        spec = self.spec
        initialise(self.network, seed)

        def step(images: Tensor, labels: Tensor, done: float) -> Tensor:
            ramp = min(1.0, done / spec.warm_up) if spec.warm_up else 1.0
            return F.cross_entropy(self.network(self.perturbed(images, labels, ramp)), labels)

        epochs = epochs_for(budget, spec.epochs, len(train))
        mixed = spec.mixed_precision
        training = Training("pgd-training", seed, epochs, spec.batch_size, spec.rate, mixed_precision=mixed)
        train_module(self.network, step, train, training, progress, lambda: self.figures(validation))
        self.eval()
        return self.figures(validation)

    def perturbed(self, images: Tensor, labels: Tensor, ramp: float) -> Tensor:
        """The inner maximisation for a batch, at `ramp` · ε; every step is taken for every image."""
        spec = self.spec
        eps, size = ramp * spec.eps, ramp * spec.step_size
        noise = (
            2 * torch.rand_like(images) - 1 if spec.norm == "linf" else 0.1 * steepest(torch.randn_like(images), "l2")
        )
        x = project(images + eps * noise, images, spec.norm, eps)
        weights = [p for p in self.network.parameters() if p.requires_grad]
        for weight in weights:  # their gradients are not needed here, and cost a third of the pass
            weight.requires_grad_(False)
        for _ in range(spec.steps):
            x.requires_grad_(True)
            # bfloat16 doubles the speed of the inner loop; the weights themselves learn in float32
            with torch.autocast(x.device.type, torch.bfloat16):
                loss = F.cross_entropy(self.network(x), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, x)
            x = project(x.detach() + size * steepest(gradient, spec.norm), images, spec.norm, eps)
        for weight in weights:
            weight.requires_grad_(True)
        return x

    def figures(self, validation: LabelledImages) -> dict[str, float]:
        """Accuracy on the validation images, clean and under the training's own attack (its first 1,000)."""
        device = device_of(self)
        images, labels = validation.images[:1000].to(device), validation.labels[:1000]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            attacked = LabelledImages(self.perturbed(images, labels.to(device), 1.0), labels)
        return {
            "validation_accuracy": accuracy(self.network, validation),
            "validation_accuracy_under_training_attack": accuracy(self.network, attacked),
        }
