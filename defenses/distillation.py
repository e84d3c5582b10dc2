"""Defensive distillation (Papernot et al. 2016, "Distillation as a Defense to Adversarial Perturbations …").

The paper is at https://arxiv.org/abs/1511.04508.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.nn import functional as F

from manifold_bench.defenses.augmentation import shifted
from manifold_bench.defenses.base import LabelledImages, Progress
from manifold_bench.defenses.training import Step, Training, accuracy, epochs_for, initialise, train_module
from manifold_bench.defenses.undefended import Undefended, UndefendedSpec


@dataclass(frozen=True, kw_only=True)
class DistillationSpec(UndefendedSpec):
    """Parameters of `Distillation`.

    temperature: temperature T of both trainings (paper: 100 on MNIST). epochs: number of epochs of each training.

    mixed_precision: whether the trainings compute in 16 bits, see `Training`.

    Other fields are as for `undefended`.
    """

    temperature: Annotated[float, Gt(0)] = 100.0
    epochs: Annotated[int, Ge(1)] = 3
    rate: Annotated[float, Gt(0)] = 3e-3
    mixed_precision: bool = True


class Distillation(Undefended):
    """Defensive distillation: a classifier is taught by another one, both at a high temperature.

    The teacher minimises E CE(softmax(z(x) / T), y), and then the student E CE(softmax(z(x) / T), softmax(z_teacher(x)
    / T)); both have the network of `undefended`. The student is deployed at T = 1. Its logits are then about T times as
    large as usual, so that its softmax is exactly 0 or 1 in float32, and the gradient of the cross-entropy vanishes.
    That is the whole defense: losses on logits (any margin) and losses at the temperature T attack it as easily as the
    undefended classifier (Carlini and Wagner 2016, https://arxiv.org/abs/1607.04311).
    """

    paper = "papernot2016"
    Spec: ClassVar = DistillationSpec
    family: ClassVar[str] = "gradient masking"
    spec: DistillationSpec

    def fit(
        self, train: LabelledImages, validation: LabelledImages, budget: float, seed: int, progress: Progress
    ) -> dict[str, float]:
        spec = self.spec
        epochs = epochs_for(budget, spec.epochs, len(train))
        teacher = copy.deepcopy(self.network)
        initialise(teacher, seed + 1)
        initialise(self.network, seed)
        most = train.images.shape[-1] // 16

        def softened(network: nn.Module, images: Tensor) -> Tensor:
            return network(images).float() / spec.temperature

        def taught_by_labels(images: Tensor, labels: Tensor, done: float) -> Tensor:
            return F.cross_entropy(softened(teacher, shifted(images, most)), labels)

        def taught_by_teacher(images: Tensor, labels: Tensor, done: float) -> Tensor:
            images = shifted(images, most)
            with torch.no_grad():
                target = softened(teacher, images).softmax(1)
            return F.cross_entropy(softened(self.network, images), target)

        def learn(stage: str, network: nn.Module, step: Step) -> float:
            training = Training(stage, seed, epochs, spec.batch_size, spec.rate, mixed_precision=spec.mixed_precision)
            train_module(
                network, step, train, training, progress, lambda: {"validation_accuracy": accuracy(network, validation)}
            )
            return accuracy(network, validation)

        figures = {"validation_accuracy_of_teacher": learn("teacher", teacher, taught_by_labels)}
        figures["validation_accuracy"] = learn("student", self.network, taught_by_teacher)
        self.eval()
        return figures
