"""Square Attack: squares that fall where they may, queries that are counted, images of one's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rejecting import Band, Walled, images_below
from torch import Tensor
from toys import CNN, Linear, Toy, near_the_middle

from manifold_bench.attacks.from_art import ArtAttack
from manifold_bench.attacks.square import Draws as Drawn
from manifold_bench.attacks.square import Square, bump, square_bump, square_linf, tiles
from manifold_bench.attacks.target import Attacker, BudgetSpent, Target
from manifold_bench.attacks.threat import flat_norm, inside


class Planted(Toy):
    """Class 1 only where the perturbation of a grey image agrees with a pattern of blocks: a cosine of .8, .5 in L2."""

    def __init__(self, norm: str, eps: float) -> None:
        super().__init__()
        pattern = torch.ones(8, 8)
        pattern[:4, 4:], pattern[4:, :4] = -1, -1
        self.pattern = pattern * (eps if norm == "linf" else eps / 8)
        self.enough = (0.8 if norm == "linf" else 0.5) * float(self.pattern.square().sum())

    def answer(self, x: Tensor) -> Tensor:
        agreement = ((x - 0.5) * self.pattern).flatten(1).sum(1)
        return torch.stack([torch.full_like(agreement, self.enough), agreement], dim=1)


def grey(n: int) -> tuple[Tensor, Tensor]:
    """n nearly grey images (each its own random numbers), all of class 0."""
    x = torch.full((n, 1, 8, 8), 0.5) + torch.arange(float(n)).view(-1, 1, 1, 1) * 1e-5
    return x, torch.zeros(n, dtype=torch.long)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.5)])
def test_a_planted_example_is_found_from_scores_alone(norm, eps):
    model, (x, y) = Planted(norm, eps), grey(6)
    target = Target(model, 6)
    out = Square(norm=norm, queries=1500).run(target, x, y, eps, 0)
    assert model.verdict(out).wrong(y).all() and inside(out, x, norm, eps).all()
    assert (target.backwards == 0).all() and (target.forwards < 1500).all() and target.forwards.unique().numel() > 3
    assert Square().knowledge == "score" and not Square().minimal


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_what_lies_further_away_than_eps_is_robust_and_costs_every_query(norm):
    model, x = Linear(2), near_the_middle(12)
    y = model.verdict(x).labels
    distance = model.distance(x, y, norm)
    eps = float(distance.median()) + 1e-4
    target = Target(model, 12)
    out = Square(norm=norm, queries=300).run(target, x, y, eps, 0)
    falls = model.verdict(out).wrong(y)
    assert inside(out, x, norm, eps).all()
    assert not (falls & (distance > eps)).any()
    assert falls[distance < 0.8 * eps].all()
    assert (target.forwards[~falls] == 300).all() and Square(queries=300).passes() == (300, 0)


@given(st.integers(0, 1000), st.floats(1e-3, 1.5), st.sampled_from(["linf", "l2"]), st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_what_comes_back_is_within_the_ball_and_the_box(seed, eps, norm, channels):
    class Many(Toy):
        def answer(self, x: Tensor) -> Tensor:
            return torch.stack([x.flatten(1).square().sum(1) + 10, x.flatten(1).sum(1)], dim=1)

    x = torch.rand(2, channels, 7, 6, generator=torch.Generator().manual_seed(seed))
    out = Square(norm=norm, queries=25).run(Target(Many(), 2), x, torch.zeros(2, dtype=torch.long), eps, seed)
    assert inside(out, x, norm, eps).all()


def test_a_square_is_one_square_at_the_corners_of_the_ball_and_always_a_change():
    x = 0.3 + 0.4 * torch.rand(40, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    draws = Drawn(x, 0, numbers=7)
    best, rows = x + 0.1, torch.arange(40)
    new = square_linf([x - 0.1, x + 0.1], best, 3, draws.of(rows, 1))
    changed = new != best
    assert ((new - x).abs() - 0.1).abs().max() < 1e-6
    assert changed.any(1).flatten(1).any(1).all()
    for image in changed.any(1):
        down, across = image.any(1).nonzero()[:, 0], image.any(0).nonzero()[:, 0]
        assert len(down) == len(across) == 3 and image.sum() == 9 and down[-1] - down[0] == across[-1] - across[0] == 2
    places = {tuple(image.nonzero()[0].tolist()) for image in changed.any(1)}
    assert len(places) > 15  # a place of its own for each


def test_a_bump_is_eq_2_by_hand():
    inner = torch.tensor([[1.25, 1.25], [1.25, 1.25]])
    assert bump(1, 2).tolist() == [[-1]]
    three = torch.tensor([[0.25, 1.25, 0.25], [-0.25, -1.25, -0.25], [-0.25, -0.25, -0.25]])
    assert bump(3, 2).shape == (3, 3) and bump(3, 2).norm() == pytest.approx(1)
    assert (bump(3, 2)[0] > 0).all() and (bump(3, 2)[1:] < 0).all()
    assert bump(3, 2).abs().argmax() in (1, 7) and torch.allclose(
        bump(3, 2)[0] / bump(3, 2)[0, 0], three[0] / three[0, 0]
    )
    assert (bump(6, 2)[:3] > 0).all() and (bump(6, 2)[3:] < 0).all() and inner.norm() > 0


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_the_norm_moves_and_is_used_whole(norm):
    x = torch.full((30, 1, 9, 9), 0.5)
    x += torch.arange(30.0).view(-1, 1, 1, 1) * 1e-5
    draws = Drawn(x, 0, numbers=6)
    start = tiles(x, norm, 0.7, draws)
    assert torch.allclose(flat_norm(start - x, norm), torch.tensor(0.7), atol=1e-5)
    moved = square_bump([x], start, 3, draws.of(torch.arange(30), 1), norm=norm, eps=0.7)
    assert torch.allclose(flat_norm(moved - x, norm), torch.tensor(0.7), atol=1e-5)
    changed = (moved != start).flatten(1).sum(1)
    assert (changed <= 18).all() and (changed >= (9 if norm == "l2" else 1)).all()


@pytest.mark.parametrize(
    ("horizon", "queries", "at", "side"),
    [
        (None, 10_000, 10, 25),
        (None, 10_000, 11, 18),
        (None, 10_000, 60, 13),
        (None, 10_000, 9000, 1),
        (None, 1000, 1, 25),
        (None, 1000, 2, 18),
        (10_000, 5000, 4999, 2),
    ],
)
def test_squares_shrink_by_the_papers_schedule(horizon, queries, at, side):
    assert Square(queries=queries, horizon=horizon)._side(at, torch.zeros(1, 1, 28, 28)) == side


def test_sides_in_l2_are_odd_and_at_least_three():
    sides = {Square(norm="l2")._side(query, torch.zeros(1, 1, 28, 28)) for query in range(5000)}
    assert min(sides) == 3 and all(side % 2 for side in sides)


@pytest.mark.parametrize("width", [0.15, 0.02])
def test_a_wall_of_rejection_is_crossed(width):
    """The score falls on the way to the other class; what is wrong is kept however clearly it is rejected."""
    defense, x, y = Walled(width), torch.full((4, 1, 2, 2), 0.2), torch.zeros(4, dtype=torch.long)
    out = Square(queries=200).run(Target(defense, 4), x, y, 0.6, 0)  # type: ignore[arg-type]
    assert defense.verdict(out).wrong(y).all()


def test_rejection_is_not_success():
    x, y = images_below(6)
    for eps, falls in ((0.2, False), (0.55, True)):
        target = Target(Band(), 6)  # type: ignore[arg-type]
        out = Square(queries=40).run(target, x, y, eps, 0)
        assert Band().verdict(out).wrong(y).tolist() == [falls] * 6
        assert (target.forwards == 40).all() == (not falls)


def test_a_budget_is_kept_to_and_another_seed_looks_elsewhere():
    model, x = CNN(), torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = model.verdict(x).labels
    with pytest.raises(BudgetSpent):
        Square(queries=9).run(Target(model, 3, Attacker(max_passes=8)), x, y, 1e-4, 0)
    outs = [Square(queries=9).run(Target(model, 3), x, y, 1e-4, seed) for seed in (0, 1)]
    assert not torch.equal(*outs)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_is_no_weaker_than_arts(norm, digits, digits_cnn):
    x, y = digits.test.images[:64], digits.test.labels[:64]
    eps = 0.15 if norm == "linf" else 0.8
    theirs = ArtAttack(attack="SquareAttack", norm=norm, parameters={"max_iter": 100, "batch_size": 64})
    ours = Square(norm=norm, queries=100)
    wrong = [digits_cnn.verdict(a.run(Target(digits_cnn, 64), x, y, eps, 0)).wrong(y) for a in (ours, theirs)]
    assert 10 < wrong[0].sum() < 64
    assert wrong[0].sum() >= wrong[1].sum() - 4
