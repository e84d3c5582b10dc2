"""Generated images, and the defense's answers to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor

from manifold_bench.bench.datasets.base import Dataset
from manifold_bench.bench.measurements.base import Measurement
from manifold_bench.bench.measurements.frechet import Sampling
from manifold_bench.defenses.base import Defense

BATCH = 500


@dataclass(frozen=True, kw_only=True)
class Samples(Measurement):
    """Draws images from every class of the generator, and has the defense classify them.

    n: number of images that the defense answers. shown: number of images of each class in the picture.
    """

    headline: ClassVar[str] = "accepted as their class"
    n: Annotated[int, Ge(1)] = 1000
    shown: Annotated[int, Ge(1)] = 10

    @property
    def title(self) -> str:
        return f"{self.n:,} generated images of the classes in turn: shares by the defense's answers to them"

    def unsuited(self, defense: Defense) -> str | None:
        return None if isinstance(defense, Sampling) else "the defense has no generator of images"

    def measure(self, defense: Defense, others: Mapping[str, Defense], data: Dataset, seed: int) -> dict[str, float]:
        assert isinstance(defense, Sampling)
        images = defense.sample(self.n, seed)
        with torch.no_grad():
            answers = torch.cat([defense(part).argmax(1) for part in images.split(BATCH)]).cpu()
        own = torch.arange(self.n) % data.num_classes
        accepted = answers < data.num_classes
        shares = {
            self.headline: answers == own,
            "accepted as another": accepted & (answers != own),
            "rejected": ~accepted,
        }
        return {name: float(share.double().mean()) for name, share in shares.items()}

    def pictures(self, defense: Defense, data: Dataset, seed: int) -> Tensor:
        """Return generated images [shown, K, C, H, W], a column for each class."""
        assert isinstance(defense, Sampling)
        images = defense.sample(self.shown * data.num_classes, seed).cpu()
        return images.unflatten(0, (self.shown, data.num_classes))
