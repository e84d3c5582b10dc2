"""Auto-PGD: its algorithm written out, exact on linear models, past walls of rejection."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rejecting import Band, TwoDetectors, Walled, images_below
from torch import Tensor
from torch.nn import functional as F
from toys import CNN, Coin, Linear, Pocket, Toy, beaten, near_the_middle

from manifold_bench.attacks.apgd import APGD
from manifold_bench.attacks.ascent import SteadyAscent
from manifold_bench.attacks.from_art import ArtAttack
from manifold_bench.attacks.target import Target
from manifold_bench.attacks.threat import inside, random_in_ball


def test_checkpoints_are_the_papers():
    assert sorted(SteadyAscent.checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert sorted(SteadyAscent.checkpoints(50)) == [11, 21, 29, 35, 40, 44, 47, 50]
    assert sorted(SteadyAscent.checkpoints(1)) == [1]


def written_out(model: Toy, x: Tensor, y: Tensor, start: Tensor, eps: float, steps: int, norm: str) -> Tensor:
    """Algorithm 1 of Croce & Hein 2020 for one image, as printed in the paper: the best point by cross-entropy."""

    def f(point: Tensor) -> float:
        return F.cross_entropy(model(point).double(), y).item()

    def stepped(point: Tensor, size: float) -> Tensor:
        point = point.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(point).double(), y), point)
        direction = gradient.sign() if norm == "linf" else gradient / gradient.norm()
        return projected(point.detach() + size * direction)

    def projected(point: Tensor) -> Tensor:
        delta = point - x
        delta = delta.clamp(-eps, eps) if norm == "linf" else delta * min(1.0, eps / delta.norm().item())
        return (x + delta).clamp(0, 1)

    due, w = [math.ceil(steps * p - 1e-9) for p in (0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99)], [0]
    size, points, values = 2 * eps, [start], [f(start)]
    best, best_value = start, values[0]
    size_there, best_there = None, values[0]
    for k in range(steps):
        z = stepped(points[-1], size)
        new = z if k == 0 else projected(points[-1] + 0.75 * (z - points[-1]) + 0.25 * (points[-1] - points[-2]))
        seen = f(new)
        if seen > best_value:
            best, best_value = new, seen
        values.append(seen)
        if k + 1 in due:
            rises = sum(values[i + 1] > values[i] for i in range(w[-1], k + 1))
            few = rises < 0.75 * (k + 1 - w[-1])
            same = size_there is not None and size == size_there and best_value == best_there
            size_there, best_there = size, best_value
            w.append(k + 1)
            if few or same:
                size, new, values[-1] = size / 2, best, values[-1]
        points.append(new)
    return best


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_is_algorithm_1(norm):
    """Never beaten, so that no input leaves; within a ball so wide that steps overshoot and checkpoints matter."""
    model, steps = CNN(), 40
    x = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    eps = 0.004 if norm == "linf" else 0.02
    y = model(x).argmax(1)
    starts = random_in_ball(x, norm, eps, 5)
    target = Target(model, 16)
    out = APGD(norm=norm, steps=steps).run(target, x, y, eps, 5)
    stayed = ~model.verdict(out).wrong(y)
    assert stayed.sum() >= 4 and target.forwards[stayed].tolist() == [steps + 1] * int(stayed.sum())
    for i in stayed.nonzero()[:4, 0].tolist():
        expected = written_out(model, x[i : i + 1], y[i : i + 1], starts[i : i + 1], eps, steps, norm)
        ours, theirs = (F.cross_entropy(model(point), y[i : i + 1]).item() for point in (out[i : i + 1], expected))
        assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize(
    "attack", [{}, {"loss": "dlr"}, {"loss": "dlr", "targets": 3}], ids=["ce", "dlr", "dlr-targeted"]
)
def test_what_is_robust_is_what_lies_further_away_than_eps(attack, norm):
    model, x = Linear(4 if attack else 2), near_the_middle(40)
    y = model.verdict(x).labels
    distance = model.distance(x, y, norm)
    eps = float(distance.median()) + 1e-4
    out = APGD(norm=norm, **attack).run(Target(model, 40), x, y, eps, 0)
    assert inside(out, x, norm, eps).all()
    falls = model.verdict(out).wrong(y)
    clear = (distance / eps - 1).abs() > 0.02
    assert not (falls & (distance > 1.00001 * eps)).any()
    # Untargeted, the DLR loss leads to the class whose gap looks smallest, which isn't always the nearest one
    missed = (~falls & clear & (distance < eps)).sum()
    assert missed <= (2 if attack == {"loss": "dlr"} else 0)
    assert 5 < falls.sum() < 35


@given(st.integers(0, 1000), st.floats(1e-3, 0.9), st.sampled_from(["linf", "l2", "l1"]), st.sampled_from([None, 2]))
@settings(max_examples=15, deadline=None)
def test_what_comes_back_is_within_the_ball_and_the_box(seed, eps, norm, targets):
    model, x = Linear(4), torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    y = model(x).argmax(1)
    out = APGD(norm=norm, steps=6, restarts=2, loss="dlr", targets=targets).run(Target(model, 3), x, y, eps, seed)
    assert inside(out, x, norm, eps).all()


def test_every_pass_is_counted():
    model, x = Linear(4), near_the_middle(5)
    y = model.verdict(x).labels
    for attack in (
        APGD(steps=7, restarts=2),
        APGD(steps=7, restarts=2, loss="dlr", targets=3),
        APGD(norm="l1", steps=10, loss="margin", targets=2),
    ):
        target = Target(model, 5)
        attack.run(target, x, y, 1e-6, 0)
        forwards, backwards = attack.passes()
        assert target.forwards.tolist() == [forwards] * 5 and target.backwards.tolist() == [backwards] * 5
    assert APGD(steps=7, restarts=2).passes() == (16, 14)
    assert APGD(steps=7, restarts=2, loss="dlr", targets=3).passes() == (49, 42)
    assert APGD(norm="l1", steps=10).passes() == (13, 10)  # each of the three balls has a first point
    assert APGD(norm="l1", steps=1).passes() == (2, 1)


def test_a_randomized_defense_is_differentiated_several_times_and_confirms_again():
    x, y = near_the_middle(4), torch.zeros(4, dtype=torch.long)
    target, attack = Target(Coin(), 4), APGD(steps=5, eot=3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        attack.run(target, x, y, 1e-6, 0)
    assert (target.backwards <= 15).all() and (target.backwards % 3 == 0).all()
    assert attack.passes() == (18, 15)
    assert attack.unsuited(Coin()) is None and "say randomized = True" in (attack.unsuited(Linear(2)) or "")


class Drowned(Toy):
    """Two linear classes; each draw's gradient is ten times as much noise as slope, and its answer is right."""

    randomized = True

    def answer(self, x: Tensor) -> Tensor:
        noise = torch.randn_like(x) * (x - x.detach())
        lead = x.flatten(1).mean(1) - 0.6 + 10 * noise.flatten(1).mean(1)
        return torch.stack([torch.zeros_like(lead), lead], dim=1)


