"""The training of a convolutional classifier, which several defenses share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.nn import functional as F

from manifold_bench.defenses.augmentation import shifted
from manifold_bench.defenses.base import DefenseSpec, LabelledImages, Progress
from manifold_bench.defenses.training import accuracy, initialise, train_module


@dataclass(frozen=True, kw_only=True)
class ClassifierSpec(DefenseSpec):
    """width, hidden: size of a `StridedCNN`. batch_size: of its training."""

    width: Annotated[int, Ge(1)] = 32
    hidden: Annotated[int, Ge(1)] = 256
    batch_size: Annotated[int, Ge(1)] = 128


def fit_classifier(
    network: nn.Module,
    data: LabelledImages,
    validation: LabelledImages,
    *,
    epochs: int,
    batch_size: int,
    rate: float,
    seed: int,
    progress: Progress,
    mixed_precision: bool = False,
    stored_as: torch.dtype = torch.float16,
) -> None:
    """Plain training by cross-entropy from seeded initial weights, images shifted at random."""
    initialise(network, seed)
    most = data.images.shape[-1] // 16

    def step(images: Tensor, labels: Tensor, done: float) -> Tensor:
        return F.cross_entropy(network(shifted(images, most)), labels)

    train_module(
        network, step, data, stage="classifier", epochs=epochs, batch_size=batch_size, rate=rate, seed=seed,
        progress=progress, mixed_precision=mixed_precision, stored_as=stored_as,
        evaluate=lambda: {"validation_accuracy": accuracy(network, validation)},
    )  # fmt: skip
