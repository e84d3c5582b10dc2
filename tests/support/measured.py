"""Defenses that measurements are tried on; a matrix names them as `measured:Net`."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from manifold_bench.defenses.base import Defense, DefenseSpec


class Net(Defense):
    """Doubles the pixels, then one layer; generates uniform noise."""

    def __init__(self, spec: DefenseSpec) -> None:
        super().__init__(spec)
        self.output = nn.Linear(math.prod(spec.shape), spec.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(2 * x.flatten(1))

    def sample(self, n: int, seed: int) -> Tensor:
        return torch.rand((n, *self.spec.shape), generator=torch.Generator().manual_seed(seed))


class Grey(Defense):
    """Makes images of classes 0, 1, 2 that are as grey as .2, .4, .8; answers 0 below .3, 2 above, rejects above .7."""

    rejects = True

    def sample(self, n: int, seed: int) -> Tensor:
        return torch.tensor([0.2, 0.4, 0.8])[torch.arange(n) % 3, None, None, None].expand(n, 1, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        grey = x.flatten(1).mean(1)
        answer = torch.where(grey < 0.3, 0, torch.where(grey < 0.7, 2, 3))
        return nn.functional.one_hot(answer, 4).float()


class Blurred(Defense):
    """Sees every image as its own mean."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.perceived(x).flatten(1)[:, :1], x.new_zeros(len(x), 9)], 1)

    def perceived(self, x: Tensor) -> Tensor:
        return x.flatten(1).mean(1).view(-1, 1, 1, 1).expand_as(x)
