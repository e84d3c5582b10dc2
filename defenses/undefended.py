"""No defense: a plainly trained classifier, what every defense is measured against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.nn import functional as F

from defenses.base import Defense, DefenseSpec, LabelledImages, Progress
from defenses.networks import Letter, StridedCNN, lettered
from defenses.training import accuracy, epochs_for, initialise, train_module


@dataclass(frozen=True, kw_only=True)
class ClassifierSpec(DefenseSpec):
    """width, hidden: size of a `StridedCNN`. batch_size: of its training."""

    width: Annotated[int, Ge(1)] = 32
    hidden: Annotated[int, Ge(1)] = 256
    batch_size: Annotated[int, Ge(1)] = 128


@dataclass(frozen=True, kw_only=True)
class UndefendedSpec(ClassifierSpec):
    """network: `strided` (`StridedCNN`), or a classifier of Defense-GAN by its letter (`networks.lettered`).

    Those have a size of their own: width and hidden are for `strided`. epochs, rate: of the training (Adam, one cycle);
    None: 12 and 2e-3 for `strided`, the paper's 10 and 1e-3 for the others, which train in mixed precision and end with
    weights of eight bits (float8): they are large, and as often right.
    """

    network: Literal["strided"] | Letter = "strided"
    epochs: Annotated[int, Ge(1)] | None = None
    rate: Annotated[float, Gt(0)] | None = None

    def __post_init__(self) -> None:
        strided = self.network == "strided"
        for size in ("width", "hidden"):
            if not strided and getattr(self, size) != getattr(type(self), size):
                raise ValueError(f"{size}: network {self.network} has a size of its own; leave it out")
        for name, usual in {"epochs": 12 if strided else 10, "rate": 2e-3 if strided else 1e-3}.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, usual)


class Undefended(Defense):
    """The classifier alone. Trained on images shifted by up to one pixel in sixteen."""

    Spec: ClassVar[type[UndefendedSpec]] = UndefendedSpec
    family: ClassVar[str] = "none"
    spec: UndefendedSpec

    def __init__(self, spec: UndefendedSpec) -> None:
        super().__init__(spec)
        self.network: nn.Module = (
            StridedCNN(spec.shape, spec.num_classes, spec.width, spec.hidden)
            if spec.network == "strided"
            else lettered(spec.network, spec.shape, spec.num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def fit(
        self, train: LabelledImages, validation: LabelledImages, budget: float, seed: int, progress: Progress
    ) -> dict[str, float]:
        spec = self.spec
        assert spec.epochs and spec.rate
        letter = spec.network != "strided"
        fit_classifier(
            self.network, train, validation, seed=seed, progress=progress,
            epochs=epochs_for(budget, spec.epochs, len(train)), batch_size=spec.batch_size, rate=spec.rate,
            mixed_precision=letter, stored_as=torch.float8_e4m3fn if letter else torch.float16,
        )  # fmt: skip
        self.eval()
        return {"validation_accuracy": accuracy(self, validation)}


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


def shifted(images: Tensor, most: int) -> Tensor:
    """Each image [N,C,H,W] moved by up to `most` pixels in both directions, zeros moving in."""
    if most == 0:
        return images
    size = images.shape[-1]
    padded = F.pad(images, [most] * 4)
    offsets = torch.randint(0, 2 * most + 1, (2, len(images)), device=images.device)
    span = torch.arange(size, device=images.device)
    height = torch.arange(images.shape[-2], device=images.device)
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    rows = (offsets[0][:, None] + height)[:, :, None]
    columns = (offsets[1][:, None] + span)[:, None, :]
    return padded.transpose(1, 3).transpose(1, 2)[batch, rows, columns].permute(0, 3, 1, 2)
