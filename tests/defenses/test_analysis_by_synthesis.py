"""Analysis by synthesis: the least energy of each class' decoder, and gradients through the search for it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from manifold_bench.attacks.gradient import PGD
from manifold_bench.attacks.target import Target
from manifold_bench.defenses.analysis_by_synthesis import AnalysisBySynthesis, AnalysisBySynthesisSpec
from manifold_bench.defenses.base import Progress
from manifold_bench.defenses.solvers import AdamSolver
from manifold_bench.defenses.weights import freeze

SPEC = AnalysisBySynthesisSpec(shape=(1, 8, 8), num_classes=10, latent=4, hidden=32, samples=200)


class Linear(nn.Module):
    """The decoder G(z) = A z + b, whose energy has its least value at z* = (AᵀA + ½ I)⁻¹ Aᵀ (x − b)."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.matrix = torch.randn(64, 4, generator=generator) / 8
        self.offset = torch.rand(64, generator=generator)

    def forward(self, z: Tensor) -> Tensor:
        return (z @ self.matrix.t() + self.offset).view(-1, 1, 8, 8)

    def least(self, x: Tensor) -> Tensor:
        off = x.flatten(1) - self.offset
        kernel = self.matrix.t() @ self.matrix + 0.5 * torch.eye(4)
        z = torch.linalg.solve(kernel, off @ self.matrix, left=False)
        return (off - z @ self.matrix.t()).square().sum(1) + z.square().sum(1) / 2


def linear(**changes) -> AnalysisBySynthesis:
    defense = AnalysisBySynthesis(replace(SPEC, num_classes=3, **changes))
    defense.decoders = nn.ModuleList(Linear(seed) for seed in range(3))
    return freeze(defense)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def trained(digits) -> AnalysisBySynthesis:
    defense = AnalysisBySynthesis(replace(SPEC, rate=5e-3, solver=AdamSolver(steps=15)))
    figures = defense.fit(digits.train, digits.validation, 0.25, 0, Progress())
    assert figures["validation_accuracy"] > 0.9
    return freeze(defense)


def gradients(logits: Tensor, x: Tensor) -> Tensor:
    return torch.stack([torch.autograd.grad(own.sum(), x, retain_graph=True)[0] for own in logits.unbind(1)], dim=1)


@pytest.mark.parametrize("mode", ["implicit", "unrolled"])
def test_the_logits_and_their_gradients_are_those_of_the_least_energy(images, mode):
    defense = linear(solver=AdamSolver(steps=400, rate=0.02))
    x = images.clone().requires_grad_(True)
    logits, ends = defense.attack_forward(x, mode, None, 30)
    least = -torch.stack([decoder.least(x) for decoder in defense.decoders], dim=1)
    assert ends.shape == (8, 3, 4) and torch.allclose(logits, least, atol=1e-2)
    exact = gradients(least, x)
    assert (gradients(logits, x) - exact).flatten(2).norm(dim=2).amax() < 0.02 * exact.flatten(2).norm(dim=2).amin()


def test_a_search_starts_at_the_draw_of_least_energy(images):
    defense = linear()
    for decoder in defense.models:
        found = defense.likeliest(decoder, images)
        every = torch.stack([defense.energy(decoder, images, z.expand(8, -1)) for z in defense.prior], dim=1)
        assert torch.allclose(defense.energy(decoder, images, found), every.amin(1), rtol=1e-5)


def test_all_steps_unrolled_are_the_deployed_search(images):
    defense = linear(solver=AdamSolver(steps=5))
    x = images.clone().requires_grad_(True)
    logits, ends = defense.attack_forward(x, "unrolled", None, 20)
    assert gradients(logits, x).isfinite().all()
    for place, decoder in enumerate(defense.models):
        start = defense.likeliest(decoder, images)[:, None]
        reached = defense.spec.solver.solve(
            decoder, images, start, 5, unroll=True, penalty=lambda z, rows: z.square().sum(1) / 128
        )
        assert torch.allclose(ends[:, place], reached[:, 0], atol=1e-6)


@pytest.mark.parametrize("mode", ["implicit", "unrolled"])
def test_a_warm_start_goes_on_from_the_last_optima(images, mode):
    defense = linear(solver=AdamSolver(steps=20))
    _, first = defense.attack_forward(images, mode, None, 5)
    logits, second = defense.attack_forward(images, mode, first, 5)
    again = linear(solver=AdamSolver(steps=400, rate=0.02))(images)
    assert second.shape == first.shape and (logits <= again + 1e-2).all()


def test_it_answers_digits_and_an_attack_through_the_search_beats_it(trained, digits):
    x, y = digits.test.images[:16], digits.test.labels[:16]
    assert (trained(x).argmax(1) == y).double().mean() > 0.8
    attack = PGD(steps=10, gradient="implicit", warm_start=True, inner_steps=5)
    found = attack.run(Target(trained, 16), x, y, 0.4, 0)
    assert (trained(found).argmax(1) == y).double().mean() < 0.4
