"""FAB, DeepFool, Carlini–Wagner and EAD: compared with closed forms and with other libraries."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linear import interior_inputs
from rejecting import Band, TwoDetectors, Walled, images_below
from torch import Tensor
from toys import Linear, Toy, boxed_l1, check_bits_in_any_company, check_wrong_inputs_stay, near_the_middle

from manifold_bench.attacks.base import Attack
from manifold_bench.attacks.carlini_wagner import CarliniWagner
from manifold_bench.attacks.deepfool import DeepFool
from manifold_bench.attacks.ead import EAD
from manifold_bench.attacks.fab import FAB, to_plane
from manifold_bench.attacks.from_art import ArtAttack
from manifold_bench.attacks.from_foolbox import FoolboxAttack
from manifold_bench.attacks.queries import Queries
from manifold_bench.attacks.target import Attacker, BudgetSpent, Target
from manifold_bench.attacks.threat import flat_norm, inside

CW = CarliniWagner(searches=5, steps=150, rate=0.01)
FAR = CarliniWagner(searches=4, steps=200, rate=0.02, c=10.0)
BEYOND: dict[type[Attack], Attack] = {CarliniWagner: FAR, EAD: EAD(searches=4, steps=150, c=0.1)}
"""The settings with which an attack crosses what is rejected between two classes."""
ATTACKS = {
    "fab-linf": FAB(steps=20),
    "fab-l2": FAB(norm="l2", steps=20),
    "fab-l1": FAB(norm="l1", steps=20),
    "deepfool-linf": DeepFool(),
    "deepfool-l2": DeepFool(norm="l2"),
    "carlini-wagner": CW,
    "ead": EAD(steps=400),
}
SLACK = {DeepFool: (0.025, 0.0), CarliniWagner: (0.01, 0.02), EAD: (0.02, 0.002), FAB: (0.01, 0.0)}
"""How much farther than the closed form an attack may end, as a share of the distance and beyond it."""
every = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
INF = float("inf")


@every
@pytest.mark.parametrize("classes", [2, 4])
def test_linear_model_distance_is_the_closed_form(attack, classes):
    model, x = Linear(classes), near_the_middle(8)
    y = model.verdict(x).labels
    distance = model.distance(x, y, attack.norm)
    out = attack.run(Target(model, 8), x, y, INF, 0)
    found = flat_norm(out - x, attack.norm)
    assert model.verdict(out).wrong(y).all() and inside(out, x, attack.norm, 1.0).all()
    assert (found >= 0.9999 * distance).all()
    share, beyond = SLACK[type(attack)]
    assert (found <= (1 + share) * distance + beyond).all()
    assert (found / distance).median() <= 1.04
    assert attack.minimal


def test_ead_without_acceleration_finds_the_closed_form_too():
    model, x = Linear(4), near_the_middle(8)
    y = model.verdict(x).labels
    out = EAD(steps=400, accelerated=False).run(Target(model, 8), x, y, INF, 0)
    assert model.verdict(out).wrong(y).all()
    assert (flat_norm(out - x, "l1") / model.distance(x, y, "l1")).median() <= 1.02


@every
def test_three_classes_whose_boundaries_meet(attack, linear_model):
    if attack.norm != "l2":
        pytest.skip("the closed form of this model is for L2")
    x, y, distance = interior_inputs(linear_model, 12)
    out = attack.run(Target(linear_model, 12), x, y, INF, 0)
    assert linear_model.verdict(out).wrong(y).all()
    assert (flat_norm(out - x, "l2") / distance).median() <= 1.025


@every
def test_an_input_that_is_wrong_already_costs_one_forward_pass_and_stays_as_it_is(attack):
    check_wrong_inputs_stay(attack)


def test_every_pass_is_counted():
    model, x = Linear(4), near_the_middle(5)
    y = model.verdict(x).labels
    for attack, passes in (
        (FAB(steps=7, targets=2), (1 + 2 * 14, 14)),
        (FAB(steps=7, targets=9), (1 + 2 * 21, 21)),  # there are three wrong classes
        (CarliniWagner(searches=2, steps=20, early=False), (41, 40)),
        (EAD(searches=2, steps=20, early=False), (41, 40)),
        (DeepFool(norm="l2"), (2, 6)),  # a linear boundary is crossed at once; three gradients each time it looks
    ):
        target = Target(model, 5)
        attack.run(target, x, y, INF, 0)
        assert (target.forwards.unique().tolist(), target.backwards.unique().tolist()) == ([passes[0]], [passes[1]])
    assert FAB(steps=7, targets=2).passes() == (29, 14)
    assert CarliniWagner(searches=2, steps=20).passes() == (41, 40)
    assert DeepFool(steps=50).passes() == (50, 450)


def test_within_an_eps_fab_leaves_as_soon_as_it_is_there():
    model, x = Linear(2), near_the_middle(24)
    y = model.verdict(x).labels
    distance = model.distance(x, y, "linf")
    eps = float(distance.median()) + 1e-4
    target = Target(model, 24)
    out = FAB(steps=20).run(target, x, y, eps, 0)
    falls = model.verdict(out).wrong(y)
    assert inside(out, x, "linf", eps).all() and torch.equal(out[~falls], x[~falls])
    assert torch.equal(falls[(distance / eps - 1).abs() > 0.01], (distance < eps)[(distance / eps - 1).abs() > 0.01])
    assert (target.forwards[falls] < 41).all() and (target.forwards[~falls] == 41).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_step_to_a_plane_is_the_smallest_within_the_box(norm, data):
    """Against bisection on the multiplier; where the plane is out of reach every pixel is at its end."""
    random = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    x = torch.rand(3, 1, 2, 3, generator=random).double()
    slope = torch.randn(3, 1, 2, 3, generator=random).double()
    slope = slope.masked_fill(torch.rand(slope.shape, generator=random) < data.draw(st.floats(0, 0.5)), 0.0)
    value = data.draw(st.floats(0.01, 3)) * torch.tensor([1.0, -1.0, 1.0]).double()
    step = to_plane(x, slope, value, norm)
    assert (x + step >= -1e-9).all() and (x + step <= 1 + 1e-9).all()
    down = -(slope * value.view(-1, 1, 1, 1)).sign()
    pace = torch.ones_like(slope) if norm == "linf" else slope.abs()
    room = torch.where(down > 0, 1 - x, x) * (slope != 0)

    def achieved(multiplier: Tensor) -> Tensor:
        return (slope.abs() * torch.minimum(multiplier.view(-1, 1, 1, 1) * pace, room)).flatten(1).sum(1)

    low, high = torch.zeros(3).double(), torch.full((3,), 1e6).double()
    reachable = achieved(high) >= value.abs()
    for _ in range(120):
        middle = (low + high) / 2
        low, high = (
            torch.where(c, middle, k)
            for c, k in ((achieved(middle) < value.abs(), low), (achieved(middle) >= value.abs(), high))
        )
    expected = down * torch.minimum(high.view(-1, 1, 1, 1) * pace, room)
    assert torch.allclose(step[reachable], expected[reachable], atol=1e-6)
    assert torch.allclose(step[~reachable].abs(), room[~reachable], atol=1e-9)


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_step_to_a_plane_in_l1_is_the_smallest_within_the_box(data):
    """Against the closed form, which spends the largest slopes first."""
    random = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    x, slope = torch.rand(1, 1, 2, 3, generator=random), torch.randn(1, 1, 2, 3, generator=random)
    value = data.draw(st.floats(0.01, 3))
    step = to_plane(x, slope, torch.tensor([value]), "l1")
    assert (x + step >= -1e-6).all() and (x + step <= 1 + 1e-6).all()
    least = boxed_l1(torch.tensor(value), slope.flatten(), x)
    if least < INF:
        assert float((slope * step).sum()) == pytest.approx(-value, abs=1e-5)
        assert float(step.abs().sum()) == pytest.approx(least, abs=1e-5)
    else:
        assert float((slope * step).sum()) > -value


def test_a_boundary_without_slope_is_nowhere():
    class Flat(Toy):
        num_classes = 3

        def answer(self, x: Tensor) -> Tensor:
            top = x.flatten(1).sum(1)
            return torch.stack([0 * top + 1, 0 * top + 0.9, top - 2.2], dim=1)

    x = torch.full((2, 1, 2, 2), 0.5) + torch.tensor([0.0, 0.01]).view(-1, 1, 1, 1)
    y = torch.zeros(2, dtype=torch.long)
    for norm in ("linf", "l2"):
        out = DeepFool(norm=norm).run(Target(Flat(), 2), x, y, INF, 0)
        assert out.isfinite().all() and Flat().verdict(out).labels.tolist() == [2, 2]
    out = FAB(steps=5).run(Target(Flat(), 2), x, y, INF, 0)
    assert Flat().verdict(out).labels.tolist() == [2, 2]


@every
def test_rejection_is_not_success(attack):
    """Beyond the band, and no further than it takes."""
    x, y = images_below(6)
    attack = BEYOND.get(type(attack), attack)
    out = attack.run(Target(Band(), 6), x, y, INF, 0)  # type: ignore[arg-type]
    assert Band().verdict(out).wrong(y).all()
    assert (flat_norm(out - x, attack.norm) <= 1.1 * (0.7 - x[:, 0, 0, 0]) + 0.02).all()


@every
@pytest.mark.parametrize("width", [0.15, 0.02])
def test_a_wall_between_two_classes_is_crossed(attack, width):
    defense, x, y = Walled(width), torch.full((2, 1, 2, 2), 0.2), torch.zeros(2, dtype=torch.long)
    attack = BEYOND.get(type(attack), attack)
    out = attack.run(Target(defense, 2), x, y, INF, 0)  # type: ignore[arg-type]
    assert defense.verdict(out).wrong(y).all()
    assert (flat_norm(out - x, attack.norm) >= 0.6 - width - 1e-5).all()


@pytest.mark.parametrize("attack", [FAB(norm="l2", steps=40), FAR], ids=["fab", "cw"])
def test_the_way_past_two_detectors_is_short(attack):
    defense = TwoDetectors()
    x, y = defense.images(10)
    out = attack.run(Target(defense, 10), x, y, INF, 0)  # type: ignore[arg-type]
    falls, ratio = defense.verdict(out).wrong(y), flat_norm(out - x, "l2") / defense.distance(x, "l2")
    assert falls.float().mean() > 0.8 and (ratio[falls] >= 0.999).all() and ratio[falls].median() < 1.2


def distances(attack, defense, x: Tensor, y: Tensor) -> Tensor:
    """Of what each input's perturbation is worth: ∞ where it isn't wrong."""
    out = attack.run(Target(defense, len(x)), x, y, INF, 0)
    assert ((out >= 0) & (out <= 1)).all()
    return flat_norm(out - x, attack.norm).masked_fill(~defense.verdict(out).wrong(y), INF)


ART_DEEPFOOL = ArtAttack(attack="DeepFool", norm="l2", parameters={"epsilon": 0.02, "max_iter": 30})


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (DeepFool(norm="l2"), FoolboxAttack(attack="L2DeepFoolAttack", norm="l2")),
        (DeepFool(), FoolboxAttack(attack="LinfDeepFoolAttack")),
        (DeepFool(norm="l2"), ART_DEEPFOOL),
        (FAB(norm="l2", steps=10), ART_DEEPFOOL),
        (
            CarliniWagner(searches=4, steps=60, rate=0.05, c=0.1),
            FoolboxAttack(
                attack="L2CarliniWagnerAttack",
                norm="l2",
                parameters={"binary_search_steps": 4, "steps": 60, "stepsize": 0.05, "initial_const": 0.1},
            ),
        ),
        (
            EAD(steps=60),
            FoolboxAttack(attack="EADAttack", norm="l1", parameters={"steps": 60, "decision_rule": "L1"}),
        ),
        pytest.param(
            EAD(steps=100),  # a tenth of the passes: in each of its 60 steps ART's asks for the gradient of every class
            ArtAttack(attack="ElasticNet", norm="l1", parameters={"max_iter": 60, "decision_rule": "L1", "beta": 0.01}),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["deepfool-l2", "deepfool-linf", "deepfool-art", "fab", "carlini-wagner", "ead", "ead-art"],
)
def test_what_others_find_is_no_nearer(ours, theirs, digits, digits_cnn):
    x, y = digits.test.images[:24], digits.test.labels[:24]
    a, b = distances(ours, digits_cnn, x, y), distances(theirs, digits_cnn, x, y)
    assert a.isfinite().sum() >= b.isfinite().sum() - 1
    assert a.median() <= 1.03 * b.median()


@pytest.mark.parametrize("attack", [CW, EAD(steps=100, c=1.0)], ids=["carlini-wagner", "ead"])
def test_a_limit_of_passes_ends_it_and_keeps_the_best_point_until_then(attack):
    model, x = Linear(4), near_the_middle(6)
    y = model.verdict(x).labels
    queries = Queries(x, y, None, attack.norm, INF)
    limited = Target(model, 6, Attacker(max_passes=150), queries=queries)
    with pytest.raises(BudgetSpent):
        attack.run(limited, x, y, INF, 0)
    assert limited.spent.all() and (limited.forwards + limited.backwards <= 150).all()
    assert (limited.forwards + limited.backwards >= 148).all()
    found = queries.distance
    assert found.isfinite().all() and model.verdict(queries.point).wrong(y).all()
    whole = flat_norm(attack.run(Target(model, 6), x, y, INF, 0) - x, attack.norm)
    assert (found >= 0.9999 * whole).all()


def test_leaving_early_loses_nothing():
    model, x = Linear(4), near_the_middle(8)
    y = model.verdict(x).labels
    targets = Target(model, 8), Target(model, 8)
    early, whole = (
        flat_norm(replace(CW, early=e, searches=4).run(t, x, y, INF, 0) - x, "l2")
        for e, t in zip((True, False), targets, strict=True)
    )
    assert targets[0].forwards.sum() < 0.8 * targets[1].forwards.sum()
    assert (early <= 1.01 * whole + 3e-3).all()


def test_what_has_succeeded_stays_where_steps_become_smaller(digits, digits_cnn):
    x, y = digits.test.images[:24], digits.test.labels[:24]
    targets = Target(digits_cnn, 24), Target(digits_cnn, 24)
    early, whole = (
        flat_norm(EAD(steps=60, early=e).run(t, x, y, INF, 0) - x, "l1")
        for e, t in zip((True, False), targets, strict=True)
    )
    assert targets[0].forwards.sum() < 0.8 * targets[1].forwards.sum()
    assert (early <= 1.01 * whole + 3e-3).all()


def test_confidence_goes_further():
    model, x = Linear(2), near_the_middle(6)
    y = model.verdict(x).labels
    for confidence in (0.05, 0.5):
        out = replace(CW, confidence=confidence, searches=3).run(Target(model, 6), x, y, INF, 0)
        logits = model(out)
        lead = logits.gather(1, 1 - y[:, None]) - logits.gather(1, y[:, None])
        assert (lead >= confidence).all() and (lead < confidence + 0.2).all()


@pytest.mark.parametrize(
    "attack",
    [
        FAB(steps=4, targets=3),
        FAB(norm="l2", steps=4, targets=3),
        FAB(norm="l1", steps=4, targets=3),
        DeepFool(norm="l2"),
        DeepFool(),
        CarliniWagner(searches=2, steps=30, rate=0.05, c=1.0),
        EAD(searches=2, steps=30, c=1.0),
    ],
    ids=lambda a: f"{type(a).__name__}-{a.norm}",
)
def test_results_are_the_same_bits_in_any_company(attack):
    check_bits_in_any_company(attack)
