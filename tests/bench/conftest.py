"""Fixtures of the tests of the Python interface."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn


@pytest.fixture(scope="module")
def linear() -> nn.Module:
    """A linear classifier of images of 8×8 pixels: each margin has a closed form."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with torch.no_grad():
        net[1].weight.copy_(torch.randn(10, 64, generator=torch.Generator().manual_seed(4)))
        net[1].bias.zero_()
    return net


@pytest.fixture(scope="module")
def interior(linear) -> tuple[Tensor, Tensor]:
    """Images so far from black and white that perturbations up to 0.2 stay inside, with the model's own labels."""
    x = 0.3 + 0.4 * torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    return x, linear(x).argmax(1)
