"""MagNet: rejections where a detector says so, thresholds from validation images, and no wall for who knows it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from manifold_bench.attacks.batching import blockwise
from manifold_bench.attacks.gradient import PGD
from manifold_bench.attacks.target import Target
from manifold_bench.bench.datasets.base import select
from manifold_bench.bench.datasets.digits import Digits
from manifold_bench.defenses.base import LabelledImages, Progress
from manifold_bench.defenses.magnet import Autoencoder, MagNet, jensen_shannon
from manifold_bench.defenses.weights import from_zoo

SPEC = MagNet.Spec(shape=(1, 8, 8), num_classes=10, width=8, hidden=32)


def fitted(digits: Digits, seed: int = 0, validation: LabelledImages | None = None) -> MagNet:
    """Hardly trained."""
    defense = MagNet(SPEC)
    train = select(digits.train, range(0, 1000, 4))
    defense.fit(train, validation or digits.validation, 0.005, seed, Progress())
    return defense


@pytest.fixture(scope="module")
def defense() -> MagNet:
    """As it comes out of the training; its 200 validation images set the thresholds."""
    return from_zoo("magnet", "digits")


@pytest.fixture
def colour() -> MagNet:
    """Untrained, with thresholds that random images lie on both sides of."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        spec = replace(SPEC, shape=(3, 9, 8), num_classes=4, rate_l2=0.2, rate_l1=0.2, rate_jsd10=0.2, rate_jsd40=0.2)
        defense = MagNet(spec).eval().requires_grad_(False)
    defense.classifier.output.weight *= 100  # for divergences far above rounding
    defense.held_out.keep(defense.scores(colours(40, seed=1))[1])
    return defense


def colours(n: int, seed: int) -> torch.Tensor:
    return torch.rand(n, 3, 9, 8, generator=torch.Generator().manual_seed(seed))


def deployed(defense: MagNet, **rates: float) -> MagNet:
    """The same weights with other rates."""
    other = MagNet(replace(defense.spec, **rates))
    other.load_state_dict(defense.state_dict())
    return other.eval().requires_grad_(False)


def test_it_learns(defense, digits):
    verdict = defense.verdict(digits.test.images)
    assert defense.rejects and not defense.training and defense.detectors == ("l2", "l1")
    right = verdict.labels == digits.test.labels
    assert right.float().mean() > 0.9
    assert verdict.rejected.float().mean() < 0.02


def test_an_autoencoder_removes_noise(defense, digits):
    x = digits.test.images
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    noisy = (x + 0.1 * noise).clamp(0, 1)
    for autoencoder in (defense.reformer, defense.second):
        assert (autoencoder(noisy) - x).square().mean() < 0.7 * x.var()
    assert (defense.second(noisy) - x).square().mean() < (noisy - x).square().mean()


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 9, 8), (2, 7, 13)])
@pytest.mark.parametrize("pooled", [True, False])
def test_reconstructions_have_the_shape_of_the_image(shape, pooled):
    x = torch.rand(2, *shape)
    assert Autoencoder(shape[0], 3, pooled)(x).shape == x.shape


