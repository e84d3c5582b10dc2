"""The running means of Adam (Kingma & Ba 2015, algorithm 1); what a step makes of them is each descent's own."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

DECAYS = (0.9, 0.999)
"""Of the gradient's mean and of its square's."""


class Moments(NamedTuple):
    """Means of the gradients met and of their squares, the latest weighing most; shaped like a gradient [N,...]."""

    mean: Tensor
    square: Tensor

    @classmethod
    def none(cls, like: Tensor) -> Moments:
        """Before the first gradient."""
        return cls(torch.zeros_like(like), torch.zeros_like(like))

    def only(self, rows: Tensor) -> Moments:
        """Those of rows [n], by number."""
        return Moments(self.mean.index_select(0, rows), self.square.index_select(0, rows))

    def after(self, gradient: Tensor) -> Moments:
        return Moments(
            DECAYS[0] * self.mean + (1 - DECAYS[0]) * gradient,
            DECAYS[1] * self.square + (1 - DECAYS[1]) * gradient.square(),
        )

    def unbiased(self, number: int) -> Moments:
        """After that many gradients, without the pull of the zeros they began with."""
        return Moments(self.mean / (1 - DECAYS[0] ** number), self.square / (1 - DECAYS[1] ** number))
