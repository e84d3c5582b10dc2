"""Attacks on defenses that reject: they find what is accepted and wrong exactly where the ball meets it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rejecting import MEANS, Band, TwoDetectors, Walled, images_below
from torch import Tensor, nn

from manifold_bench.attacks.contract import Verdict
from manifold_bench.attacks.detector_lagrangian import DetectorLagrangian
from manifold_bench.attacks.gradient import PGD
from manifold_bench.attacks.selective import (
    AimedAscent,
    GMVAEWhiteBox,
    HeldOut,
    LatentMatching,
    LogitMatching,
    OrthogonalPGD,
    SelectivePGD,
    without,
)
from manifold_bench.attacks.target import Attacker, BudgetSpent, Target
from manifold_bench.attacks.threat import flat_norm, inside, steepest
from manifold_bench.bench.datasets.digits import Digits
from manifold_bench.defenses.base import append_reject_score
from manifold_bench.defenses.networks import StridedCNN
from manifold_bench.defenses.weights import from_zoo

TWO = TwoDetectors()


def of(defense: nn.Module, n: int, **options: object) -> Target:
    return Target(defense, n, Attacker(held_out=TWO.held_out, **options))  # type: ignore[arg-type]


def falls(attack: AimedAscent | PGD, defense: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Whether each input is beaten; what comes back is inside the ball in any case."""
    out = attack.run(of(defense, len(x)), x, y, eps, 0)
    assert inside(out, x, attack.norm, eps).all()
    return defense.verdict(out).wrong(y)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("start", ["random", "clean", "interpolation"])
def test_what_is_robust_is_what_lies_further_away_than_eps(start, norm):
    x, y = TWO.images(40)
    assert not TWO.verdict(x).rejected.any() and not TWO.verdict(x).wrong(y).any()
    distance = TWO.distance(x, norm)
    eps = float(distance.median()) + 1e-4
    clear = (distance / eps - 1).abs() > 0.03
    beaten = falls(SelectivePGD(norm=norm, start=start), TWO, x, y, eps)
    assert torch.equal(beaten[clear], (distance < eps)[clear])
    assert 5 < beaten.sum() < 35


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", [SelectivePGD(), LogitMatching()], ids=lambda a: type(a).__name__)
def test_who_attacks_the_encoder_alone_leaves_the_strip(attack, norm):
    x, y = TWO.images(40)
    eps = 1.2 * float(TWO.distance(x, norm).max())
    blind = falls(PGD(norm=norm, part="classifier", loss="margin"), TWO, x, y, eps)
    assert blind.sum() < 20
    assert falls(replace(attack, norm=norm), TWO, x, y, eps).all()


@pytest.mark.parametrize("width", [0.15, 0.02])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", [SelectivePGD, OrthogonalPGD])
def test_a_wall_between_two_classes_is_crossed_however_small_the_steps(attack, norm, width):
    """A step is far shorter than the wall is thick; what minds it on the way stays where it is."""
    defense, x, y = Walled(width), torch.full((1, 1, 2, 2), 0.2), torch.zeros(1, dtype=torch.long)
    minding = PGD(norm=norm, loss="selective-margin", random_start=False, step_size=0.02)
    small = attack(norm=norm, steps=60, step_size=0.1, start="clean")
    assert not falls(minding, defense, x, y, 0.65).any()
    assert falls(small, defense, x, y, 0.65).all()
    assert not falls(small, defense, x, y, 0.55 - width).any()


def test_the_band_is_crossed():
    x, y = images_below(8)
    assert falls(SelectivePGD(), Band(), x, y, 0.55).all()
    assert not falls(SelectivePGD(), Band(), x, y, 0.2).any()


class Lure(nn.Module):
    """Class 1 by the first two pixels; rejects where the first one exceeds .5, where the shortest way leads."""

    num_classes, rejects, randomized = 2, True, False
    gradient_modes, detectors, classifier = ("default",), (), None

    def forward(self, x: Tensor) -> Tensor:
        a, b = x[:, 0, 0, 0], x[:, 0, 0, 1]
        return append_reject_score(torch.stack([torch.zeros_like(b), b - 0.6 + 3 * (a - 0.4)], dim=1), 10 * (a - 0.5))

    def verdict(self, x: Tensor) -> Verdict:
        logits = self(x)
        return Verdict(logits[:, :2].argmax(1), logits.argmax(1) == 2)


