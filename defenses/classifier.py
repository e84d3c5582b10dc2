"""The training of a convolutional classifier, which several defenses share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge
from torch import Tensor, nn
from torch.nn import functional as F

from manifold_bench.defenses.augmentation import shifted
from manifold_bench.defenses.base import DefenseSpec, LabelledImages, Progress
from manifold_bench.defenses.training import Training, accuracy, initialise, train_module


@dataclass(frozen=True, kw_only=True)
class ClassifierSpec(DefenseSpec):
    """The parameters of a convolutional classifier.

    width: number of channels of the first convolution of the `StridedCNN`. hidden: number of units of the dense layer
    of the `StridedCNN`. batch_size: number of images in a batch of its training.
    """

    width: Annotated[int, Ge(1)] = 32
    hidden: Annotated[int, Ge(1)] = 256
    batch_size: Annotated[int, Ge(1)] = 128


def fit_classifier(
    network: nn.Module, data: LabelledImages, validation: LabelledImages, training: Training, progress: Progress
) -> None:
    """Train a network in place by cross-entropy, from seeded initial weights and on randomly shifted images."""
    initialise(network, training.seed)
    most = data.images.shape[-1] // 16

    def step(images: Tensor, labels: Tensor, done: float) -> Tensor:
        return F.cross_entropy(network(shifted(images, most)), labels)

    def figures() -> dict[str, float]:
        return {"validation_accuracy": accuracy(network, validation)}

    train_module(network, step, data, training, progress, figures)
