"""ZOO: the closed form of a linear model from scores alone, its choice of pixel values, and ART's ZOO."""

from __future__ import annotations

import math

import pytest
import torch
from linear import check_seed
from rejecting import Band, Walled, images_below
from toys import CNN, Linear, check_bits_in_any_company, check_wrong_inputs_stay, near_the_middle

from manifold_bench.attacks.from_art import ArtAttack
from manifold_bench.attacks.queries import Queries
from manifold_bench.attacks.target import Attacker, BudgetSpent, Target
from manifold_bench.attacks.threat import flat_norm, inside
from manifold_bench.attacks.zoo import ZOO, Choice, importance

INF = math.inf
SHORT = ZOO(queries=400, values=32, searches=1, c=1.0, rate=0.1)


@pytest.mark.parametrize(
    ("classes", "scale", "sampling"), [(2, 1.0, "uniform"), (4, 100.0, "uniform"), (4, 1.0, "importance")]
)
def test_linear_model_distance_is_the_closed_form(classes, scale, sampling):
    model, x = Linear(classes, scale), near_the_middle(24)
    distance = model.distance(x, model.verdict(x).labels, "l2")
    far = distance > distance.median()  # an Adam step is no small share of the other distances
    x, distance = x[far], distance[far]
    y, target = model.verdict(x).labels, Target(model, len(x))
    attack = ZOO(queries=2500, values=8, searches=4, rate=0.003, h=1e-3, sampling=sampling)
    out = attack.run(target, x, y, INF, 0)
    found = flat_norm(out - x, "l2")
    assert model.verdict(out).wrong(y).all() and inside(out, x, "l2", 1.0).all()
    assert (found >= 0.9999 * distance).all() and (found <= 1.05 * distance + 0.01).all()
    assert (found / distance).median() <= 1.1
    assert (target.backwards == 0).all() and (target.forwards <= attack.passes()[0]).all()


def test_an_input_that_is_wrong_already_costs_one_forward_pass_and_stays_as_it_is():
    check_wrong_inputs_stay(SHORT)
    assert SHORT.minimal and SHORT.knowledge == "score"


def test_passes_are_counted_and_never_more_than_passes_says():
    model, x = Linear(2), near_the_middle(5)
    y = model.verdict(x).labels
    for attack, queries in (
        (ZOO(queries=100, values=8, searches=2), 1 + 2 * 2 * 17),
        (ZOO(queries=100, searches=1), 1 + 3 * 33),  # there are 16 values
        (ZOO(queries=30), 1),
    ):
        target = Target(model, 5)
        attack.run(target, x, y, INF, 0)
        assert target.forwards.tolist() == [queries] * 5 and attack.passes() == (attack.queries, 0)


def test_a_limit_of_passes_ends_it_and_keeps_the_best_point_until_then():
    model, x = Linear(2), near_the_middle(5)
    y = model.verdict(x).labels
    queries = Queries(x, y, None, "l2", INF)
    limited = Target(model, 5, Attacker(max_passes=300), queries=queries)
    with pytest.raises(BudgetSpent):
        ZOO(values=8, searches=1, c=1.0).run(limited, x, y, INF, 0)
    assert limited.forwards.tolist() == [300] * 5 and limited.spent.all()
    assert queries.distance.isfinite().any()
    assert model.verdict(queries.point).wrong(y)[queries.distance.isfinite()].all()


def test_results_are_the_same_bits_in_any_company():
    check_bits_in_any_company(SHORT)


def test_the_seed_decides_and_global_generators_stay_as_they_were():
    model, x = CNN(), torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    check_seed(SHORT, model, x, model.verdict(x).labels)


def test_rejection_is_not_success():
    x, y = images_below(6)
    out = ZOO(queries=2000, searches=3, c=10.0).run(Target(Band(), 6), x, y, INF, 0)  # type: ignore[arg-type]
    assert Band().verdict(out).wrong(y).all()
    assert (flat_norm(out - x, "l2") <= 1.1 * (0.7 - x[:, 0, 0, 0]) + 0.05).all()


@pytest.mark.parametrize("width", [0.15, 0.05])
def test_a_wall_between_two_classes_is_crossed(width):
    defense, x, y = Walled(width), torch.full((2, 1, 2, 2), 0.2), torch.zeros(2, dtype=torch.long)
    out = ZOO(queries=900, searches=1, c=10.0).run(Target(defense, 2), x, y, INF, 0)  # type: ignore[arg-type]
    assert defense.verdict(out).wrong(y).all()


def test_values_are_chosen_without_repetition_and_in_proportion_to_their_importance():
    x = torch.rand(1, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    choice, rows = Choice(x, 0), torch.tensor([0])
    often = torch.tensor([[1.0, 2.0, 3.0, 4.0, 0.0, 0.0]])
    drawn = torch.cat([choice.of(rows, often, 3) for _ in range(4000)])
    assert (drawn.sort(dim=1).values.diff(dim=1) > 0).all() and drawn.max() <= 3
    first = torch.bincount(drawn[:, 0], minlength=6) / 4000
    assert (first - often[0] / 10).abs().max() < 0.03


def test_what_changed_and_its_neighbours_are_the_most_important_values():
    delta = torch.zeros(1, 1, 5, 5)
    assert (importance(delta, True) == importance(delta, True)[0, 0]).all(), "before the first step all are equal"
    delta[0, 0, 1, 1] = -0.9
    often = importance(delta, True).view(5, 5)
    assert (often[:3, :3] == often[0, 0]).all() and (often[3:] == often[4, 4]).all() and (often[:3, 3:] > 0).all()
    assert often[0, 0] == pytest.approx(0.9 + 0.9 * 9 / 25) and often[4, 4] == pytest.approx(0.9 * 9 / 25)
    assert (importance(delta, False) == 1).all()


@pytest.mark.slow
def test_at_as_many_queries_no_fewer_fall_than_by_art(digits, digits_cnn):
    x, y = digits.test.images[:8], digits.test.labels[:8]
    theirs = {"max_iter": 10, "nb_parallel": 64, "initial_const": 1.0, "learning_rate": 0.1, "abort_early": False}
    theirs |= {"use_resize": False, "use_importance": False}
    ours, art = Target(digits_cnn, 8), Target(digits_cnn, 8)
    found = [
        ZOO(queries=1300, searches=1, c=1.0, rate=0.1).run(ours, x, y, INF, 0),
        ArtAttack(attack="ZooAttack", norm="l2", parameters=theirs).run(art, x, y, INF, 0),
    ]
    a, b = (flat_norm(one - x, "l2").masked_fill(~digits_cnn.verdict(one).wrong(y), INF) for one in found)
    assert ours.forwards.mean() <= 1.02 * art.forwards.mean()
    assert b.isfinite().sum() > 3 and a.isfinite().sum() >= b.isfinite().sum() and a.median() <= b.median()