def test_an_orthogonal_step_leaves_the_detector_where_it_was():
    x, y = torch.full((2, 1, 2, 2), 0.4), torch.zeros(2, dtype=torch.long)
    attack = OrthogonalPGD(norm="l2", steps=1, step_size=0.25, start="clean")
    out = attack.run(of(Lure(), 2), x, y, 0.3, 0)
    assert torch.allclose(out[:, 0, 0], torch.tensor([0.4, 0.65])) and Lure().verdict(out).wrong(y).all()
    plain = SelectivePGD(norm="l2", steps=1, step_size=0.25, start="clean")
    assert not falls(plain, Lure(), x, y, 0.3).any()
    assert not falls(replace(attack, projected="detector"), Lure(), x, y, 0.3).any()
    assert falls(replace(attack, projected="classifier"), Lure(), x, y, 0.3).all()


def test_steps_along_signs_stop_behind_the_detector_of_an_auxiliary_network_and_weighed_ones_do_not(digits):
    """What sign steps leave is wrong and rejected; steps that keep the gradient's proportions get past the detector."""
    defense, chosen = from_zoo("auxiliary-detector", "digits"), torch.from_numpy(digits.chosen(12))
    x, y = digits.test.images[chosen], digits.test.labels[chosen]
    signs = OrthogonalPGD(steps=25, targets=3)
    attacks = {"signs": signs, "l2": replace(signs, step_norm="l2"), "weighed": DetectorLagrangian(steps=25, targets=3)}
    left = {}
    for name, attack in attacks.items():
        answer = defense.verdict(attack.run(of(defense, 12), x.clone(), y, 0.2, 0))
        left[name] = int((~answer.wrong(y)).sum())
        assert (answer.rejected | answer.wrong(y)).all(), "the answer itself falls in each case"
    assert left["signs"] > left["l2"] == left["weighed"] == 0


vectors = arrays("float32", (3, 1, 2, 2), elements=st.floats(-1, 1, width=32))


@given(vectors, vectors)
def test_what_is_left_of_a_gradient_is_orthogonal_to_the_other(a, b):
    gradient, other = torch.from_numpy(a), torch.from_numpy(b)
    rest = without(gradient, other)
    product = (rest * steepest(other, "l2")).flatten(1).sum(1).abs()
    ahead = (rest * gradient).flatten(1).sum(1)
    parallel = product > 1e-5
    assert (ahead >= 0).all()
    assert torch.equal(rest[parallel], steepest(gradient, "l2")[parallel])  # nothing was left: taken whole


def test_what_pulls_along_one_line_is_taken_whole():
    gradient = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    for other in (2 * gradient, -gradient, 0 * gradient):
        assert torch.allclose(without(gradient, other), gradient / flat_norm(gradient, "l2").view(2, 1, 1, 1))


def test_the_likeliest_classes_are_tried_first_and_beaten_inputs_leave():
    x, y = TWO.images(12)
    up = MEANS[2] - TWO.encoder(x)[:, 0] < TWO.encoder(x)[:, 0] - MEANS[0]
    target = of(TWO, 12)
    out = SelectivePGD(targets=1, start="clean", step_size=0.1).run(target, x, y, 0.3, 0)
    assert torch.equal(TWO.verdict(out).labels, torch.where(up, 2, 0)) and not TWO.verdict(out).rejected.any()
    assert target.forwards.max() < 102 and torch.equal(target.backwards + 1, target.forwards)


