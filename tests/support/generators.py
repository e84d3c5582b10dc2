"""Generators small enough that what is nearest in their range is known."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from manifold_bench.defenses.solvers import (
    MomentumSolver,
)

SOLVER = MomentumSolver(steps=400, rate=0.3, momentum=0.5, starts=3)


class LinearGenerator(nn.Module):
    """z [N,3] → Az + b as images [N,1,2,4], in float64; ‖G(z) − x‖ is least at the pseudo-inverse's z."""

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.matrix = torch.randn(8, 3, dtype=torch.float64, generator=random)
        self.offset = torch.rand(8, dtype=torch.float64, generator=random)

    def forward(self, z: Tensor) -> Tensor:
        return (z @ self.matrix.T + self.offset).view(-1, 1, 2, 4)

    def closest(self, x: Tensor) -> Tensor:
        return (x.flatten(1) - self.offset) @ torch.linalg.pinv(self.matrix).T


class SmoothGenerator(nn.Module):
    """z [N,2] → sigmoid(Az), images [N,1,2,2], in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def forward(self, z: Tensor) -> Tensor:
        return torch.sigmoid(z @ self.matrix.T).view(-1, 1, 2, 2)


class Curved(nn.Module):
    """z [N,3] → a smooth, curved surface of images [N,1,2,4] in float64."""

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(3)
        self.inner = torch.randn(6, 3, dtype=torch.float64, generator=random)
        self.outer = 0.7 * torch.randn(8, 6, dtype=torch.float64, generator=random)

    def forward(self, z: Tensor) -> Tensor:
        return torch.sigmoid(torch.tanh(z @ self.inner.T) @ self.outer.T).view(-1, 1, 2, 4)
