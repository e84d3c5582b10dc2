"""The base of defenses that train a classifier on adversarial images within a growing radius."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from manifold_bench.defenses.base import LabelledImages, Progress
from manifold_bench.defenses.training import Training, accuracy, device_of, epochs_for, initialise, train_module
from manifold_bench.defenses.undefended import Undefended, UndefendedSpec


@dataclass(frozen=True, kw_only=True)
class AdversarialTrainingSpec(UndefendedSpec):
    """Parameters of `AdversarialTraining`.

    norm, eps: norm and size of the perturbations in training, in the images' scale [0,1].

    warm_up: share of the training in which the radius grows from 0 to eps; without a warm-up the network collapses to a
    constant at L∞ 0.3. mixed_precision: whether the training computes in 16 bits, see `Training`.

    Other fields are as for `undefended`.
    """

    norm: Literal["linf", "l2"] = "linf"
    eps: Annotated[float, Gt(0)] = 0.3
    warm_up: Annotated[float, Ge(0), Le(1)] = 0.3
    epochs: Annotated[int, Ge(1)] = 14
    rate: Annotated[float, Gt(0)] = 1e-3
    mixed_precision: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm == "linf" and self.eps > 1:
            raise ValueError(
                f'eps: {self.eps:g} is no L∞ size; give a number of at most 1, or a fraction such as "8/255"'
            )


class AdversarialTraining(Undefended):
    """The base of classifiers with the network of `undefended` that are trained on images perturbed within a radius."""

    Spec: ClassVar[type[AdversarialTrainingSpec]] = AdversarialTrainingSpec
    family: ClassVar[str] = "adversarial training"
    stage: ClassVar[str]
    """Name of the training, for progress and checkpoints; the random numbers depend on it."""
    spec: AdversarialTrainingSpec

    def perturbed(self, images: Tensor, labels: Tensor, ramp: float) -> Tensor:
        """Return the training's own adversarial images [N,C,H,W] within `ramp` · ε, ramp in [0, 1]."""
        raise NotImplementedError

    def loss(self, images: Tensor, labels: Tensor, ramp: float) -> Tensor:
        """Return the training loss of a batch [N,C,H,W] with labels [N] at radius `ramp` · ε."""
        raise NotImplementedError

    def fit(
        self, train: LabelledImages, validation: LabelledImages, budget: float, seed: int, progress: Progress
    ) -> dict[str, float]:
        spec = self.spec
        initialise(self.network, seed)

        def step(images: Tensor, labels: Tensor, done: float) -> Tensor:
            return self.loss(images, labels, min(1.0, done / spec.warm_up) if spec.warm_up else 1.0)

        epochs = epochs_for(budget, spec.epochs, len(train))
        mixed = spec.mixed_precision
        training = Training(self.stage, seed, epochs, spec.batch_size, spec.rate, mixed_precision=mixed)
        train_module(self.network, step, train, training, progress, lambda: self.figures(validation))
        self.eval()
        return self.figures(validation)

    def figures(self, validation: LabelledImages) -> dict[str, float]:
        """Return the accuracy on validation images, and on the first 1,000 of them under the training's own attack."""
        device = device_of(self)
        images, labels = validation.images[:1000].to(device), validation.labels[:1000]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            attacked = LabelledImages(self.perturbed(images, labels.to(device), 1.0), labels)
        return {
            "validation_accuracy": accuracy(self.network, validation),
            "validation_accuracy_under_training_attack": accuracy(self.network, attacked),
        }
