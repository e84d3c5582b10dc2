"""Attacks on the range of a generator, on linear ones whose distances are known in closed form."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from projecting import Part, Projects, classifier, generator
from torch import Tensor
from toys import Linear

from manifold_bench.attacks.combined import Combined
from manifold_bench.attacks.contract import Verdict
from manifold_bench.attacks.lagrangian import SAMPLES, Descent, overpowered_pairs
from manifold_bench.attacks.latent import CONFIRMATIONS, Latent, RangeAttack
from manifold_bench.attacks.target import Target
from manifold_bench.attacks.threat import inside

LATENTS = torch.randn(24, 2, 4, generator=torch.Generator().manual_seed(4))


def constant(x: Tensor) -> Tensor:
    return torch.tensor([0.0, 1.0, 0.0]).expand(len(x), 3) + 0 * x.flatten(1)[:, :1]


def judged(z: Tensor, other: Tensor, eta: float) -> Tensor:
    """Whether that really is an overpowered pair, [M]."""
    one, two = generator(z), generator(other)
    near = (one.double() - two.double()).flatten(1).norm(dim=1) <= eta
    return near & (classifier(one).argmax(1) != classifier(two).argmax(1))


@pytest.mark.parametrize("eta", [0.5, 0.1])
def test_pairs_on_both_sides_of_a_boundary_are_found_from_anywhere(eta):
    """Any η > 0 has such pairs: the range is connected and the classifier isn't constant on it."""
    for other in (LATENTS[:, 1], LATENTS[:, 0] + 0.01):
        pairs = overpowered_pairs(generator, classifier, (LATENTS[:, 0], other), eta, Descent(400))
        assert pairs.found.all() and judged(pairs.z, pairs.other, eta).all()
        distance = (generator(pairs.z) - generator(pairs.other)).flatten(1).norm(dim=1)
        assert torch.allclose(pairs.distance.float(), distance, atol=1e-6)


@pytest.mark.parametrize("eta", [0.2, 1e9])
def test_what_is_classified_alike_is_never_found_however_near(eta):
    pairs = overpowered_pairs(generator, constant, (LATENTS[:, 0], LATENTS[:, 0] + 1e-4), eta, Descent(20))
    assert not pairs.found.any()


def test_what_is_classified_differently_is_found_only_within_eta():
    z, other = LATENTS.unbind(1)
    differ = classifier(generator(z)).argmax(1) != classifier(generator(other)).argmax(1)
    distance = (generator(z).double() - generator(other).double()).flatten(1).norm(dim=1)
    eta = float(distance[differ].median()) + 1e-4
    expected = differ & (distance <= eta)
    assert expected.any() and (differ & ~expected).any()
    pairs = overpowered_pairs(generator, classifier, (z, other), eta, Descent(1, rate=1e-9))
    assert torch.equal(pairs.found, expected)
    pairs = overpowered_pairs(generator, classifier, (z, other), eta, Descent(100))
    assert torch.equal(pairs.z[expected], z[expected]) and torch.equal(pairs.other[expected], other[expected])


def test_pairs_are_as_confident_as_asked_for():
    def least_margin(confidence: float) -> Tensor:
        pairs = overpowered_pairs(generator, classifier, LATENTS.unbind(1), 1.0, Descent(300), confidence)
        assert pairs.found.all()
        both = torch.stack([classifier(generator(latents)) for latents in (pairs.z, pairs.other)])
        top = both.topk(2, dim=2).values
        return (top[..., 0] - top[..., 1]).amin(0)

    assert (least_margin(0.5) >= 0.499).float().mean() > 0.75
    assert (least_margin(0.0) >= 0.499).float().mean() < 0.5


def test_a_pair_is_the_same_alone_and_in_a_batch():
    whole = overpowered_pairs(generator, classifier, LATENTS.unbind(1), 0.1, Descent(60))
    for row in (0, 11, 23):
        alone = overpowered_pairs(generator, classifier, LATENTS[row : row + 1].unbind(1), 0.1, Descent(60))
        assert torch.equal(alone.z[0], whole.z[row]) and torch.equal(alone.other[0], whole.other[row])


# --- from real inputs -------------------------------------------------------------------------------------------------


class Unmoved(Projects):
    """Accepts every image as class 0, whatever the classifier says."""

    def verdict(self, x: Tensor) -> Verdict:
        return Verdict(torch.zeros(len(x), dtype=torch.long), torch.zeros(len(x), dtype=torch.bool))


