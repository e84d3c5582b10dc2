"""What the tests of other libraries' attacks compare with: the closed form of a linear model, and our own PGD."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def interior_inputs(model: Any, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """x [n,1,2,2] in [.35,.65], its labels and its exact L2 distances to the nearest other class, .02 to .2.

    So far from the edges of [0,1] and so near a boundary, the closed form is the smallest distance within the box.
    """
    x = 0.35 + 0.3 * torch.rand(20 * n, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    distance = model.distance(x)
    x = x[(distance > 0.02) & (distance < 0.2)][:n]
    assert len(x) == n
    return x, model(x).argmax(1), model.distance(x)


def l2(a: Tensor, b: Tensor) -> Tensor:
    """Distances [N]."""
    return (a - b).flatten(1).norm(dim=1)


def comparable(defense: Any, x: Tensor, ours: Tensor, theirs: Tensor, y: Tensor) -> Tensor:
    """Where our PGD and another must agree [N]: no success on the way (ours stops there), and no saturated loss.

    Below 1e-4 the softmax of the true class is so near 1 that the libraries' float32 gradient is rounding noise.
    """
    with torch.no_grad():
        before = F.cross_entropy(defense(x), y, reduction="none")
        after = F.cross_entropy(defense(theirs), y, reduction="none")
    return ~defense.verdict(ours).wrong(y) & (before > 1e-4) & (after > before)
