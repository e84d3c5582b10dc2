"""Defenses that mask their gradients or cheat otherwise, each in one way, over the zoo's undefended digits model."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from manifold_bench.defenses.base import Defense, DefenseSpec, append_reject_score
from manifold_bench.defenses.weights import from_zoo


class Over(Defense):
    """What the defenses below share; by itself it defends nothing."""

    def __init__(self, spec: DefenseSpec) -> None:
        super().__init__(spec)
        self.network = from_zoo("undefended", "digits")

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


class Quantizing(Over):
    """Nine grey levels, whose gradient is zero almost everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        return self.network((x * 8).round() / 8)


class Shattered(Over):
    """A ripple too small to see, and so steep that the gradient points anywhere."""

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x + 0.02 * torch.sin(math.tau * 1000 * x))


class Noisy(Over):
    """Noise that isn't declared."""

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x + 0.3 * torch.randn_like(x))


class Constant(Over):
    """Always the same answer."""

    def forward(self, x: Tensor) -> Tensor:
        return 0 * self.network(x) + torch.arange(10.0, device=x.device)


class Saturating(Over):
    """Logits so far apart that the softmax is 0 or 1 in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return 1e5 * self.network(x)


class Detaching(Over):
    """Optimises a smooth image near the input and forgets how it got there."""

    def forward(self, x: Tensor) -> Tensor:
        smooth = x.detach().clone()
        with torch.enable_grad():
            for _ in range(3):
                smooth.requires_grad_(True)
                roughness = smooth.diff(dim=-1).square().sum() + (smooth - x.detach()).square().sum()
                smooth = (smooth - 0.1 * torch.autograd.grad(roughness, smooth)[0]).detach()
        return self.network(smooth)


class RejectingAll(Over):
    """Never wrong."""

    @property
    def rejects(self) -> bool:
        return True

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network(x)
        return append_reject_score(logits, torch.ones(len(x), device=x.device))


class OffGrid(Over):
    """Rejects every image whose pixels are not all on the grid of the data's grey levels, sixteenths."""

    @property
    def rejects(self) -> bool:
        return True

    def forward(self, x: Tensor) -> Tensor:
        off = torch.sin(16 * math.pi * x).square().flatten(1).amax(1)
        return append_reject_score(self.network(x), off - 1e-4)


class BatchDependent(Over):
    """Standardises with the statistics of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return self.network(((x - x.mean(0)) / (x.std(0, unbiased=False) + 0.1) * 0.3 + 0.3).clamp(0, 1))
