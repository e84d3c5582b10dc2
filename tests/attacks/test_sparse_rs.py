"""Sparse-RS: exact where the smallest number of pixels is known, from scores alone, with pixels of all channels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linear import check_company, check_seed
from rejecting import Band, Walled, images_below
from torch import Tensor
from toys import CNN, Colours, Linear, Toy, near_the_middle

from manifold_bench.attacks.queries import Queries
from manifold_bench.attacks.sparse_rs import SparseRS, shuffled
from manifold_bench.attacks.target import Attacker, BudgetSpent, Target
from manifold_bench.attacks.threat import flat_norm, inside


class Planted(Toy):
    """Class 1 only where three pixels of a grey image [N,3,6,6] are red; any other corner is worse than grey."""

    red = torch.tensor([1.0, 0.0, 0.0])
    places = (3, 17, 30)

    def answer(self, x: Tensor) -> Tensor:
        away = (x.flatten(2)[:, :, self.places] - self.red[:, None]).abs().amax(1).sum(1)
        return torch.stack([torch.full_like(away, 0.7), 1 - away], dim=1)


def test_a_planted_example_of_three_pixels_in_colour_is_found():
    x = torch.full((4, 3, 6, 6), 0.5) + torch.arange(4.0).view(-1, 1, 1, 1) * 1e-5
    y, target = torch.zeros(4, dtype=torch.long), Target(Planted(), 4)
    out = SparseRS(queries=3000).run(target, x, y, 3, 0)
    assert Planted().verdict(out).wrong(y).all() and inside(out, x, "l0", 3).all()
    assert (target.backwards == 0).all() and (target.forwards < 3000).all() and target.forwards.unique().numel() > 2
    assert not Planted().verdict(SparseRS(queries=300).run(Target(Planted(), 4), x, y, 2, 0)).wrong(y).any()


def test_of_images_whose_pixels_may_all_change_the_colours_are_searched():
    class Red(Toy):
        def answer(self, x: Tensor) -> Tensor:
            away = (x - Planted.red.view(3, 1, 1)).abs().flatten(1).sum(1)
            return torch.stack([torch.full_like(away, 0.5), 1 - away], dim=1)

    x, y = torch.full((4, 3, 1, 2), 0.4), torch.zeros(4, dtype=torch.long)
    out = SparseRS(queries=500).run(Target(Red(), 4), x, y, 2, 0)
    assert Red().verdict(out).wrong(y).all()


@pytest.mark.parametrize("classes", [2, 4])
def test_a_linear_model_falls_exactly_where_eps_reaches_the_known_number_of_pixels(classes):
    model, x = Linear(classes), torch.rand(30, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    y = model.verdict(x).labels
    distance = model.distance(x, y, "l0")
    eps = float(distance.median())
    target = Target(model, 30)
    out = SparseRS(queries=600).run(target, x, y, eps, 0)
    falls = model.verdict(out).wrong(y)
    assert inside(out, x, "l0", eps).all()
    assert torch.equal(falls, distance <= eps)
    assert 5 < falls.sum() < 30
    assert (target.forwards[~falls] == 600).all() and SparseRS(queries=600).passes() == (600, 0)


def test_in_colour_a_pixel_counts_once_with_all_its_channels():
    model = Colours()
    x, y, distance = model.images(24)
    eps = float(distance.median())
    out = SparseRS(queries=3000).run(Target(model, 24), x, y, eps, 0)
    assert torch.equal(model.verdict(out).wrong(y), distance <= eps)
    assert inside(out, x, "l0", eps).all() and (flat_norm((out - x)[:, :1], "l0") <= eps).all()
    assert ((out != x).flatten(1).sum(1) > eps).any(), "more values than pixels change"


@given(st.integers(0, 1000), st.integers(1, 42), st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_what_comes_back_changes_eps_pixels_to_corners_of_the_colour_cube(seed, eps, channels):
    class Many(Toy):
        def answer(self, x: Tensor) -> Tensor:
            return torch.stack([x.flatten(1).square().sum(1) + 10, x.flatten(1).sum(1)], dim=1)

    x = torch.rand(2, channels, 7, 6, generator=torch.Generator().manual_seed(seed)).round(decimals=1)
    out = SparseRS(queries=25, share=1.0).run(Target(Many(), 2), x, torch.zeros(2, dtype=torch.long), eps, seed)
    assert inside(out, x, "l0", eps).all()
    assert flat_norm(out - x, "l0").tolist() == [eps, eps]
    assert ((out == x).all(1) | ((out == 0) | (out == 1)).all(1)).all()


def test_the_moved_pixels_are_a_fair_choice_without_repetition():
    uniform = torch.rand(4000, 2, generator=torch.Generator().manual_seed(0))
    order = shuffled(torch.arange(7).expand(4000, 7), 2, 6, uniform)
    assert torch.equal(order.sort(dim=1).values, torch.arange(7).expand(4000, 7))
    assert torch.equal(order[:, [0, 1, 6]], torch.tensor([0, 1, 6]).expand(4000, 3))
    pairs = torch.bincount(order[:, 2] * 7 + order[:, 3], minlength=49).view(7, 7)[2:6, 2:6]
    assert (pairs.diag() == 0).all() and ((pairs + torch.eye(4).long() * 333) - 333).abs().max() < 80


def test_a_beaten_input_leaves_and_a_limit_of_passes_holds():
    model, x = Linear(2), near_the_middle(6)
    y = 1 - model.verdict(x).labels
    target = Target(model, 6)
    SparseRS(queries=50).run(target, x, y, 1, 0)
    assert target.forwards.median() == 1
    limited = Target(model, 6, Attacker(max_passes=5), queries=Queries(x, 1 - y, None, "l0", 1))
    with pytest.raises(BudgetSpent):
        SparseRS(queries=50).run(limited, x, 1 - y, 1, 0)


def test_results_are_the_same_bits_in_any_company():
    model, x = CNN(), torch.rand(19, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y, attack = model.verdict(x).labels, SparseRS(queries=60)
    assert check_company(attack, model, x, y, 4).unique().numel() > 3
    assert attack.run(Target(model, 0), x[:0], y[:0], 4, 11).shape == (0, 1, 8, 8)


def test_the_seed_decides_and_global_generators_stay_as_they_were():
    model, x = CNN(), torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    class ThreePixels(SparseRS):
        def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
            return super().run(target, x, y, 3, seed)

    check_seed(ThreePixels(queries=5), model, x, model.verdict(x).labels)


def test_rejection_is_not_success():
    """Class 1 is accepted where the first pixel is above 0.7: there a pixel's corner is 1."""
    x, y = images_below(6)
    out = SparseRS(queries=100).run(Target(Band(), 6), x, y, 1, 0)  # type: ignore[arg-type]
    assert Band().verdict(out).wrong(y).all() and inside(out, x, "l0", 1).all()


def test_behind_a_wall_of_rejection_nothing_is_claimed_that_is_rejected():
    """The corner 1 of the first pixel is a wrong answer, and rejected where the wall is 0.2 wide or less."""
    x, y = torch.full((4, 1, 2, 2), 0.2), torch.zeros(4, dtype=torch.long)
    for width, falls in ((0.25, True), (0.15, False)):
        target = Target(Walled(width), 4)  # type: ignore[arg-type]
        out = SparseRS(queries=60).run(target, x, y, 2, 0)
        assert Walled(width).verdict(out).wrong(y).tolist() == [falls] * 4
        assert (target.forwards < 60).all() == falls


def test_the_best_point_met_on_any_query_is_kept():
    model, x = Linear(2), near_the_middle(16)
    y = model.verdict(x).labels
    eps = float(model.distance(x, y, "l0").median())
    queries = Queries(x, y, None, "l0", eps)
    out = SparseRS(queries=300).run(Target(model, 16, queries=queries), x, y, eps, 0)
    falls = model.verdict(out).wrong(y)
    assert torch.equal(queries.distance.isfinite(), falls) and falls.any()
