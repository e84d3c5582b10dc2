"""Feature squeezing: the paper's squeezers and score, thresholds from validation images, no wall for who knows it."""

from __future__ import annotations

import pytest
import torch
from scipy.ndimage import median_filter

from manifold_bench.attacks.batching import blockwise
from manifold_bench.attacks.gradient import PGD
from manifold_bench.attacks.selective import SelectivePGD
from manifold_bench.attacks.target import Target
from manifold_bench.bench.datasets.mnist import Mnist5k
from manifold_bench.defenses.base import Progress
from manifold_bench.defenses.feature_squeezing import FeatureSqueezing, fewer_bits, median, smooth_bits
from manifold_bench.defenses.weights import fill_from_zoo, freeze, from_zoo


@pytest.fixture(scope="module")
def defense(digits) -> FeatureSqueezing:
    return fitted(digits)


def fitted(digits, **parameters: float) -> FeatureSqueezing:
    """The zoo's classifier, with thresholds from the digits' validation images."""
    defense = FeatureSqueezing(FeatureSqueezing.Spec(shape=(1, 8, 8), num_classes=10, **parameters))
    fill_from_zoo(defense.classifier, "digits")
    defense.fit(digits.train, digits.validation, 1.0, 0, Progress())
    return freeze(defense)


@pytest.mark.parametrize("window", [2, 3])
@pytest.mark.parametrize("shape", [(2, 1, 5, 6), (2, 3, 4, 4)])
def test_the_median_is_that_of_scipy(window, shape):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(window))
    assert torch.equal(median(x, window), torch.from_numpy(median_filter(x.numpy(), (1, 1, window, window))))


def test_one_bit_is_black_or_white_and_eight_are_those_of_a_file():
    x = torch.tensor([0.0, 0.1, 0.49, 0.51, 1.0])
    assert fewer_bits(x, 1).tolist() == [0, 0, 0, 1, 1]
    file = torch.arange(256) / 255
    assert torch.equal(fewer_bits(file, 8), file)


@pytest.mark.parametrize("bits", [1, 2, 5])
def test_the_smooth_step_rises_where_the_rounding_does(bits):
    step = 1 / (2**bits - 1)
    x = torch.linspace(0, 1, 1001, dtype=torch.float64)[1:-1].requires_grad_(True)
    smooth = smooth_bits(x, bits)
    assert ((smooth - fewer_bits(x, bits)).abs() <= 0.5 * step + 1e-9).all()
    (slope,) = torch.autograd.grad(smooth.sum(), x)
    near = ((x / step) % 1 - 0.5).abs()
    assert slope.min() > 0 and slope[near < 0.05].min() > 10 * slope[near > 0.45].max()


def test_the_score_is_the_distance_between_the_softmaxes_by_hand(defense, digits):
    x = digits.test.images[:5]
    logits, scores = defense.scores(x)
    plain = defense.classifier(x).softmax(1).tolist()
    for column, copy in enumerate(defense.squeezed(x)):
        other = defense.classifier(copy).softmax(1).tolist()
        by_hand = [sum(abs(a - b) for a, b in zip(*rows, strict=True)) for rows in zip(plain, other, strict=True)]
        assert scores[:, column].tolist() == pytest.approx(by_hand, abs=1e-5)
    assert torch.allclose(logits, defense.classifier(x), atol=1e-5)


@pytest.mark.parametrize("rate", [0.02, 0.05, 0.2])
def test_a_share_of_validation_images_is_rejected_and_no_more(digits, rate):
    rejected = fitted(digits, rejection_rate=rate).verdict(digits.validation.images).rejected.float().mean()
    assert rate - 1.5 / len(digits.validation) < rejected <= rate


def test_gradients_reach_saturated_answers_and_lead_back_to_agreement(defense, digits):
    """Where the softmaxes of x and of its copy are one-hot at two classes, the distance itself is flat."""
    x, y = digits.test.images[:40], digits.test.labels[:40]
    far = PGD(part="classifier", steps=20).run(Target(defense, len(x)), x, y, 0.4, seed=0)
    far.requires_grad_(True)
    scores = defense.scores(far)[1]
    (gradient,) = torch.autograd.grad(scores.sum(), far)
    rejected = scores.detach().amax(1) > 1.9
    assert rejected.any() and (gradient[rejected].flatten(1).abs().amax(1) > 1e-3).all()


def test_who_knows_the_detector_gets_past_it(defense, digits):
    x, y = digits.test.images[:40], digits.test.labels[:40]

    def beaten(attack) -> float:
        found = attack.run(Target(defense, len(x)), x, y, 0.3, seed=0)
        return float(defense.verdict(found).wrong(y).float().mean())

    oblivious, adaptive = beaten(PGD(part="classifier", steps=20)), beaten(SelectivePGD(steps=40))
    assert adaptive > 0.8 and adaptive >= oblivious


def test_an_l2_attack_that_knows_the_detector_beats_it_on_mnist_more_often_than_an_oblivious_one():
    data = Mnist5k()
    rows = torch.from_numpy(data.chosen(8))
    x, y, defense = data.test.images[rows], data.test.labels[rows], from_zoo("feature-squeezing", "mnist")
    beaten = []
    for attack in (PGD(norm="l2", part="classifier"), SelectivePGD(norm="l2", steps=50)):
        found = attack.run(Target(defense, len(x)), x, y, 3.0, seed=0)
        beaten.append(int(defense.verdict(found).wrong(y).sum()))
    assert beaten[0] < beaten[1] and beaten[1] >= 7


def test_answers_do_not_depend_on_the_batch(defense, digits):
    x = digits.test.images[:33]
    assert torch.equal(blockwise(defense, x), torch.cat([blockwise(defense, image) for image in x.split(7)]))
