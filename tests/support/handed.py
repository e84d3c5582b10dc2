"""A module of a user's that keeps all rules: tests put classes into it that break one, and name them `handed:It`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from manifold_bench.attacks.base import Attack
from manifold_bench.attacks.target import Target
from manifold_bench.bench.datasets.base import Dataset
from manifold_bench.defenses.base import Defense, LabelledImages

GOOD = {
    "datasets": [{"name": "handed:Data"}],
    "defenses": ["handed:Honest"],
    "attacks": [{"name": "handed:Idle", "eps": [0.1]}],
}
"""A matrix of what this module has."""

WEIGHTS = torch.tensor([[1.0, -2.0, 0.5, 1.5], [-1.0, 1.0, 2.0, -2.0], [0.5, 1.0, -2.0, 1.0]])


def logits(x: Tensor) -> Tensor:
    """Three classes of images with four pixels."""
    return (x.flatten(1)[:, None] * WEIGHTS).sum(2)


def images(n: int = 24, seed: int = 0) -> LabelledImages:
    """Images [n,1,2,2] whose labels are what `logits` says."""
    x = torch.rand(n, 1, 2, 2, generator=torch.Generator().manual_seed(seed))
    return LabelledImages(x, logits(x).argmax(1))


class Honest(Defense):
    """Answers with `logits`."""

    def forward(self, x: Tensor) -> Tensor:
        return logits(x)


@dataclass(frozen=True)
class Data(Dataset):
    """All splits are `images`; subclasses put others in their place."""

    name = "data"
    shape = (1, 2, 2)
    num_classes = 3
    revision = "1"
    zoo = "data"
    given: ClassVar[dict[str, object]] = {}

    @property
    def test(self) -> LabelledImages:
        return self.given.get("test", images())  # type: ignore[return-value]

    @property
    def train(self) -> LabelledImages:
        return self.given.get("train", images(seed=1))  # type: ignore[return-value]

    @property
    def validation(self) -> LabelledImages:
        return self.given.get("validation", images(seed=2))  # type: ignore[return-value]


@dataclass(frozen=True, kw_only=True)
class Idle(Attack):
    """Returns the images as they are."""

    knowledge: ClassVar[str] = "decision"  # type: ignore[assignment]

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        return x

    def passes(self) -> tuple[int, int]:
        return 0, 0


PERCEIVED: dict[str, Any] = {
    "larger": lambda x: F.interpolate(x, scale_factor=2.0),
    "flat": lambda x: x.flatten(1),
    "fewer": lambda x: x[:-1],
    "one more channel": lambda x: x.repeat(1, 2, 1, 1),
    "bytes": lambda x: (255 * x).byte(),
    "nothing": lambda x: None,
    "NaN": lambda x: x * torch.nan,
    "an array": lambda x: x.numpy(),
}
"""Functions of images x [N,C,H,W] whose results are no images."""
