"""The distance between a defense's projections and test images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from manifold_bench.attacks.batching import blockwise
from manifold_bench.attacks.contract import generates
from manifold_bench.bench.datasets.base import Dataset
from manifold_bench.bench.measurements.base import Measurement
from manifold_bench.defenses.base import Defense
from manifold_bench.defenses.checks import perceived
from manifold_bench.defenses.training import device_of


@dataclass(frozen=True, kw_only=True)
class Reconstruction(Measurement):
    """Measures how near the defense's projections come to clean and to noisy test images.

    It uses the first n test images, and the same images with Gaussian noise.

    n: number of test images. noise: standard deviation of the noise. shown: number of columns of the picture, whose
    rows are generated images (if there is a generator), test images, their projections, noisy images, and theirs.
    """

    headline: ClassVar[str] = "mean squared error"
    n: Annotated[int, Ge(1)] = 200
    noise: Annotated[float, Gt(0), Le(1)] = 0.2
    shown: Annotated[int, Ge(1)] = 10

    @property
    def title(self) -> str:
        return (
            f"{self.n:,} test images and what the defense sees in their place: mean squared error per pixel, median "
            f"distance in L2, share that it sees and answers rightly; the same with Gaussian noise of {self.noise:g}"
        )

    def unsuited(self, defense: Defense) -> str | None:
        if type(defense).perceived is Defense.perceived:
            return "the defense uses no projection in place of the images"
        return None

    def measure(self, defense: Defense, others: Mapping[str, Defense], data: Dataset, seed: int) -> dict[str, float]:
        clean = data.test.images[: self.n]
        labels = data.test.labels[: self.n]
        values: dict[str, float] = {}
        for suffix, images in (("", clean), (", noisy", self._noisy(clean, seed))):
            seen = seen_by(defense, images, seed)
            difference = (seen - clean).flatten(1)
            answers = blockwise(lambda x: defense(x).argmax(1), images).cpu()
            values |= {
                f"{self.headline}{suffix}": float(difference.square().mean()),
                f"median L2 distance{suffix}": float(difference.norm(dim=1).median()),
                f"answered rightly{suffix}": float((answers == labels).double().mean()),
            }
        return values

    def pictures(self, defense: Defense, data: Dataset, seed: int) -> Tensor:
        """Return the pictures [rows, shown, C, H, W]; see the class."""
        clean = data.test.images[: self.shown]
        noisy = self._noisy(clean, seed)
        rows = [clean, seen_by(defense, clean, seed), noisy, seen_by(defense, noisy, seed)]
        drawn = [defense.generator.sample(self.shown, seed).cpu()] if generates(defense) else []
        return torch.stack([*drawn, *rows])

    def _noisy(self, images: Tensor, seed: int) -> Tensor:
        drawn = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
        return (images + self.noise * drawn).clamp(0, 1)


def seen_by(defense: Defense, images: Tensor, seed: int) -> Tensor:
    """Return `Defense.perceived` of images [N,C,H,W], same shape, on the CPU. seed: seed of a randomized defense."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return blockwise(lambda x: perceived(defense, x), images.to(device_of(defense))).cpu()