def test_the_mean_over_draws_finds_a_slope_that_one_draw_drowns():
    x, y = torch.full((8, 1, 4, 4), 0.5), torch.zeros(8, dtype=torch.long)
    x += torch.arange(8.0).view(-1, 1, 1, 1) * 1e-4

    def reached(eot: int) -> float:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            out = APGD(steps=20, eot=eot).run(Target(Drowned(), 8), x, y, 0.09, 0)
        return float((out - x).mean())

    assert reached(100) > 1.5 * reached(1)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("targets", [None, 9])
def test_below_four_classes_the_margin_takes_the_place_of_the_dlr_loss(classes, targets):
    model, x = Linear(classes), near_the_middle(6)
    y = model.verdict(x).labels
    found = []
    for loss in ("dlr", "margin"):
        attack = APGD(loss=loss, targets=targets, steps=5)
        assert attack.unsuited(model) is None
        found.append(attack.run(Target(model, 6), x, y, 0.01, 0))
    assert torch.equal(*found) and not torch.equal(found[0], x)


def test_target_classes_need_a_loss_of_two_classes():
    with pytest.raises(ValueError, match="targets"):
        APGD(targets=3)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("width", [0.15, 0.02])
def test_a_wall_between_two_classes_is_crossed(width, norm):
    defense, x, y = Walled(width), torch.full((4, 1, 2, 2), 0.2), torch.zeros(4, dtype=torch.long)
    x += torch.arange(4.0).view(-1, 1, 1, 1) * 1e-3
    out = APGD(norm=norm).run(Target(defense, 4), x, y, 0.65, 0)  # type: ignore[arg-type]
    assert defense.verdict(out).wrong(y).all()
    out = APGD(norm=norm).run(Target(defense, 4), x, y, 0.55 - width, 0)  # type: ignore[arg-type]
    assert not defense.verdict(out).wrong(y).any()


