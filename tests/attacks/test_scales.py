"""Outputs of a linear model on other scales: the robust images are known, and no scale changes them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import manifold_bench as mb
from manifold_bench.attacks.outputs import cast_keeping_argmax
from manifold_bench.bench.datasets.digits import Digits

TEST = Digits().test
X, Y = TEST.images[:32], TEST.labels[:32]
MEANS = torch.stack([TEST.images[100:][TEST.labels[100:] == c].mean(0).flatten() for c in range(10)])
EPS = 0.1


class Nearest(nn.Module):
    """Minus half the squared distances to the mean images, up to a term that all classes share: linear outputs."""

    def __init__(self, form) -> None:
        super().__init__()
        self.form = form
        self.means = nn.Parameter(MEANS.clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.form(x.flatten(1) @ self.means.T - self.means.square().sum(1) / 2)


def robust() -> Tensor:
    """Which images keep their label within ε, by the corner of the box that is worst for each other class."""
    x, means = X.flatten(1).double(), MEANS.double()
    low, high = (x - EPS).clamp_min(0), (x + EPS).clamp_max(1)
    difference = means - means[Y][:, None]
    worst = torch.where(difference > 0, high[:, None], low[:, None])
    offset = (means[Y].square().sum(1)[:, None] - means.square().sum(1)) / 2
    gaps = (difference * worst).sum(2) + offset
    return (gaps < 0).scatter(1, Y[:, None], True).all(1)


DOUBLE = {
    "float64": lambda z: z.double(),
    "float64 + 1e6": lambda z: z.double() + 1e6,
    "float64 + 1e12": lambda z: z.double() + 1e12,
    "float64 · 1e40": lambda z: z.double() * 1e40,
    "float64 · 1e-60": lambda z: z.double() * 1e-60,
    "float64 · 1e-200 − 1e-192": lambda z: z.double() * 1e-200 - 1e-192,
    "float64 + 1e9, two masks": lambda z: torch.cat([z.double() + 1e9, -1e299 - z[:, :2].double() * 1e280], 1),
}


@pytest.mark.parametrize("attack", ["pgd", "apgd"])
@pytest.mark.parametrize("form", DOUBLE)
def test_outputs_in_double_precision_are_judged_as_they_are(form, attack):
    exact = robust()
    assert 8 <= exact.sum() <= 24, "the case would show nothing"
    found = mb.attack(attack, Nearest(DOUBLE[form]), (X, Y), eps=EPS)
    assert torch.equal(found.success, ~exact)


def test_rows_that_lose_nothing_are_rounded_alone():
    random = torch.Generator().manual_seed(0)
    z = torch.randn(64, 10, generator=random, dtype=torch.float64)
    for outputs in (z, 1e3 * z, z.softmax(1), (30 * z).softmax(1), z - 100, z.masked_fill(z < -1, -torch.inf)):
        assert torch.equal(cast_keeping_argmax(outputs, torch.float32, 10), outputs.float())
    assert cast_keeping_argmax(z.float(), torch.float32, 10).equal(z.float())


@pytest.mark.parametrize("shift", [0.0, -1e7, 1e15])
@pytest.mark.parametrize("factor", [1e-300, 1e-50, 1.0, 1e50, 1e300])
def test_the_order_and_masks_stay_and_gradients_are_finite(factor, shift):
    random = torch.Generator().manual_seed(0)
    z = (torch.randn(64, 11, generator=random, dtype=torch.float64) + shift) * factor
    z[:, 3] = -torch.inf
    z[0] = -torch.inf
    z[1] = 5e-324 * torch.arange(11, dtype=torch.float64)
    z.requires_grad_()
    narrow = cast_keeping_argmax(z, torch.float32, 10)
    assert (
        torch.equal(narrow[2:].argsort(dim=1, stable=True), z[2:].argsort(dim=1, stable=True))
        and narrow.dtype == torch.float32
    )
    assert (narrow[2:, 3] == -torch.inf).all() and narrow[1].argmax() == 10
    (gradient,) = torch.autograd.grad(narrow.masked_fill(narrow.isinf(), 0).sum(), z)
    assert gradient.isfinite().all()
