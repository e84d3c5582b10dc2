"""Projection on the range of a generator: the least-squares solution where there is one."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from generators import SOLVER, Curved, LinearGenerator, SmoothGenerator
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor, nn

from manifold_bench.defenses.solvers import (
    AdamSolver,
    MomentumSolver,
    QuasiNewtonSolver,
    best_start,
    mean_squared_error,
)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(5, 1, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def test_every_start_reaches_the_least_squares_solution(images):
    generator = LinearGenerator()
    start = SOLVER.start(5, 3, seed=0, like=images)
    reached = SOLVER.solve(generator, images, start, SOLVER.steps)
    assert reached.shape == (5, 3, 3)
    assert torch.allclose(reached, generator.closest(images)[:, None].expand_as(reached), atol=1e-6)
    z, nearest = best_start(generator, images, reached)
    assert torch.allclose(nearest, generator(generator.closest(images)), atol=1e-6)
    assert torch.allclose(generator(z), nearest)


def test_an_image_of_the_generator_is_found_again():
    generator = SmoothGenerator()
    x = generator(torch.tensor([[0.3, -0.4], [1.0, 0.5]], dtype=torch.float64))
    solver = MomentumSolver(steps=3000, rate=3.0, momentum=0.9, starts=2)
    reached = solver.solve(generator, x, solver.start(2, 2, 0, x), solver.steps)
    assert mean_squared_error(best_start(generator, x, reached)[1], x).amax() < 1e-10


def test_adam_reaches_the_least_squares_solution_too(images):
    generator, solver = LinearGenerator(), AdamSolver(steps=2000, rate=0.01)
    reached = solver.solve(generator, images, solver.start(5, 3, 0, images), solver.steps)
    assert torch.allclose(reached[:, 0], generator.closest(images), atol=1e-3)


def test_adam_takes_the_steps_of_torch(images):
    generator, solver = LinearGenerator(), AdamSolver(rate=0.05)
    start = solver.start(5, 3, 0, images)
    z = start[:, 0].clone().requires_grad_(True)
    optimizer = torch.optim.Adam([z], lr=0.05)
    for _ in range(7):
        optimizer.zero_grad()
        mean_squared_error(generator(z), images).sum().backward()
        optimizer.step()
    own = solver.solve(generator, images, start, 7, unroll=True)
    assert torch.allclose(own[:, 0], z.detach(), atol=1e-6)


@pytest.mark.parametrize(
    "solver", [SOLVER, AdamSolver(steps=2000, rate=0.01, starts=3), QuasiNewtonSolver(steps=60, starts=3)]
)
def test_with_a_penalty_the_solution_is_that_of_ridge_regression(images, solver):
    """min ‖Az + b − x‖²/8 + w ‖z − m‖²: (AᵀA/8 + wI) z = Aᵀ(x − b)/8 + wm."""
    generator, weight = LinearGenerator(), 0.3
    means = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
    start = means.expand(5, 3, 3)
    reached = solver.solve(
        generator,
        images,
        start,
        solver.steps,
        penalty=lambda z, rows: weight * (z - means.repeat(5, 1)[rows]).square().sum(1),
    )
    normal = generator.matrix.T @ generator.matrix / 8 + weight * torch.eye(3)
    fit = (images.flatten(1) - generator.offset) @ generator.matrix / 8
    closed = torch.linalg.solve(normal, (fit[:, None] + weight * means).transpose(1, 2)).transpose(1, 2)
    assert torch.allclose(reached, closed, atol=1e-3)


def test_the_penalty_has_a_say_in_the_best_start():
    generator, z = LinearGenerator(), torch.eye(3, dtype=torch.float64)[None]
    x = generator(z[:, 0])
    dear = torch.tensor([1e3, 0, 0], dtype=torch.float64)
    chosen, image = best_start(generator, x, z, penalty=lambda z, rows: dear)
    assert not torch.equal(chosen, z[:, 0]) and torch.allclose(image, generator(chosen))


@pytest.mark.parametrize("unroll", [False, True])
def test_the_projection_of_an_image_does_not_depend_on_the_others(images, unroll):
    generator = LinearGenerator()
    start = SOLVER.start(5, 3, seed=0, like=images)
    together = SOLVER.solve(generator, images, start, 20, unroll)
    for i in range(5):
        alone = SOLVER.solve(generator, images[i : i + 1], start[i : i + 1], 20, unroll)
        assert torch.allclose(alone[0], together[i], rtol=0, atol=1e-12)


def test_starts_are_the_same_for_every_input_and_differ_by_seed():
    like = torch.empty(0, dtype=torch.float32)
    first = MomentumSolver(starts=4).start(3, 5, seed=1, like=like)
    assert first.shape == (3, 4, 5) and first.dtype is torch.float32
    assert torch.equal(first[0], first[2])
    assert not torch.equal(first[0, 0], first[0, 1])
    assert torch.equal(first, MomentumSolver(starts=4).start(3, 5, seed=1, like=like))
    assert not torch.equal(first, MomentumSolver(starts=4).start(3, 5, seed=2, like=like))


def test_the_best_iterate_counts_even_where_the_descent_runs_away(images):
    generator = LinearGenerator()
    wild = MomentumSolver(steps=10, rate=50.0, momentum=0.9, starts=2)
    start = wild.start(5, 3, 0, images)
    reached = wild.solve(generator, images, start, 10)
    aim = images.repeat_interleave(2, 0)
    before = mean_squared_error(generator(start.view(-1, 3)), aim)
    assert (mean_squared_error(generator(reached.view(-1, 3)), aim) <= before).all()
    assert reached.isfinite().all()


def test_more_steps_are_never_further_away(images):
    generator = LinearGenerator()
    start = SOLVER.start(5, 3, 0, images)
    errors = []
    for steps in (0, 1, 5, 25):
        reached = SOLVER.solve(generator, images, start, steps).view(-1, 3)
        errors.append(mean_squared_error(generator(reached), images.repeat_interleave(3, 0)))
    assert all((later <= earlier).all() for earlier, later in pairwise(errors))
    assert torch.equal(SOLVER.solve(generator, images, start, 0), start)


def test_the_nearest_start_is_chosen_for_each_image():
    generator = LinearGenerator()
    z = torch.randn(4, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    x = generator(z[torch.arange(4), [0, 5, 2, 3]])
    chosen, nearest = best_start(generator, x, z)
    assert torch.equal(chosen, z[torch.arange(4), [0, 5, 2, 3]])
    assert torch.allclose(nearest, x)


def test_unrolled_and_plain_descents_take_the_same_steps(images):
    generator, steady = LinearGenerator(), MomentumSolver(rate=0.3, momentum=0.0, starts=3)
    start = steady.start(5, 3, 0, images)
    plain = steady.solve(generator, images, start, 30)
    unrolled = steady.solve(generator, images, start, 30, unroll=True)
    assert torch.allclose(plain, unrolled, atol=1e-12)  # nothing overshoots: the last iterate is the best


@pytest.mark.parametrize("unroll", [False, True])
def test_it_works_where_gradients_are_switched_off(images, unroll):
    generator = LinearGenerator()
    start = SOLVER.start(5, 3, 0, images)
    expected = SOLVER.solve(generator, images, start, 10, unroll)
    with torch.no_grad():
        assert torch.equal(SOLVER.solve(generator, images, start, 10, unroll), expected)


def test_neither_image_nor_start_is_written_to(images):
    start = SOLVER.start(5, 3, 0, images)
    before = images.clone(), start.clone()
    SOLVER.solve(LinearGenerator(), images, start, 10)
    assert torch.equal(images, before[0]) and torch.equal(start, before[1])
    assert not start.requires_grad and not images.requires_grad


def test_what_is_reached_is_detached(images):
    reached = SOLVER.solve(LinearGenerator(), images, SOLVER.start(5, 3, 0, images), 10)
    assert not reached.requires_grad


def test_l_bfgs_reaches_the_least_squares_solution_in_a_few_passes(images):
    generator, solver = LinearGenerator(), QuasiNewtonSolver(steps=25, starts=3, tolerance=0.0)
    reached = solver.solve(generator, images, solver.start(5, 3, 0, images), solver.steps)
    assert torch.allclose(reached, generator.closest(images)[:, None].expand_as(reached), atol=1e-7)


def test_l_bfgs_takes_scipys_steps_to_a_curved_optimum():
    """Both end in the same local optimum, where the gradient is zero."""
    generator = SmoothGenerator()
    x = torch.rand(4, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    solver = QuasiNewtonSolver(steps=80, tolerance=0.0)
    start = solver.start(4, 2, 3, x)
    reached = solver.solve(generator, x, start, solver.steps)[:, 0]
    for i in range(4):

        def error(z, i=i):
            z = torch.tensor(z, requires_grad=True)
            value = mean_squared_error(generator(z[None]), x[i : i + 1]).sum()
            return value.item(), torch.autograd.grad(value, z)[0].numpy()

        found = minimize(
            error, start[i, 0].numpy(), jac=True, method="L-BFGS-B", options={"gtol": 1e-10, "ftol": 1e-16}
        )
        assert error(reached[i].numpy())[0] == pytest.approx(found.fun, abs=1e-9)


class Counting(nn.Module):
    """A generator that notes how many latents each pass has."""

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.generator, self.sizes = generator, []

    def forward(self, z: Tensor) -> Tensor:
        self.sizes.append(len(z))
        return self.generator(z)


def test_what_has_converged_leaves_the_batch_and_changes_nothing_for_the_rest():
    random, generator = torch.Generator().manual_seed(4), Curved()
    x = torch.rand(24, 1, 2, 4, dtype=torch.float64, generator=random)
    solver = QuasiNewtonSolver(steps=200, tolerance=1e-3)
    start = torch.randn(24, 1, 3, dtype=torch.float64, generator=random)
    counted = Counting(generator)
    together = solver.solve(counted, x, start, 200)
    assert len(set(counted.sizes)) > 1 and sum(counted.sizes) < 24 * 200 / 2
    patient = replace(solver, tolerance=0.0).solve(generator, x, start, 200)
    errors = [mean_squared_error(generator(z[:, 0]), x) for z in (together, patient)]
    assert torch.allclose(errors[0], errors[1], rtol=0.01)
    for i in range(0, 24, 5):
        assert torch.equal(solver.solve(generator, x[i : i + 1], start[i : i + 1], 200)[0], together[i])


def test_a_race_ends_with_the_start_that_was_ahead_and_costs_what_it_says(images):
    generator = Counting(LinearGenerator())
    solver = MomentumSolver(steps=12, rate=0.3, momentum=0.5, starts=4, race=5)
    start = solver.start(5, 3, 0, images)
    reached = solver.solve(generator, images, start, 12)
    assert reached.shape == (5, 1, 3) and solver.passes == 4 * 5 + 7
    assert generator.sizes == [24] * 5 + [20] + [8] * 7 + [5]  # in whole blocks of eight where gradients are taken
    after = replace(solver, race=0).solve(generator, images, start, 5)
    ahead, _ = best_start(generator, images, after)
    finished = replace(solver, race=0, starts=1).solve(generator, images, ahead[:, None], 7)
    assert torch.allclose(reached, finished, atol=1e-12)


@given(
    seed=st.integers(0, 2**31),
    solver=st.sampled_from(
        [
            MomentumSolver(rate=0.3, momentum=0.5, starts=2),
            AdamSolver(starts=2),
            QuasiNewtonSolver(starts=2),
            QuasiNewtonSolver(starts=2, race=3),
        ]
    ),
)
def test_the_answer_is_never_worse_than_the_best_start(seed, solver):
    random = torch.Generator().manual_seed(seed)
    generator, x = SmoothGenerator(), torch.rand(3, 1, 2, 2, dtype=torch.float64, generator=random)
    start = solver.start(3, 2, seed, x)
    before = mean_squared_error(best_start(generator, x, start)[1], x)
    after = mean_squared_error(best_start(generator, x, solver.solve(generator, x, start, 8))[1], x)
    assert (after <= before + 1e-12).all()


def test_starts_per_input_depend_on_the_input_and_the_seed_alone():
    x = torch.rand(5, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    solver = MomentumSolver(starts=3, spread=0.5)
    together = solver.start_per_input(x, 4, seed=1)
    assert together.shape == (5, 3, 4)
    assert torch.equal(solver.start_per_input(x[3:4], 4, seed=1)[0], together[3])
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(solver.start_per_input(x, 4, seed=2), together)
    many = MomentumSolver(starts=4000, spread=0.5).start_per_input(x[:1], 4, 0)
    assert float(many.std()) == pytest.approx(0.5, rel=0.05)
