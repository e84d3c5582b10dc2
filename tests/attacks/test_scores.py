"""SPSA and SimBA: exact where the distance is known, from scores alone, and no weaker than others'."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from linear import check_company, check_seed
from rejecting import Band, Walled, images_below
from toys import CNN, Linear, near_the_middle

from manifold_bench.attacks.from_art import ArtAttack
from manifold_bench.attacks.gradient import PGD
from manifold_bench.attacks.queries import Queries
from manifold_bench.attacks.simba import SimBA
from manifold_bench.attacks.spsa import SPSA
from manifold_bench.attacks.target import Attacker, BudgetSpent, Target
from manifold_bench.attacks.threat import inside

ATTACKS = {
    "spsa-linf": SPSA(steps=40, pairs=8, rate=0.03),
    "spsa-l2": SPSA(norm="l2", steps=40, pairs=8, rate=0.03),
    "simba": SimBA(trials=300, size=0.05),
}
every = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
short = pytest.mark.parametrize(
    "attack",
    [SPSA(steps=3, pairs=4), SPSA(norm="l2", steps=3, pairs=4, rate=0.03), SimBA(trials=30)],
    ids=ATTACKS.keys(),
)


@every
@pytest.mark.parametrize("classes", [2, 3])
def test_a_linear_model_falls_exactly_where_eps_exceeds_the_known_distance(attack, classes):
    model, x = Linear(classes), near_the_middle(40)
    y = model.verdict(x).labels
    distance = model.distance(x, y, attack.norm)
    eps = float(distance.median()) + 1e-4
    attack = replace(attack, size=eps / 10) if isinstance(attack, SimBA) else attack
    target = Target(model, 40)
    out = attack.run(target, x, y, eps, 0)
    falls = model.verdict(out).wrong(y)
    assert inside(out, x, attack.norm, eps).all()
    assert not falls[distance > 1.0001 * eps].any() and falls[distance < 0.9 * eps].all()
    assert 5 < falls.sum() < 35 and (target.backwards == 0).all()
    assert attack.knowledge == "score" and not attack.minimal


@short
def test_an_unbeaten_input_costs_what_passes_says_and_a_beaten_one_leaves(attack):
    model, x = Linear(2), near_the_middle(6)
    y = model.verdict(x).labels
    target = Target(model, 6)
    attack.run(target, x, y, 1e-7, 0)
    most = attack.passes()[0]
    assert (target.forwards == most).all() or (isinstance(attack, SimBA) and (target.forwards <= most).all())
    beaten = Target(model, 6)
    assert torch.equal(attack.run(beaten, x, 1 - y, 0.1, 0), x)
    assert beaten.forwards.tolist() == [1] * 6
    with pytest.raises(BudgetSpent):
        attack.run(Target(model, 6, Attacker(max_passes=5)), x, y, 1e-7, 0)


@short
def test_results_are_the_same_bits_in_any_company(attack):
    model, x = CNN(), torch.rand(19, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y, eps = model.verdict(x).labels, 0.02 if attack.norm == "linf" else 0.12
    check_company(attack, model, x, y, eps)


@short
def test_the_seed_decides_and_global_generators_stay_as_they_were(attack):
    model, x = CNN(), torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    check_seed(attack, model, x, model.verdict(x).labels)


@every
def test_rejection_is_not_success(attack):
    x, y = images_below(6)
    for eps, falls in ((0.2, False), (0.55, True)):
        out = attack.run(Target(Band(), 6), x, y, eps, 0)  # type: ignore[arg-type]
        assert Band().verdict(out).wrong(y).tolist() == [falls] * 6


@every
@pytest.mark.parametrize("width", [0.15, 0.05])
def test_a_wall_of_rejection_is_crossed(attack, width):
    defense, x, y = Walled(width), torch.full((4, 1, 2, 2), 0.2), torch.zeros(4, dtype=torch.long)
    out = attack.run(Target(defense, 4), x, y, 0.7, 0)  # type: ignore[arg-type]
    assert defense.verdict(out).wrong(y).all()


@every
def test_the_best_point_met_on_any_query_is_kept(attack):
    """A recorder of queries holds a valid success for every input that the attack reports as beaten, and no other."""
    model, x = Linear(2), near_the_middle(16)
    y = model.verdict(x).labels
    eps = float(model.distance(x, y, attack.norm).median()) + 1e-4
    queries = Queries(x, y, None, attack.norm, eps)
    out = attack.run(Target(model, 16, queries=queries), x, y, eps, 0)
    falls = model.verdict(out).wrong(y)
    assert queries.distance[falls].isfinite().all()
    assert model.verdict(queries.point).wrong(y)[queries.distance.isfinite()].all()


def test_simba_is_no_weaker_than_arts(digits, digits_cnn):
    x, y = digits.test.images[:32], digits.test.labels[:32]
    theirs = ArtAttack(attack="SimBA", norm="l2", parameters={"max_iter": 100, "epsilon": 0.2})
    found = theirs.run(Target(digits_cnn, 32), x, y, 0.0, 0)
    reached = ((found - x).flatten(1).norm(dim=1) <= 0.8) & digits_cnn.verdict(found).wrong(y)
    ours = SimBA(trials=100).run(Target(digits_cnn, 32), x, y, 0.8, 0)
    assert 3 < digits_cnn.verdict(ours).wrong(y).sum() < 32
    assert digits_cnn.verdict(ours).wrong(y).sum() >= reached.sum() - 2


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.6)])
def test_spsa_finds_most_of_what_gradients_find(norm, eps, digits, digits_cnn):
    """No library here has SPSA; PGD with true gradients of the same loss is the bound."""
    x, y = digits.test.images[:32], digits.test.labels[:32]
    attacks = SPSA(norm=norm), PGD(norm=norm, loss="margin")
    spsa, pgd = (digits_cnn.verdict(a.run(Target(digits_cnn, 32), x, y, eps, 0)).wrong(y).sum() for a in attacks)
    assert 3 < pgd < 32 and spsa >= 0.8 * pgd