# Steps short enough for the last percent; in the plane, and so that no pixel comes near the edge of the box
NEAR = generator(LATENTS[:, 0] * 0.3)
LABELS = Projects().verdict(NEAR).labels
SHORT = {"steps": 150, "rate": 0.01, "confidence": 0.0}
ATTACKS: dict[str, RangeAttack] = {
    "latent": Latent(**SHORT),
    "overpowered": Latent(starts=3, **SHORT),
    "combined": Combined(starts=1, **SHORT),
}
every = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())


@every
def test_the_smallest_ball_that_holds_another_class_is_enough(attack):
    """To 2 % for the descents over latents alone; what flees a rival circles about its goal."""
    defense = Projects()
    distance = defense.distance(NEAR, LABELS)
    attack, enough = replace(attack, norm="l2"), 1.4 if isinstance(attack, Combined) else 1.02
    for row in (0, 16):
        x, y, eps = NEAR[row : row + 1], LABELS[row : row + 1], float(distance[row])
        for share, fooled in ((enough, True), (0.98, False)):
            out = attack.run(Target(defense, 1), x, y, share * eps, 0)
            assert inside(out, x, "l2", share * eps).all()
            assert defense.verdict(out).wrong(y).item() is fooled


@every
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_outputs_stay_in_the_ball_and_what_is_rejected_is_no_success(attack, norm):
    eps = {"l2": 1.0, "linf": 0.25}[norm]
    attack = replace(attack, norm=norm)
    x = (NEAR + 0.02 * torch.randn(NEAR.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    open_, tight = Projects(), Projects(eta=0.15)
    y = open_.verdict(x).labels
    assert not tight.verdict(x).rejected.any()
    for defense in (open_, tight):
        out = attack.run(Target(defense, 24), x, y, eps, 0)
        assert inside(out, x, norm, eps).all()
        wrong = defense.verdict(out).wrong(y)
        assert wrong.float().mean() > (0.7 if defense is open_ else 0.4)
    assert (defense.distance(x, y)[wrong] <= eps * (1 if norm == "l2" else 4)).all()


@every
def test_passes_are_counted_and_estimated(attack):
    attack = replace(attack, steps=20, norm="l2")
    looks = attack.starts * (21 if isinstance(attack, Latent) else 42)
    starts = SAMPLES / 4 + 7 if attack.starts > 1 else 0
    constant_one, unmoved = Projects(), Unmoved()
    constant_one.classifier = Part(constant)
    target = Target(constant_one, 4)
    attack.run(target, NEAR[:4], torch.ones(4, dtype=torch.long), 1.0, 0)  # nothing is ever claimed
    assert target.forwards.tolist() == [1 + starts + looks] * 4 and target.backwards.tolist() == [looks] * 4

    unmoved.classifier = Part(lambda x: constant(x).roll(0, 1))
    target = Target(unmoved, 4)
    attack.run(target, NEAR[:4], torch.zeros(4, dtype=torch.long), 1.0, 0)  # all is claimed, nothing confirmed
    confirmed = attack.starts * (CONFIRMATIONS + 1)
    assert target.forwards.tolist() == [1 + starts + looks + (1 if isinstance(attack, Latent) else 2) * confirmed] * 4
    forwards, backwards = attack.passes()
    assert backwards == looks and forwards >= target.forwards.max() - (SAMPLES / 4 if starts else 0)


@every
def test_an_output_is_the_same_alone_and_in_a_batch(attack):
    defense, attack = Projects(), replace(attack, norm="l2", steps=15)
    whole = attack.run(Target(defense, 24), NEAR, LABELS, 0.3, 0)
    alone = attack.run(Target(defense, 1), NEAR[13:14], LABELS[13:14], 0.3, 0)
    assert torch.equal(alone[0], whole[13])


@every
def test_what_has_no_generator_is_skipped_with_the_reason(attack):
    assert "a generator's range" in str(attack.unsuited(Linear(2)))
    assert attack.unsuited(Projects()) is None


@every
@pytest.mark.parametrize("scale", [0.01, 1e4])
def test_the_scale_of_the_logits_changes_no_search(attack, scale):
    defense, louder = Projects(), Projects()
    louder.classifier = Part(lambda x: scale * classifier(x))
    eps = 1.3 * float(defense.distance(NEAR, LABELS).median())
    runs = [replace(attack, norm="l2").run(Target(one, len(NEAR)), NEAR, LABELS, eps, 0) for one in (defense, louder)]
    fallen, loudly = (defense.verdict(out).wrong(LABELS) for out in runs)
    assert fallen.any() and (fallen != loudly).sum() <= 1