def test_it_rejects_exactly_what_exceeds_one_of_the_thresholds(defense, digits):
    defense = deployed(defense, rate_l2=0.05, rate_l1=0.05)
    noise = torch.rand(100, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    x = torch.cat([digits.test.images, 0.8 * digits.test.images[:100] + 0.2 * noise])
    logits, scores = defense.scores(x)
    above = scores > defense.held_out.thresholds(defense.rates)
    assert (above[:, 0] & ~above[:, 1]).any() and (above[:, 1] & ~above[:, 0]).any() and (~above).all(1).any()
    verdict = defense.verdict(x)
    assert torch.equal(verdict.rejected, above.any(1))
    assert torch.equal(verdict.labels, logits.argmax(1))


def test_a_colour_image_is_rejected_by_any_of_four_detectors(colour):
    assert colour.detectors == ("l2", "l1", "jsd10", "jsd40")
    x = colours(200, seed=2)
    above = colour.scores(x)[1] > colour.held_out.thresholds(colour.rates)
    assert above.any(0).all() and not above.any(1).all()
    assert torch.equal(colour.verdict(x).rejected, above.any(1))


def test_scores_are_what_the_paper_says(defense, colour, digits):
    x = digits.test.images[:20]
    logits, scores = defense.scores(x)
    assert torch.equal(logits, defense.classifier(defense.reformer(x)))
    assert torch.allclose(scores[:, 0], (x - defense.reformer(x)).square().mean((1, 2, 3)))
    assert torch.allclose(scores[:, 1], (x - defense.second(x)).abs().mean((1, 2, 3)))
    x = colours(20, seed=3)
    plain, reformed = colour.classifier(x), colour.classifier(colour.reformer(x))
    for column, temperature in ((2, 10.0), (3, 40.0)):
        p, q = ((z / temperature).softmax(1).double().numpy() for z in (plain, reformed))
        expected = torch.from_numpy(jensenshannon(p, q, axis=1) ** 2).float()
        assert torch.allclose(colour.scores(x)[1][:, column], expected, rtol=1e-2, atol=1e-7)


LOGITS = st.lists(st.floats(-30, 30), min_size=4, max_size=4)


@given(first=LOGITS, second=LOGITS)
@settings(max_examples=50)
def test_the_divergence_is_symmetric_bounded_and_that_of_scipy(first, second):
    a, b = (torch.tensor([row], dtype=torch.float64) for row in (first, second))
    value = jensen_shannon(a, b).item()
    assert -1e-12 <= value <= math.log(2) + 1e-12
    assert value == pytest.approx(jensen_shannon(b, a).item(), abs=1e-12)
    # SciPy takes the square root of a divergence that may round to less than 0, which gives NaN
    expected = np.nan_to_num(jensenshannon(a[0].softmax(0), b[0].softmax(0))) ** 2
    assert value == pytest.approx(expected, abs=1e-9)


def test_thresholds_are_those_of_the_validation_images(defense, digits):
    """Two in a hundred: 4 of the 200 are above each."""
    scores = defense.scores(digits.validation.images)[1]
    other = deployed(defense, rate_l2=0.02, rate_l1=0.01)
    assert torch.allclose(
        other.held_out.thresholds(other.rates), torch.stack([scores[:, 0].sort()[0][-5], scores[:, 1].sort()[0][-3]])
    )
    assert (defense.held_out.thresholds(defense.rates) == defense.held_out.ordered[:, -1]).all()  # 0.1 % of 200 is none


def test_stated_rates_hold_on_images_it_has_not_seen(defense, digits):
    loose = deployed(defense, rate_l2=0.05, rate_l1=0.05)
    share = float(loose.verdict(digits.test.images).rejected.float().mean())
    assert 0.02 < share < 0.16  # between 5 % (the same images) and 10 % (others), three standard deviations around


def test_weights_come_from_the_training_images_and_the_seed_and_thresholds_from_validation(digits):
    torch.manual_seed(1)
    first = fitted(digits)
    torch.manual_seed(2)
    again = fitted(digits, validation=select(digits.validation, range(30)))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert first.held_out.ordered.shape == (2, 200) and again.held_out.ordered.shape == (2, 30)
    other = fitted(digits, seed=1)
    assert not any(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_nothing_is_rejected_before_thresholds_are_set(digits):
    assert not MagNet(SPEC).verdict(digits.test.images[:64]).rejected.any()


@pytest.mark.parametrize("batch_size", [1, 8, 30, 64])
def test_answers_are_the_same_bits_in_any_batch(defense, digits, batch_size):
    x = digits.test.images[::5]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    assert torch.equal(blockwise(defense, x[order], batch_size), blockwise(defense, x)[order])


def test_its_detection_is_its_answer(defense, digits):
    x = digits.test.images[:40]
    logits, ratios = defense.detection(x, digits.test.labels[:40])
    assert torch.equal(logits, defense(x)) and ratios.shape == (40, 2)
    assert torch.equal((ratios > 1).any(1), defense.verdict(x).rejected)


def test_its_gradient_is_the_exact_one(defense, digits, colour):
    """Of logits and of every detector, in double precision."""
    for own, images in ((defense, digits.test.images[:1]), (colour, colours(1, seed=4))):
        exact = MagNet(own.spec)
        exact.load_state_dict(own.state_dict())
        exact.double().requires_grad_(False)
        x = images.double().clamp(0.01, 0.99).requires_grad_(True)
        assert torch.autograd.gradcheck(lambda z, d=exact: d.detection(z, torch.zeros(1, dtype=torch.int64)), x)


def test_the_reconstruction_is_what_it_sees(defense, digits):
    x = digits.test.images[:8]
    assert torch.equal(defense.perceived(x), defense.reformer(x))


def test_it_stops_who_does_not_know_it_and_not_who_does(defense, digits):
    x, y = digits.test.images[::10], digits.test.labels[::10]
    oblivious = PGD(part="classifier", steps=20).run(Target(defense, 50), x, y, 0.3, seed=0)
    adaptive = PGD(steps=40).run(Target(defense, 50), x, y, 0.3, seed=0)
    assert defense.verdict(oblivious).wrong(y).float().mean() < 0.1
    assert defense.verdict(adaptive).wrong(y).float().mean() > 0.6
