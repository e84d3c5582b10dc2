"""A defense that rejects a whole band between its two classes: who stops at `label ≠ y` stops in the band."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attacks.target import Verdict
from defenses.base import append_reject_score

BAND = (0.5, 0.7)


class Band(nn.Module):
    """Images [N,1,2,2]; by the first pixel t: class 0 below the band, rejected within, class 1 above."""

    shape = (1, 2, 2)
    num_classes = 2
    rejects = True
    randomized = False
    gradient_modes = ("default",)
    classifier = None

    def forward(self, x: Tensor) -> Tensor:
        t = x[:, 0, 0, 0]
        middle, half = sum(BAND) / 2, (BAND[1] - BAND[0]) / 2
        return append_reject_score(torch.stack([BAND[1] - t, t - BAND[1]], dim=1), half - (t - middle).abs())

    def verdict(self, x: Tensor) -> Verdict:
        logits = self(x)
        return Verdict(logits[:, :2].argmax(1), logits.argmax(1) == 2)


def images_below(n: int) -> tuple[Tensor, Tensor]:
    """n images of class 0 with t from .2 to .45, other pixels random; their labels."""
    x = torch.rand(n, 1, 2, 2, generator=torch.Generator().manual_seed(3))
    x[:, 0, 0, 0] = torch.linspace(0.2, 0.45, n)
    return x, torch.zeros(n, dtype=torch.long)