def test_every_pass_is_counted():
    x, y = TWO.images(5)
    steps, restarts, climbs = 7, 2, 4
    looks = climbs * (steps + 1)
    for attack, forwards, backwards in (
        (SelectivePGD, 1 + looks, climbs * steps),
        (OrthogonalPGD, 1 + looks + climbs * steps, 2 * climbs * steps),
        (LogitMatching, 1 + looks + climbs, climbs * steps),  # and the outputs of each guide
        (LatentMatching, 1 + 2 * (looks + climbs), climbs * steps),  # of the encoder and of the defense
    ):
        made = attack(steps=steps, restarts=restarts)
        target = of(TWO, 5)
        made.run(target, x, y, 1e-6, 0)
        assert target.forwards.tolist() == [forwards] * 5 and target.backwards.tolist() == [backwards] * 5, attack
        assert replace(made, targets=2).passes() == (forwards, backwards)


def test_a_budget_is_kept_to():
    x, y = TWO.images(2)
    attack = SelectivePGD(steps=3)
    free = of(TWO, 2)
    attack.run(free, x, y, 1e-6, 0)
    most = int((free.forwards + free.backwards).max())
    attack.run(of(TWO, 2, max_passes=most), x, y, 1e-6, 0)
    with pytest.raises(BudgetSpent):
        attack.run(of(TWO, 2, max_passes=most - 1), x, y, 1e-6, 0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_matched_encoding_is_the_guides(norm):
    """Unless what comes by on the way there is accepted: then it stops."""
    x, y = TWO.images(20)
    x, y = x[TWO.encoder(x)[:, 0] > MEANS[1]], y[TWO.encoder(x)[:, 0] > MEANS[1]]
    guides = HeldOut(of(TWO, 1), x.device).nearest(x, y + 1, 0)
    attack = LatentMatching(norm=norm, targets=1, steps=60, step_size=0.1, start="clean")
    out = attack.run(of(TWO, len(x)), x, y, 0.5, 0)
    stopped = TWO.verdict(out).wrong(y)
    assert 0 < stopped.sum() < len(x) and (TWO.verdict(out).labels == 2).all()
    assert torch.allclose(TWO.encoder(out)[~stopped], TWO.encoder(guides)[~stopped], atol=0.005)


def test_guides_are_clean_images_that_are_taken_for_what_they_are():
    images = torch.tensor([0.2, 0.3, 0.4, 0.9, 0.7]).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    labels = torch.tensor([0, 0, 0, 1, 1])  # the third is rejected
    held = HeldOut(Target(Walled(0.15), 1, Attacker(held_out=lambda: (images, labels))), images.device)
    assert held.accepted.tolist() == [True, True, False, True, True]
    x = torch.full((2, 1, 2, 2), 0.55)
    wanted = torch.tensor([0, 1])
    for rank, firsts in ((0, [0.3, 0.7]), (1, [0.2, 0.9]), (2, [0.3, 0.7])):
        assert held.nearest(x, wanted, rank)[:, 0, 0, 0].tolist() == pytest.approx(firsts)
    with pytest.raises(ValueError, match="none of class 7, which this attack starts from"):
        held.nearest(x, torch.tensor([0, 7]), 0)


class CNN(nn.Module):
    """Random weights, rejecting half of everything by a detector that is no better."""

    num_classes, rejects, randomized = 10, True, False
    gradient_modes, detectors, classifier = ("default",), ("encoding",), None

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.network = StridedCNN((1, 8, 8), 11, 8, 32).requires_grad_(False)
            self.register_buffer("usual", self.network(torch.rand(256, 1, 8, 8)).mean(0))

    def encoder(self, x: Tensor) -> Tensor:
        return 20 * (self.network(x) - self.usual)

    def detection(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        out = self.encoder(x)
        return append_reject_score(out[:, :10], out[:, 10]), 1 + out[:, 10:] - 0.1 * out.gather(1, labels[:, None])

    def forward(self, x: Tensor) -> Tensor:
        return self.detection(x, torch.zeros(len(x), dtype=torch.long))[0]

    def verdict(self, x: Tensor) -> Verdict:
        logits = self(x)
        return Verdict(logits[:, :10].argmax(1), logits.argmax(1) == 10)


def random_images(n: int, seed: int) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "attack",
    [
        SelectivePGD(steps=5, restarts=2, targets=3, start="interpolation"),
        OrthogonalPGD(steps=4, targets=3, norm="l2"),
        LatentMatching(steps=4, targets=2, restarts=2),
        LogitMatching(steps=4, targets=3, norm="l2"),
        GMVAEWhiteBox(steps=12, weight=0.1),
    ],
    ids=lambda attack: type(attack).__name__,
)
def test_results_are_the_same_bits_in_any_company(attack):
    defense, x, held = CNN(), random_images(19, 0), random_images(200, 1)
    y, eps = defense.verdict(x).labels, 0.03 if attack.norm == "linf" else 0.15
    aims = (y + 1 + torch.arange(19) % 9) % 10

    def run(rows: Tensor) -> tuple[Tensor, Target]:
        target = Target(
            defense, len(rows), Attacker(aims=aims[rows], held_out=lambda: (held, defense.verdict(held).labels))
        )
        return attack.run(target, x[rows], y[rows], eps, 11), target

    together, counted = run(torch.arange(19))
    assert 0 < defense.verdict(together).wrong(y).sum() < 19
    for rows in (
        torch.randperm(19, generator=torch.Generator().manual_seed(5)),
        torch.tensor([18]),
        torch.arange(3, 9),
    ):
        out, target = run(rows)
        assert torch.equal(out, together[rows])
        assert torch.equal(target.forwards, counted.forwards[rows])


def test_a_white_box_finds_the_smallest_perturbation_that_its_weight_allows():
    """As written it stops where distance outweighs detection: short of acceptance, unless the weight is small."""
    x, y = TWO.images(12)
    aims = torch.where(torch.arange(12) % 2 == 0, 0, 2)
    attack = GMVAEWhiteBox(steps=300, weight=0.01)
    target = of(TWO, 12, aims=aims)
    out = attack.run(target, x, y, torch.inf, 0)
    answer = TWO.verdict(out)
    assert torch.equal(answer.labels, aims) and not answer.rejected.any()
    assert (flat_norm(out - x, "l2") >= TWO.distance(x, "l2") - 1e-6).all()
    assert target.forwards.tolist() == target.backwards.tolist() == [300] * 12
    heavy = replace(attack, weight=1e4).run(of(TWO, 12, aims=aims), x, y, torch.inf, 0)
    assert flat_norm(heavy - x, "l2").max() < 0.02 and not TWO.verdict(heavy).wrong(y).any()
    assert attack.minimal and attack.aims == "wrong" and attack.passes() == (300, 300)


def test_pairings_that_make_no_sense_are_named():
    two, walled, plain = TWO, Walled(0.1), CNN()
    plain.rejects = False
    for attack in (SelectivePGD(), OrthogonalPGD()):
        assert attack.unsuited(two) is None and attack.unsuited(walled) is None
        assert "rejects nothing" in (attack.unsuited(plain) or "")
    assert LatentMatching().unsuited(two) is None and "encoder" in (LatentMatching().unsuited(walled) or "")
    assert LogitMatching().unsuited(walled) is None
    assert GMVAEWhiteBox().unsuited(two) is None and "eq. 10" in (GMVAEWhiteBox().unsuited(walled) or "")
    for attack_class in (SelectivePGD, OrthogonalPGD, LatentMatching, LogitMatching):
        with pytest.raises(ValueError, match="classifier"):
            attack_class(part="classifier")
        assert attack_class().knowledge == "white-box"


def test_steps_along_the_gradient_pass_a_detector_that_signs_walk_over():
    """The zoo's network that tells adversarial images from clean ones, on 8×8 digits."""
    data = Digits().test
    index = torch.from_numpy(Digits().chosen(32))
    x, y = data.images[index], data.labels[index]
    defense = from_zoo("auxiliary-detector", "digits")
    beaten = {
        step_norm: falls(SelectivePGD(steps=50, targets=3, start="clean", step_norm=step_norm), defense, x, y, 0.2)
        for step_norm in (None, "l2")
    }
    assert beaten["l2"].sum() > beaten[None].sum()


def test_signs_are_for_the_box_shaped_ball():
    with pytest.raises(ValueError, match="step_norm"):
        SelectivePGD(norm="l2", step_norm="linf")
