"""How near a defense's projections come to images it has never seen."""

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

    What a defense sees in place of the first n test images, and of the same with Gaussian noise.

    n: number of test images. noise: standard deviation of the noise. shown: number of images in the picture: drawn from
    the generator where there is one, then originals over what is seen of them, then noisy ones over what is seen of
    those.
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
            return "it sees the images themselves"
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
        """[rows, shown, C, H, W]."""
        clean = data.test.images[: self.shown]
        noisy = self._noisy(clean, seed)
        rows = [clean, seen_by(defense, clean, seed), noisy, seen_by(defense, noisy, seed)]
        drawn = [defense.generator.sample(self.shown, seed).cpu()] if generates(defense) else []
        return torch.stack([*drawn, *rows])

    def _noisy(self, images: Tensor, seed: int) -> Tensor:
        drawn = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
        return (images + self.noise * drawn).clamp(0, 1)


def seen_by(defense: Defense, images: Tensor, seed: int) -> Tensor:
    """Return what the defense sees in place of images (`Defense.perceived`), [N,C,H,W] on the CPU.

    seed: seed of the draws of a randomized defense.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return blockwise(lambda x: perceived(defense, x), images.to(device_of(defense))).cpu()
