"""Adversarial training: its inner attack stays in the ball and hurts, and the training is reproducible."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch.nn import functional as F

from manifold_bench.attacks.batching import blockwise
from manifold_bench.attacks.threat import flat_norm, inside
from manifold_bench.bench.datasets.base import select
from manifold_bench.bench.datasets.digits import Digits
from manifold_bench.defenses.base import Progress
from manifold_bench.defenses.pgd_training import PGDTraining, PGDTrainingSpec
from manifold_bench.defenses.weights import weights_hash

SIZES: dict[str, dict[str, Any]] = {
    "linf": {"eps": 0.1, "step_size": 0.05},
    "l2": {"eps": 0.5, "step_size": 0.25, "mixed_precision": True},
}


def fitted(
    digits: Digits, seed: int = 0, budget: float = 0.02, norm: Literal["linf", "l2"] = "linf"
) -> tuple[PGDTraining, dict[str, float]]:
    spec = PGDTrainingSpec(shape=(1, 8, 8), num_classes=10, norm=norm, steps=3, width=8, hidden=32, **SIZES[norm])
    defense = PGDTraining(spec)
    figures = defense.fit(select(digits.train, range(0, 1000, 4)), digits.validation, budget, seed, Progress())
    return defense, figures


@pytest.fixture(scope="module", params=["linf", "l2"])
def defense(digits, request) -> PGDTraining:
    return fitted(digits, budget=0.1, norm=request.param)[0]


def test_it_learns_and_never_rejects(defense, digits):
    logits = blockwise(defense, digits.test.images)
    assert logits.shape == (500, 10) and not defense.rejects
    assert (logits.argmax(1) == digits.test.labels).float().mean() > 0.3
    x = digits.test.images[:64]
    assert torch.equal(defense.verdict(x).labels, defense(x).argmax(1))


@pytest.mark.parametrize("ramp", [0.0, 0.5, 1.0])
def test_the_inner_attack_stays_in_its_ball_and_raises_the_loss(defense, digits, ramp):
    x, y = digits.validation.images, digits.validation.labels
    with torch.random.fork_rng():
        torch.manual_seed(0)
        attacked = defense.perturbed(x, y, ramp)
    norm, eps = defense.spec.norm, ramp * defense.spec.eps
    assert inside(attacked, x, norm, eps).all()
    assert not ramp or flat_norm(attacked - x, norm).median() > 0.9 * eps
    with torch.no_grad():
        gain = F.cross_entropy(defense(attacked), y) - F.cross_entropy(defense(x), y)
    assert gain > 0.01 if ramp else gain.abs() < 1e-6


def test_the_inner_attack_leaves_the_weights_as_they_were(defense, digits):
    for frozen in (False, True):
        defense.network.output.bias.requires_grad_(not frozen)
        learning = [p.requires_grad for p in defense.parameters()]
        defense.perturbed(digits.test.images[:8], digits.test.labels[:8], 1.0)
        assert [p.requires_grad for p in defense.parameters()] == learning


def test_fit_leaves_it_in_eval_mode(defense):
    assert not defense.training


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_seed_gives_the_same_weights_whatever_happened_before(digits, norm):
    torch.manual_seed(1)
    first, _ = fitted(digits, norm=norm)
    torch.manual_seed(2)
    again, other = fitted(digits, norm=norm)[0], fitted(digits, seed=1, norm=norm)[0]
    assert weights_hash(first) == weights_hash(again) != weights_hash(other)


@pytest.mark.parametrize("norm", SIZES)
def test_weights_take_half_their_size_on_disk(digits, norm):
    defense = fitted(digits, norm=norm)[0]
    assert all(torch.equal(weights, weights.half().float()) for weights in defense.parameters())


def test_figures_do_not_touch_the_random_state(defense, digits):
    before = torch.get_rng_state()
    defense.figures(digits.validation)
    assert torch.equal(torch.get_rng_state(), before)
