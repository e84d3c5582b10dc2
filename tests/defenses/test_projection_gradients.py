"""Gradients through a projection: unrolled, implicit, and straight through."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from generators import SOLVER, Curved, SmoothGenerator
from torch import Tensor

from manifold_bench.defenses.defense_gan import PAPER
from manifold_bench.defenses.projection_gradients import (
    BackwardImplicit,
    LinearSolve,
    straight_through,
    through_optimum,
)
from manifold_bench.defenses.solvers import (
    AdamSolver,
    MomentumSolver,
    QuasiNewtonSolver,
)


def test_backward_identity_answers_one_thing_and_differentiates_another():
    x = torch.rand(2, 1, 2, 2, requires_grad=True)
    value = torch.rand(2, 1, 2, 2)
    answer = straight_through(x, value)
    assert torch.equal(answer, value)
    (answer.square()).sum().backward()
    assert torch.equal(x.grad, 2 * value)


@pytest.mark.parametrize(
    "solver",
    [MomentumSolver(rate=2.0, momentum=0.9, starts=2), AdamSolver(rate=0.1, starts=2)],
    ids=lambda s: type(s).__name__,
)
def test_the_unrolled_gradient_is_the_derivative_of_the_solver(solver):
    generator = SmoothGenerator()
    x = torch.rand(2, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).requires_grad_(True)
    start = solver.start(2, 2, 0, x)
    assert torch.autograd.gradcheck(lambda x: solver.solve(generator, x, start, 6, unroll=True), (x,))


@pytest.mark.parametrize("solver", [QuasiNewtonSolver(), AdamSolver(steps=900)], ids=lambda s: s.method)
def test_the_slope_of_what_is_unrolled_beyond_an_optimum_is_that_of_the_optimum(solver):
    x, generator = away_from_the_surface(0.3).requires_grad_(True), Curved()
    z, aside = (
        converged(x.detach()),
        torch.rand(3, 1, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(8)),
    )
    reached = solver.unrolled(600).solve(generator, x, z[:, None], 600, unroll=True)[:, 0]
    torch.testing.assert_close(reached.detach(), z, atol=1e-6, rtol=0)
    (slope,) = torch.autograd.grad((generator(reached) * aside).sum(), x)
    exact = through_optimum(generator, x, z, aside, LinearSolve(curvature=True, damping=0.0, iterations=50))
    torch.testing.assert_close(slope, exact, atol=1e-4, rtol=1e-3)


def test_what_is_unrolled_are_the_last_steps_or_all():
    assert PAPER.unrolled(200) is PAPER and PAPER.unrolled(199) == replace(PAPER, rate=PAPER.rate / 10, drop=1.0)
    assert SOLVER.unrolled(1) is SOLVER


def converged(x: Tensor) -> Tensor:
    """z*(x) to the last digits: a long descent from the same start for every image."""
    solver = QuasiNewtonSolver(steps=400, tolerance=0.0, pairs=6)
    start = torch.tensor([0.2, -0.1, 0.1], dtype=torch.float64).expand(len(x), 1, 3)
    return solver.solve(Curved(), x, start, solver.steps)[:, 0]


def away_from_the_surface(far: float) -> Tensor:
    random = torch.Generator().manual_seed(6)
    x = Curved()(0.5 * torch.randn(3, 3, dtype=torch.float64, generator=random))
    return x + far * torch.randn(x.shape, dtype=torch.float64, generator=random)


def test_the_implicit_gradient_is_the_slope_of_the_converged_projection():
    """Central differences of G(z*(x)), far enough from the surface for its curvature to count."""
    x, generator, random = away_from_the_surface(0.05), Curved(), torch.Generator().manual_seed(7)
    weight, aside = (torch.randn(x.shape, dtype=torch.float64, generator=random) for _ in range(2))
    h = 3e-4
    ahead, behind = (generator(converged(x + sign * h * aside)) for sign in (1, -1))
    slopes = ((ahead - behind) * weight).flatten(1).sum(1) / (2 * h)
    found = {}
    for curvature in (True, False):
        point, z = x.clone().requires_grad_(True), converged(x)
        exact = LinearSolve(curvature=curvature, damping=0.0, iterations=50)
        value = BackwardImplicit.apply(point, generator(z), generator, z, exact)
        (gradient,) = torch.autograd.grad((value * weight).sum(), point)
        found[curvature] = ((gradient * aside).flatten(1).sum(1) - slopes).abs() / slopes.abs()
    assert found[True].amax() < 1e-4
    assert found[False].amax() > 1e-3  # without the curvature it is another derivative


def test_gauss_newton_projects_on_the_tangent_space():
    """On the surface itself both forms are the projector: symmetric, idempotent, identity on tangents."""
    x, generator = away_from_the_surface(0.0), Curved()
    z = converged(x)
    exact = LinearSolve(curvature=False, damping=0.0, iterations=50)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda one: generator(one[None]).flatten()))(z)
    projector = jacobian @ torch.linalg.pinv(jacobian)
    for i in range(8):
        unit = torch.zeros_like(x).flatten(1)
        unit[:, i] = 1
        back = through_optimum(generator, x, z, unit.view_as(x), exact).flatten(1)
        assert torch.allclose(back, projector[:, :, i], atol=1e-7)


def test_damped_steps_shrink_and_never_turn_round():
    x, generator = away_from_the_surface(0.3), Curved()
    z, gradient = converged(x), torch.randn(3, 1, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    sizes = []
    for damping in (0.01, 0.1, 1.0):
        back = through_optimum(generator, x, z, gradient, LinearSolve(curvature=False, damping=damping))
        assert ((back * gradient).flatten(1).sum(1) >= 0).all()
        sizes.append(back.flatten(1).norm(dim=1))
    assert (sizes[0] >= sizes[1]).all() and (sizes[1] >= sizes[2]).all()
