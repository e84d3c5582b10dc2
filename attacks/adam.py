"""Adam (Kingma & Ba 2015, algorithm 1) on images or latents in place of weights."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from manifold_bench.attacks.batching import remaining

DECAYS = (0.9, 0.999)
"""β₁ and β₂: decays of the running means of the gradient and of its square."""


class Moments(NamedTuple):
    """Running means of the gradients seen so far and of their squares, both shaped like a gradient [N,...]."""

    mean: Tensor
    square: Tensor

    @classmethod
    def none(cls, like: Tensor) -> Moments:
        """Return the moments before the first gradient, all zero and shaped like `like`."""
        return cls(torch.zeros_like(like), torch.zeros_like(like))

    def only(self, going: Tensor) -> Moments:
        """Return the moments of the rows where `going` [N] is true."""
        return Moments(*remaining(going, *self))

    def after(self, gradient: Tensor) -> Moments:
        """Return the moments after one more gradient [N,...]."""
        return Moments(
            DECAYS[0] * self.mean + (1 - DECAYS[0]) * gradient,
            DECAYS[1] * self.square + (1 - DECAYS[1]) * gradient.square(),
        )

    def step(self, rate: float | Tensor, number: int | Tensor, epsilon: float, floor: float = 0.0) -> Tensor:
        """Return rate · m̂ / (√v̂ + epsilon) after `number` gradients, to be subtracted; m̂ and v̂ are without bias.

        number: one for all entries, or one for each. epsilon: 1e-8 as the paper has it, or less where gradients may be
        so small that steps would become shorter for it. floor: least value of v̂, for a step that is differentiated:
        the root has no derivative at 0.
        """
        mean, square = self.mean / (1 - DECAYS[0] ** number), self.square / (1 - DECAYS[1] ** number)
        return rate * mean / (square.clamp_min(floor).sqrt() + epsilon)
