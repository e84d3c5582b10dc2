"""Balls, projections and distances: what has to hold for every image and every ε."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from manifold_bench.attacks.threat import (
    NORMS,
    Norm,
    flat_norm,
    input_seeds,
    inside,
    project,
    random_in_ball,
    sparse_step,
)

SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))
SEEDS = st.integers(0, 2**31)
MANY = settings(max_examples=60, deadline=None)


def images(shape: tuple[int, ...], seed: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def strength(norm: Norm, share: float) -> float:
    """An ε for that norm from a share in (0, 1]; whole pixels in L0."""
    return {"linf": share, "l2": 4 * share, "l1": 4 * share, "l0": float(math.ceil(8 * share))}.get(norm, math.inf)


@pytest.mark.parametrize("norm", NORMS)
@given(shape=SHAPES, seed=SEEDS, share=st.floats(1e-3, 1))
@MANY
def test_projection_lands_in_ball_and_box_and_stays_there(norm, shape, seed, share):
    eps, origin, x = strength(norm, share), images(shape, seed), images(shape, seed + 1, -1, 2)
    once = project(x, origin, norm, eps)
    assert inside(once, origin, norm, eps).all()
    assert once.amin() >= 0 and once.amax() <= 1
    assert torch.allclose(project(once, origin, norm, eps), once, rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
@given(shape=SHAPES, seed=SEEDS, share=st.floats(1e-3, 1))
@MANY
def test_projection_leaves_what_is_inside(norm, shape, seed, share):
    eps, origin = strength(norm, share), images(shape, seed)
    x = random_in_ball(origin, norm, eps * (0.99 if norm in ("linf", "l2", "l1") else 1), seed)
    assert torch.equal(project(x, origin, norm, eps), x)


@given(shape=SHAPES, seed=SEEDS, share=st.floats(1e-3, 1))
@MANY
@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_no_point_of_the_ball_within_the_box_is_nearer_than_the_projection(norm, shape, seed, share):
    """The set is convex, so that it is enough to look at a step towards another point of it."""
    eps, origin, x = strength(norm, share), images(shape, seed), images(shape, seed + 1, -1, 2)
    nearest = project(x, origin, norm, eps)
    other = nearest + 0.05 * (project(images(shape, seed + 2, -1, 2), origin, norm, eps) - nearest)
    assert (flat_norm(x - nearest, "l2") <= flat_norm(x - other, "l2") + 1e-5).all()


def test_l0_projection_keeps_the_pixels_that_changed_most():
    origin = torch.zeros(1, 2, 1, 3)
    x = torch.tensor([[[[0.1, 0.0, 0.5]], [[0.3, 0.2, 0.0]]]])
    kept = project(x, origin, "l0", 2)
    assert torch.equal(kept, torch.tensor([[[[0.1, 0.0, 0.5]], [[0.3, 0.0, 0.0]]]]))


def test_the_l1_projection_by_hand():
    """Both pixels shrink by 0.2; a pixel without room leaves what it cannot use to the others."""
    origin, x = torch.tensor([[[[0.5, 0.5]]], [[[0.9, 0.5]]]]), torch.tensor([[[[0.9, 0.2]]], [[[1.3, 0.2]]]])
    assert torch.allclose(project(x, origin, "l1", 0.3), torch.tensor([[[[0.7, 0.4]]], [[[1.0, 0.3]]]]))
    assert torch.allclose(project(x, origin, "l1", 0.7), torch.tensor([[[[0.9, 0.2]]], [[[1.0, 0.2]]]]))


@given(seed=SEEDS, order=st.permutations(range(5)))
@MANY
def test_the_l1_projection_does_not_depend_on_the_batch(seed, order):
    origin, x = images((5, 2, 3, 3), seed), images((5, 2, 3, 3), seed + 1, -1, 2)
    together = project(x, origin, "l1", 1.3)
    assert torch.equal(project(x[list(order)], origin[list(order)], "l1", 1.3), together[list(order)])
    assert torch.equal(project(x[2:3], origin[2:3], "l1", 1.3), together[2:3])


def test_the_l1_projection_is_the_papers_on_images():
    """Against bisection on the threshold in float64; ε is used whole."""
    origin, x = images((6, 1, 28, 28), 0), images((6, 1, 28, 28), 1, -1, 2)
    delta, room = (x - origin).double(), torch.where(x > origin, 1 - origin, origin).double()
    low, high = torch.zeros(6, 1, 1, 1).double(), torch.full((6, 1, 1, 1), 2.0).double()
    for _ in range(60):
        middle = (low + high) / 2
        size = torch.minimum((delta.abs() - middle).clamp_min(0), room).sum((1, 2, 3), keepdim=True)
        low, high = torch.where(size > 10, middle, low), torch.where(size > 10, high, middle)
    expected = origin + delta.sign() * torch.minimum((delta.abs() - high).clamp_min(0), room)
    found = project(x, origin, "l1", 10.0)
    assert (found - expected).abs().max() < 1e-5
    assert flat_norm(found - origin, "l1").tolist() == pytest.approx([10.0] * 6, rel=1e-4)


def test_a_sparse_step_follows_the_largest_entries():
    gradient = torch.tensor([[3.0, -4.0, 1.0, 0.0], [3.0, -4.0, 1.0, 0.0], [0.0, 0.0, 2.0, 0.0]])
    steps = sparse_step(gradient, torch.tensor([1, 2, 3]))
    assert steps.tolist() == [[0, -1, 0, 0], [0.5, -0.5, 0, 0], [0, 0, 1, 0]]


def test_norms_of_a_perturbation_checked_by_hand():
    delta = torch.tensor([[[[0.3, 0.0], [0.0, 0.0]], [[-0.4, 0.0], [0.0, 0.0]]], torch.zeros(2, 2, 2).tolist()])
    assert flat_norm(delta, "linf").tolist() == pytest.approx([0.4, 0])
    assert flat_norm(delta, "l2").tolist() == pytest.approx([0.5, 0])
    assert flat_norm(delta, "l1").tolist() == pytest.approx([0.7, 0])
    assert flat_norm(delta, "l0").tolist() == [1, 0]  # one pixel, though both of its channels changed


ORIGIN = torch.full((1, 1, 2, 2), 0.5)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -0.001, 1.001, 1e30])
def test_no_norm_admits_what_is_not_an_image(norm, bad):
    x = ORIGIN.clone()
    x[0, 0, 0, 0] = bad
    assert not inside(x, ORIGIN, norm, 1e9).item()


@pytest.mark.parametrize(
    ("norm", "eps", "delta", "within"),
    [
        ("linf", 0.1, [0.1, 0, 0, 0], True),
        ("linf", 0.1, [0.1 + 1e-6, 0, 0, 0], True),
        ("linf", 0.1, [-0.1 - 1e-6, 0, 0, 0], True),
        ("linf", 0.1, [0.1 + 2e-6, 0, 0, 0], False),
        ("linf", 0.1, [0, -0.1 - 2e-6, 0, 0], False),
        ("l2", 0.5, [0.3, 0.4, 0, 0], True),
        ("l2", 0.4, [0.4 + 1e-5, 0, 0, 0], True),
        ("l2", 0.4, [0.4 + 3e-5, 0, 0, 0], False),
        ("l2", 0.5, [0.3, 0.41, 0, 0], False),
        ("l1", 0.5, [0.3, 0.2, 0, 0], True),
        ("l1", 0.5, [0.25, -0.25, 1e-5, 0], True),
        ("l1", 0.5, [0.3, -0.2, 3e-5, 0], False),
        ("l0", 1, [0.5, 0, 0, 0], True),
        ("l0", 1, [0.5, 1e-4, 0, 0], False),
        ("l0", 2, [0.5, 1e-4, 0, 0], True),
        ("unrestricted", math.inf, [0.5, 0.5, -0.5, -0.5], True),
        ("fooling", math.inf, [0.5, 0.5, -0.5, -0.5], True),
    ],
)
def test_what_counts_as_inside(norm, eps, delta, within):
    origin = ORIGIN.double()
    x = origin + torch.tensor(delta, dtype=torch.float64).view(1, 1, 2, 2)
    assert inside(x, origin, norm, eps).item() is within


def test_inside_judges_every_input_for_itself():
    origin = ORIGIN.repeat(3, 1, 1, 1)
    x = origin.clone()
    x[1, 0, 0, 0], x[2, 0, 0, 0] = math.nan, 0.65
    assert inside(x, origin, "linf", 0.1).tolist() == [True, False, False]


@pytest.mark.parametrize("norm", NORMS)
@given(shape=SHAPES, seed=SEEDS, share=st.floats(1e-3, 1))
@MANY
def test_random_points_are_inside(norm, shape, seed, share):
    x, eps = images(shape, seed), strength(norm, share)
    assert inside(random_in_ball(x, norm, eps, seed), x, norm, eps).all()


@pytest.mark.parametrize("norm", NORMS)
@given(seed=SEEDS, order=st.permutations(range(5)))
@settings(max_examples=20, deadline=None)
def test_random_points_do_not_depend_on_the_batch(norm, seed, order):
    x, eps = images((5, 1, 3, 3), seed), strength(norm, 0.3)
    together = random_in_ball(x, norm, eps, seed)
    assert torch.equal(random_in_ball(x[list(order)], norm, eps, seed), together[list(order)])
    assert torch.equal(random_in_ball(x[2:3], norm, eps, seed), together[2:3])


@pytest.mark.parametrize("norm", NORMS)
def test_random_points_differ_by_seed_and_by_input(norm):
    x = images((2, 1, 6, 6), 0)
    eps = strength(norm, 0.3)
    first = random_in_ball(x, norm, eps, 0)
    assert not torch.equal(first, random_in_ball(x, norm, eps, 1))
    assert not torch.equal(first[0] - x[0], first[1] - x[1])


def test_random_points_fill_the_ball():
    x = images((2000, 1, 1, 2), 0, 0.45, 0.55)  # as far from the box as ε
    linf = (random_in_ball(x, "linf", 0.4, 0) - x) / 0.4
    assert linf.flatten().mean().abs() < 0.05
    assert linf.flatten().var().item() == pytest.approx(1 / 3, rel=0.1)
    radius = flat_norm(random_in_ball(x, "l2", 0.4, 0) - x, "l2") / 0.4
    assert radius.square().mean().item() == pytest.approx(1 / 2, rel=0.05)  # uniform in a disc
    inside = (random_in_ball(x, "l1", 0.4, 0) - x) / 0.4
    assert inside.flatten().mean().abs() < 0.05
    assert flat_norm(inside, "l1").square().mean().item() == pytest.approx(1 / 2, rel=0.05)
    assert inside[:, 0, 0, 0].square().mean().item() == pytest.approx(1 / 6, rel=0.1)  # uniform in a rhombus


def test_random_state_of_the_caller_is_left_alone():
    before = torch.get_rng_state()
    random_in_ball(images((3, 1, 2, 2), 0), "l2", 1.0, 0)
    assert torch.equal(torch.get_rng_state(), before)


@given(seed=SEEDS, other=SEEDS, order=st.permutations(range(4)))
@settings(max_examples=30, deadline=None)
def test_input_seeds_depend_on_pixels_and_seed_alone(seed, other, order):
    x = images((4, 1, 3, 3), seed)
    seeds = input_seeds(x, seed)
    assert input_seeds(x[list(order)], seed) == [seeds[i] for i in order]
    assert input_seeds(x.clone().requires_grad_(True), seed) == seeds
    assert input_seeds(x.transpose(2, 3).contiguous().transpose(2, 3), seed) == seeds  # other strides, same pixels
    assert len(set(seeds)) == 4
    if other != seed:
        assert not set(input_seeds(x, other)) & set(seeds)
    changed = x.clone()
    changed[0, 0, 0, 0] = torch.nextafter(x[0, 0, 0, 0], torch.tensor(2.0))
    assert input_seeds(changed, seed)[0] != seeds[0]
    assert input_seeds(changed, seed)[1:] == seeds[1:]


def test_empty_batches_pass():
    x = torch.empty(0, 1, 2, 2)
    assert input_seeds(x, 0) == []
    assert random_in_ball(x, "linf", 0.1, 0).shape == x.shape
    assert inside(x, x, "l2", 1.0).shape == (0,)
