"""FGSM training and TRADES: each descends its paper's loss, on images of its own attack, reproducibly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from manifold_bench.attacks.batching import blockwise
from manifold_bench.attacks.threat import inside
from manifold_bench.bench.datasets.base import select
from manifold_bench.defenses.adversarial_training import AdversarialTraining
from manifold_bench.defenses.base import Progress
from manifold_bench.defenses.fgsm_training import FGSMTraining
from manifold_bench.defenses.trades import TRADES
from manifold_bench.defenses.training import initialise
from manifold_bench.defenses.weights import weights_hash

TINY: dict[str, Any] = {
    "shape": (1, 8, 8),
    "num_classes": 10,
    "width": 8,
    "hidden": 32,
    "eps": 0.1,
    "epochs": 14,
    "rate": 1e-3,
}
MADE = {
    "fgsm": lambda **changes: FGSMTraining(FGSMTraining.Spec(**TINY | changes)),
    "trades": lambda **changes: TRADES(TRADES.Spec(**TINY | {"steps": 3, "step_size": 0.05} | changes)),
}
EACH = pytest.mark.parametrize("name", MADE)


def untrained(name: str, **changes: Any) -> Any:
    defense = MADE[name](**changes)
    initialise(defense, 3)
    return defense


def fitted(name: str, digits: Any, budget: float = 0.1, **changes: Any) -> tuple[AdversarialTraining, dict[str, float]]:
    defense = MADE[name](**changes)
    figures = defense.fit(select(digits.train, range(0, 1000, 4)), digits.validation, budget, 0, Progress())
    return defense, figures


@pytest.fixture(scope="module", params=MADE)
def trained(digits, request) -> tuple[AdversarialTraining, dict[str, float]]:
    return fitted(request.param, digits)


def test_it_learns_and_says_how_it_fares_under_its_own_attack(trained, digits):
    defense, figures = trained
    answers = blockwise(defense, digits.test.images).argmax(1)
    assert (answers == digits.test.labels).float().mean() > 0.3
    clean, attacked = figures["validation_accuracy"], figures["validation_accuracy_under_training_attack"]
    assert 0 < attacked < clean <= 1
    assert not defense.training and not defense.rejects


@pytest.mark.parametrize("ramp", [0.0, 0.5, 1.0])
def test_its_attack_stays_in_the_ball_and_raises_the_loss(trained, digits, ramp):
    defense, _ = trained
    x, y = digits.validation.images, digits.validation.labels
    with torch.random.fork_rng():
        torch.manual_seed(0)
        attacked = defense.perturbed(x, y, ramp)
    assert inside(attacked, x, "linf", ramp * defense.spec.eps).all()
    with torch.no_grad():
        gain = F.cross_entropy(defense(attacked), y) - F.cross_entropy(defense(x), y)
    assert gain > 0.01 if ramp else gain.abs() < 1e-6


@EACH
def test_a_seed_gives_the_same_weights_whatever_happened_before(name, digits):
    torch.manual_seed(1)
    first, _ = fitted(name, digits, budget=0.02)
    torch.manual_seed(2)
    assert weights_hash(first) == weights_hash(fitted(name, digits, budget=0.02)[0])


@EACH
def test_at_radius_zero_it_is_plain_training(name, digits):
    defense = untrained(name)
    x, y = digits.test.images[:32], digits.test.labels[:32]
    torch.testing.assert_close(defense.loss(x, y, 0.0), F.cross_entropy(defense(x), y))


def test_fgsm_takes_one_step_of_the_whole_radius(digits):
    defense = untrained("fgsm")
    x, y = digits.test.images[:32], digits.test.labels[:32]
    point = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(defense.network(point), y), point)
    assert torch.equal(defense.perturbed(x, y, 1.0), (x + 0.1 * gradient.sign()).clamp(0, 1))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_fgsm_weighs_clean_and_adversarial_losses(digits, share):
    defense = untrained("fgsm", clean_share=share)
    x, y = digits.test.images[:32], digits.test.labels[:32]
    clean = F.cross_entropy(defense(x), y)
    attacked = F.cross_entropy(defense(defense.perturbed(x, y, 1.0)), y)
    assert attacked > clean
    torch.testing.assert_close(defense.loss(x, y, 1.0), share * clean + (1 - share) * attacked)


def divergence(defense: AdversarialTraining, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL(p(x) ‖ p(other)) by its definition, the mean over inputs."""
    p, q = defense(x).softmax(1), defense(other).softmax(1)
    return (p * (p / q).log()).sum(1).mean()


@pytest.mark.parametrize("beta", [0.0, 1.0, 6.0])
def test_trades_adds_beta_times_the_divergence(digits, beta):
    defense = untrained("trades", beta=beta)
    x, y = digits.test.images[:32], digits.test.labels[:32]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        loss = defense.loss(x, y, 1.0)
        torch.manual_seed(0)
        attacked = defense.perturbed(x, y, 1.0)
    expected = F.cross_entropy(defense(x), y) + beta * divergence(defense, x, attacked)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def test_the_ascent_of_trades_needs_no_labels_and_moves_answers(digits):
    defense, _ = fitted("trades", digits, budget=0.05)
    x, y = digits.test.images[:64], digits.test.labels[:64]
    found = []
    for labels in (y, (y + 1) % 10):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            found.append(defense.perturbed(x, labels, 1.0))
    assert torch.equal(*found)
    noise = (x + 0.1 * (2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) - 1)).clamp(0, 1)
    with torch.no_grad():
        assert divergence(defense, x, found[0]) > 2 * divergence(defense, x, noise)