def test_rejection_is_not_success():
    """In the band every answer is wrong and rejected: who stops there has found nothing."""
    x, y = images_below(8)
    target = Target(Band(), 8)  # type: ignore[arg-type]
    out = APGD().run(target, x, y, 0.55, 0)
    assert Band().verdict(out).wrong(y).all()
    target = Target(Band(), 8)  # type: ignore[arg-type]
    out = APGD(steps=10).run(target, x, y, 0.2, 0)
    assert not Band().verdict(out).wrong(y).any() and target.forwards.tolist() == [11] * 8


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_two_detectors_leave_standing_what_lies_further_away_than_eps(norm):
    defense = TwoDetectors()
    x, y = defense.images(40)
    distance = defense.distance(x, norm)
    eps = float(distance.median()) + 1e-4
    out = APGD(norm=norm, restarts=5).run(Target(defense, 40), x, y, eps, 0)  # type: ignore[arg-type]
    falls = defense.verdict(out).wrong(y)
    assert not (falls & (distance > 1.0001 * eps)).any()
    assert falls[distance < 0.9 * eps].float().mean() > 0.8


def test_a_part_is_climbed_to_the_end_for_every_input():
    class Wrapped(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = Linear(2)

        def answer(self, x: Tensor) -> Tensor:
            return -self.classifier(x)

    model, x = Wrapped(), near_the_middle(8)
    assert model.classifier is not None
    y = model.classifier.verdict(x).labels
    target = Target(model, 8)
    out = APGD(part="classifier", steps=6).run(target, x, y, 0.3, 0)
    assert all(beaten(model.classifier, out, y)) and target.forwards.tolist() == [7] * 8


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_is_no_weaker_than_arts(norm, digits, digits_cnn):
    x, y = digits.test.images[:96], digits.test.labels[:96]
    eps = 0.08 if norm == "linf" else 0.4
    parameters = {"max_iter": 20, "nb_random_init": 1, "batch_size": 96}
    theirs = ArtAttack(attack="AutoProjectedGradientDescent", norm=norm, parameters=parameters)
    ours = APGD(norm=norm, steps=20)
    wrong = [digits_cnn.verdict(a.run(Target(digits_cnn, 96), x, y, eps, 0)).wrong(y) for a in (ours, theirs)]
    assert 20 < wrong[0].sum() < 92
    assert wrong[0].sum() >= wrong[1].sum() - 2


def test_restarts_begin_elsewhere_and_stop_when_they_have_found():
    x = torch.full((16, 1, 2, 2), 0.5) + torch.arange(16.0).view(-1, 1, 1, 1) * 1e-4
    y, target = torch.zeros(16, dtype=torch.long), Target(Pocket(), 16)
    once, often = (APGD(steps=1, restarts=restarts) for restarts in (1, 30))
    assert not all(beaten(Pocket(), once.run(Target(Pocket(), 16), x, y, 0.14, 0), y))
    assert all(beaten(Pocket(), often.run(target, x, y, 0.14, 0), y)) and target.forwards.max() < 60
