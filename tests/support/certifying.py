"""Defenses of two classes whose certificates are known in closed form; a matrix names them as `certifying:Honest`."""

from __future__ import annotations

import torch
from torch import Tensor

from manifold_bench.defenses.base import Certificate, Defense


class Honest(Defense):
    """Class 1 where the mean of the pixels exceeds 0.3: an image keeps its answer up to |mean − 0.3| in L∞."""

    certificate = Certificate("linf")
    exaggeration = 1.0

    def forward(self, x: Tensor) -> Tensor:
        ahead = x.flatten(1).mean(1) - 0.3
        return torch.stack([-ahead, ahead, *[torch.full_like(ahead, -9)] * (self.num_classes - 2)], dim=1)

    def certified(self, x: Tensor, labels: Tensor, eps: Tensor) -> Tensor:
        ahead = x.flatten(1).double().mean(1) - 0.3
        right = (ahead > 0).long() == labels
        return right[:, None] & (eps < self.exaggeration * ahead.abs()[:, None])


class Liar(Honest):
    """Certifies ten times the radius that is true."""

    exaggeration = 10.0


class Guesser(Liar):
    """Its certificates may be wrong, as it says."""

    certificate = Certificate("linf", alpha=0.1)


class Silent(Honest):
    """Offers no certificate."""

    certificate = None


class InL2(Honest):
    """The same classifier with certificates in L2: the distance of an image to the boundary is |mean − 0.3| √d."""

    certificate = Certificate("l2")

    def certified(self, x: Tensor, labels: Tensor, eps: Tensor) -> Tensor:
        return super().certified(x, labels, eps / x[0].numel() ** 0.5)
