"""AutoAttack: its members in their order, each on what the former left."""

from __future__ import annotations

import pytest
import torch
from rejecting import Band, images_below
from toys import CNN, Coin, Linear, near_the_middle

from manifold_bench.attacks.apgd import APGD
from manifold_bench.attacks.autoattack import AutoAttack
from manifold_bench.attacks.fab import FAB
from manifold_bench.attacks.square import Square
from manifold_bench.attacks.target import Attacker, Target
from manifold_bench.attacks.threat import inside


def test_members_and_budgets_are_the_references():
    standard = AutoAttack(norm="l2", gradient="unrolled").members(classes=10)
    shared = {"norm": "l2", "gradient": "unrolled"}
    assert standard == (
        APGD(steps=100, **shared),
        APGD(loss="dlr", targets=9, steps=100, **shared),
        FAB(targets=9, steps=100, **shared),
        Square(norm="l2", queries=5000, share=0.8, horizon=10_000),
    )
    assert AutoAttack(variant="rand").members(classes=4) == (APGD(eot=20), APGD(loss="dlr", eot=20))
    assert AutoAttack(variant="rand").members(classes=3) == (APGD(eot=20), APGD(loss="margin", eot=20))
    l1 = AutoAttack(norm="l1").members(classes=10)
    assert l1[:2] == (APGD(norm="l1", restarts=5), APGD(norm="l1", loss="dlr", targets=5))
    assert AutoAttack().passes() == (101 + (1 + 909) + (1 + 1800) + 5000 + 3, 100 + 900 + 900)


class Short(AutoAttack):
    """With a hundredth of the steps."""

    def members(self, classes):
        return (
            APGD(norm=self.norm, steps=5),
            APGD(norm=self.norm, loss="dlr" if classes > 3 else "margin", targets=2, steps=5),
            FAB(norm=self.norm, targets=2, steps=5),
            Square(norm=self.norm, queries=20),
        )


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_each_member_gets_what_the_former_left(norm):
    model, x = CNN(), torch.rand(37, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y, eps = model.verdict(x).labels, 0.02 if norm == "linf" else 0.12
    attack, whole = Short(norm=norm), Target(model, 37)
    out = attack.run(whole, x, y, eps, 3)
    falls = model.verdict(out).wrong(y)
    assert inside(out, x, norm, eps).all() and 0 < falls.sum() < 37
    rows, forwards = torch.arange(37), torch.zeros(37).double()
    for number, member in enumerate(attack.members(10)):
        target = Target(model, len(rows))
        alone = member.run(target, x[rows], y[rows], eps, 3)
        forwards[rows] += target.forwards + (number < 3)  # between them the verdict decides who stays
        wrong = model.verdict(alone).wrong(y[rows])
        assert torch.equal(out[rows[wrong]], alone[wrong])
        rows = rows[~wrong]
    assert torch.equal(rows, (~falls).nonzero()[:, 0]) and torch.equal(forwards, whole.forwards)
    unbeaten = whole.forwards[~falls].unique().tolist()
    assert unbeaten == [attack.passes()[0]]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_results_are_the_same_bits_in_any_company(norm):
    model, x = CNN(), torch.rand(19, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y, eps = model.verdict(x).labels, {"linf": 0.02, "l2": 0.12, "l1": 0.5}[norm]
    attack = Short(norm=norm)
    together = attack.run(Target(model, 19), x, y, eps, 11)
    for rows in (
        torch.randperm(19, generator=torch.Generator().manual_seed(5)),
        torch.tensor([18]),
        torch.arange(3, 9),
    ):
        assert torch.equal(attack.run(Target(model, len(rows)), x[rows], y[rows], eps, 11), together[rows])


@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_what_is_robust_is_what_lies_further_away_than_eps(norm, classes):
    model, x = Linear(classes), near_the_middle(40)
    y = model.verdict(x).labels
    distance = model.distance(x, y, norm)
    eps = float(distance.median()) + 1e-4
    out = Short(norm=norm).run(Target(model, 40), x, y, eps, 0)
    clear = (distance / eps - 1).abs() > 0.01
    assert torch.equal(model.verdict(out).wrong(y)[clear], (distance < eps)[clear])


@pytest.mark.parametrize(("eps", "falls"), [(0.2, False), (0.55, True)])
def test_two_classes_and_a_band_of_rejection_between_them(eps, falls):
    x, y = images_below(6)
    out = Short().run(Target(Band(), 6), x, y, eps, 0)  # type: ignore[arg-type]
    assert Band().verdict(out).wrong(y).tolist() == [falls] * 6


def test_each_member_for_two_classes_succeeds_where_it_can():
    """Also alone: APGD on the margin, towards the only wrong class, FAB and Square, each on what is within ε."""
    model, x = Linear(2), near_the_middle(12)
    y = model.verdict(x).labels
    eps = 1.05 * float(model.distance(x, y, "linf").max())
    for member in Short().members(2)[:3]:
        assert model.verdict(member.run(Target(model, 12), x, y, eps, 0)).wrong(y).all(), member


def test_pairings_that_make_no_sense_are_named():
    for classes in (2, 3, 4):
        assert AutoAttack().unsuited(Linear(classes)) is None
    assert "not randomized" in (AutoAttack(variant="rand").unsuited(Linear(4)) or "")
    assert AutoAttack(variant="rand").unsuited(Coin()) is None
    with pytest.raises(ValueError, match="part"):
        AutoAttack(part="classifier")


def test_a_target_of_some_rows_counts_in_the_whole_one_and_has_what_the_attacker_owns():
    images, model = near_the_middle(3), torch.nn.Identity()
    owned = Attacker(
        aims=torch.arange(5), held_out=lambda: (images, torch.zeros(3)), source=lambda: model, max_passes=2
    )
    whole = Target(Linear(2), 5, owned)
    some = whole.only(torch.tensor([4, 1, 3])).only(torch.tensor([2, 0]))
    some.view().answer(near_the_middle(1), torch.tensor([1]))
    assert whole.forwards.tolist() == [0, 0, 0, 0, 1] and some.forwards.tolist() == [0, 1]
    assert some.aims is not None and some.aims.tolist() == [3, 4]
    assert some.source() is model and some.held_out()[0] is images
    some.count(torch.tensor([1]), 1, 1)
    assert whole.spent.tolist() == [False] * 4 + [True] and some.spent.tolist() == [False, True]
    assert whole.forwards.tolist() == [0, 0, 0, 0, 1] and some.forwards.tolist() == [0, 1]
    some.count(torch.tensor([0]), 2, 0)
    assert whole.forwards.tolist() == [0, 0, 0, 2, 1] and some.forwards.tolist() == [2, 1]
