"""The auxiliary detector: rejections at a stated rate, and no wall for an attacker who minds it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from manifold_bench.attacks.batching import blockwise
from manifold_bench.attacks.gradient import PGD
from manifold_bench.attacks.target import Target
from manifold_bench.attacks.threat import inside
from manifold_bench.bench.datasets.base import select
from manifold_bench.bench.datasets.digits import Digits
from manifold_bench.defenses.auxiliary_detector import AuxiliaryDetector
from manifold_bench.defenses.base import LabelledImages, Progress
from manifold_bench.defenses.calibration import selective_figures
from manifold_bench.defenses.weights import from_zoo

SPEC = AuxiliaryDetector.Spec(shape=(1, 8, 8), num_classes=10, width=8, hidden=32, eps=(0.1, 0.3), steps=4)


def fitted(digits: Digits, seed: int = 0, validation: LabelledImages | None = None) -> AuxiliaryDetector:
    """Hardly trained."""
    defense = AuxiliaryDetector(SPEC)
    train = select(digits.train, range(0, 1000, 4))
    defense.fit(train, validation or digits.validation, 0.005, seed, Progress())
    return defense


@pytest.fixture(scope="module")
def defense() -> AuxiliaryDetector:
    """As it comes out of the training; its 200 validation images set the threshold."""
    return from_zoo("auxiliary-detector", "digits")


def deployed(defense: AuxiliaryDetector, rate: float) -> AuxiliaryDetector:
    """The same weights at another rejection rate."""
    other = AuxiliaryDetector(replace(defense.spec, rejection_rate=rate))
    other.load_state_dict(defense.state_dict())
    return other.eval().requires_grad_(False)


def test_it_learns(defense, digits):
    verdict = defense.verdict(digits.test.images)
    assert defense.rejects and not defense.training
    assert (~verdict.rejected & (verdict.labels == digits.test.labels)).float().mean() > 0.9


def test_its_figures_say_what_it_catches(defense, digits):
    figures = selective_figures(blockwise(defense, digits.validation.images), digits.validation.labels)
    parts = [figures[f"validation_{part}"] for part in ("accuracy", "error", "rejection")]
    assert sum(parts) == pytest.approx(1) and figures["validation_rejection"] == pytest.approx(0.01)
    caught = defense.detection_figures(digits.validation)
    assert list(caught) == [
        f"validation_rejection_{a}_linf_{e}" for a in ("fgsm", "pgd") for e in (0.05, 0.1, 0.2, 0.3)
    ]
    assert caught["validation_rejection_pgd_linf_0.3"] > 0.95 and caught["validation_rejection_fgsm_linf_0.3"] > 0.95


def test_it_rejects_exactly_what_scores_above_the_threshold(defense, digits):
    noise = torch.rand(100, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    x = torch.cat([digits.test.images[:100], 0.8 * digits.test.images[:100] + 0.2 * noise])
    above = defense.scores(x)[1][:, 0] > defense.held_out.thresholds([0.01])
    verdict = defense.verdict(x)
    assert 0 < above.sum() < 200
    assert torch.equal(verdict.rejected, above)
    assert torch.equal(verdict.labels, defense.classifier(x).argmax(1))
    assert torch.equal(verdict.scores > 0, above)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2])
def test_the_stated_rate_is_met_on_validation_images_and_holds_on_others(defense, digits, rate):
    """Within three standard deviations of the difference between a share of 200 images and one of 500.

    The threshold is the score of one of the 200, which a change in rounding may put on either side of it.
    """
    other = deployed(defense, rate)
    threshold = other.held_out.thresholds([rate])[0]
    assert (other.held_out.ordered > threshold).float().mean() == pytest.approx(rate)
    scores = other.scores(digits.validation.images)[1][:, 0]
    assert torch.allclose(scores.sort().values, other.held_out.ordered[0], rtol=0, atol=1e-5)
    rejected, clear = other.verdict(digits.validation.images).rejected, (scores - threshold).abs() > 1e-5
    assert clear.sum() >= 199 and (rejected & clear).float().mean() == pytest.approx(rate)
    share = float(other.verdict(digits.test.images).rejected.float().mean())
    assert share == pytest.approx(rate, abs=3 * (rate * (1 - rate) * (1 / 200 + 1 / 500)) ** 0.5)


def test_the_median_clean_image_scores_nothing(defense, digits):
    assert defense.scores(digits.validation.images)[1][:, 0].median().abs() < 1e-5
    assert (defense.held_out.ordered[0].diff() >= 0).all()


def test_the_score_has_a_gradient_however_sure_the_detector_is(defense, digits):
    """A probability that rounds to 1 would have none."""
    x = digits.test.images[:64].clone().requires_grad_(True)
    with torch.no_grad():
        far = PGD(part="classifier").run(Target(defense, 64), x.detach(), digits.test.labels[:64], 0.5, seed=0)
    far.requires_grad_(True)
    (gradient,) = torch.autograd.grad(defense.detection(far, digits.test.labels[:64])[1].sum(), far)
    assert gradient.isfinite().all() and (gradient.flatten(1).norm(dim=1) > 0).all()


def test_its_detection_is_its_answer(defense, digits):
    x = digits.test.images[:40]
    logits, ratios = defense.detection(x, digits.test.labels[:40])
    assert defense.detectors == ("adversarial",) and ratios.shape == (40, 1)
    assert torch.equal(logits, defense(x))
    assert torch.equal(ratios[:, 0] > 1, defense.verdict(x).rejected)


def test_its_gradient_is_the_exact_one(defense, digits):
    exact = AuxiliaryDetector(defense.spec)
    exact.load_state_dict(defense.state_dict())
    exact.double().requires_grad_(False)
    x = digits.test.images[:1].double().clamp(0.01, 0.99).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda z: exact.detection(z, torch.zeros(1, dtype=torch.int64)), x)


def test_the_images_it_learns_from_are_adversarial_within_their_size(defense, digits):
    x, y = digits.validation.images, digits.validation.labels
    for attack in defense.training_attacks():
        found = attack.run(Target(defense, len(x)), x, y, 0.2, seed=0)
        assert inside(found, x, "linf", 0.2).all()
        assert (defense.classifier(found).argmax(1) == y).float().mean() < 0.5


def test_weights_come_from_the_training_images_and_the_seed_and_the_threshold_from_validation(digits):
    torch.manual_seed(1)
    first = fitted(digits)
    torch.manual_seed(2)
    again = fitted(digits, validation=select(digits.validation, range(30)))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert first.held_out.ordered.shape == (1, 200) and again.held_out.ordered.shape == (1, 30)
    assert all(parameter.requires_grad for parameter in first.parameters())
    other = fitted(digits, seed=1)
    assert not any(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_nothing_is_rejected_before_the_threshold_is_set(digits):
    assert not AuxiliaryDetector(SPEC).verdict(digits.test.images[:64]).rejected.any()


@pytest.mark.parametrize("batch_size", [1, 8, 30, 64])
def test_answers_are_the_same_bits_in_any_batch(defense, digits, batch_size):
    x = digits.test.images[::5]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    assert torch.equal(blockwise(defense, x[order], batch_size), blockwise(defense, x)[order])


def test_it_catches_who_does_not_know_it_and_not_who_does(defense, digits):
    x, y = digits.test.images[::10], digits.test.labels[::10]
    oblivious = PGD(part="classifier", steps=20).run(Target(defense, 50), x, y, 0.3, seed=0)
    adaptive = PGD(steps=40).run(Target(defense, 50), x, y, 0.3, seed=0)
    assert defense.verdict(oblivious).rejected.float().mean() > 0.95
    assert defense.verdict(adaptive).wrong(y).float().mean() > 0.6
