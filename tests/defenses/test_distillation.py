"""Defensive distillation: what it blinds is one loss at one temperature, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from manifold_bench.attacks.batching import blockwise
from manifold_bench.attacks.gradient import FGSM, PGD
from manifold_bench.attacks.target import Target
from manifold_bench.defenses.base import Progress
from manifold_bench.defenses.distillation import Distillation
from manifold_bench.defenses.weights import weights_hash


def fitted(digits, budget: float, temperature: float = 100.0) -> tuple[Distillation, dict[str, float]]:
    spec = Distillation.Spec(
        shape=(1, 8, 8), num_classes=10, width=8, hidden=32, temperature=temperature, epochs=12, rate=0.01
    )
    defense = Distillation(spec)
    return defense, defense.fit(digits.train, digits.validation, budget, 0, Progress())


@pytest.fixture(scope="module")
def trained(digits) -> tuple[Distillation, dict[str, float]]:
    return fitted(digits, 0.3)


def test_teacher_and_student_learn(trained, digits):
    defense, figures = trained
    assert min(figures["validation_accuracy"], figures["validation_accuracy_of_teacher"]) > 0.8
    right = blockwise(defense, digits.test.images).argmax(1) == digits.test.labels
    assert right.float().mean() > 0.8 and not defense.training


def plain_gradient(defense: Distillation, x: torch.Tensor, y: torch.Tensor, temperature: float) -> torch.Tensor:
    """∇ₓ CE(softmax(z(x) / T), y)."""
    point = x.clone().requires_grad_(True)
    loss = F.cross_entropy(defense(point) / temperature, y, reduction="sum")
    return torch.autograd.grad(loss, point)[0]


def test_the_deployed_cross_entropy_is_blind_and_that_of_the_training_is_not(trained, digits):
    defense, _ = trained
    right = blockwise(defense, digits.test.images).argmax(1) == digits.test.labels
    x, y = digits.test.images[right], digits.test.labels[right]
    blind = {t: (plain_gradient(defense, x, y, t) == 0).flatten(1).all(1).float().mean() for t in (1.0, 100.0)}
    assert blind[1.0] > 0.3 and blind[100.0] == 0


def test_margins_break_what_the_blind_loss_cannot(trained, digits):
    defense, _ = trained
    x, y = digits.test.images[:200], digits.test.labels[:200]
    step = (x + 0.2 * plain_gradient(defense, x, y, 1.0).sign()).clamp(0, 1)

    def right(images: torch.Tensor) -> float:
        return float((blockwise(defense, images).argmax(1) == y).float().mean())

    blind = right(step)
    for attack in (FGSM(loss="margin"), PGD(loss="margin", steps=10), PGD(steps=10)):
        assert right(attack.run(Target(defense, len(x)), x, y, 0.2, seed=0)) < blind - 0.15
    assert right(PGD(loss="margin", steps=10).run(Target(defense, len(x)), x, y, 0.2, seed=0)) < 0.1


def test_logits_are_as_many_times_larger_as_the_temperature_is(trained, digits):
    cool = fitted(digits, 0.3, temperature=1.0)[0]
    x = digits.test.images[:100]
    ratio = blockwise(trained[0], x).abs().mean() / blockwise(cool, x).abs().mean()
    assert 20 < ratio < 500


def test_a_seed_gives_the_same_weights(digits):
    assert weights_hash(fitted(digits, 0.02)[0]) == weights_hash(fitted(digits, 0.02)[0])
