"""The selective Gaussian-mixture VAE: thresholds as the paper sets them, rejections where they say so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from attacks.target import blockwise
from bench.datasets.base import select
from bench.datasets.digits import Digits
from defenses.base import LabelledImages, Progress
from defenses.gmvae import GaussianMixtureVAE
from defenses.weights import weights_hash

SPEC = GaussianMixtureVAE.Spec(shape=(1, 8, 8), num_classes=10, width=8, hidden=32)


def fitted(
    digits: Digits, seed: int = 0, budget: float = 0.1, validation: LabelledImages | None = None
) -> GaussianMixtureVAE:
    defense = GaussianMixtureVAE(SPEC)
    train = select(digits.train, range(0, 1000, 4))
    defense.fit(train, validation or digits.validation, budget, seed, Progress())
    return defense


@pytest.fixture(scope="module")
def defense(digits) -> GaussianMixtureVAE:
    defense = GaussianMixtureVAE(SPEC)
    defense.fit(digits.train, digits.validation, 1.0, 0, Progress())
    return defense.requires_grad_(False)


def scores(defense: GaussianMixtureVAE, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Labels without rejection, Mahalanobis distances², reconstruction errors."""
    z = defense.encoder(x)
    labels = defense.classifier(x).argmax(1)
    return labels, *defense.detector_scores(x, z, labels)


def test_it_learns(defense, digits):
    logits = blockwise(defense, digits.test.images)
    assert logits.shape == (500, 11) and defense.rejects and not defense.training
    assert (logits[:, :10].argmax(1) == digits.test.labels).float().mean() > 0.6


def test_the_verdict_is_the_largest_output(defense, digits):
    x = torch.cat([digits.test.images[:40], torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))])
    logits, verdict = defense(x), defense.verdict(x)
    assert torch.equal(verdict.rejected, logits.argmax(1) == 10) and 0 < verdict.rejected.sum() < 64
    assert torch.equal(verdict.labels, logits[:, :10].argmax(1))


def test_it_rejects_exactly_what_exceeds_one_of_the_thresholds(defense, digits):
    noise = torch.rand(100, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    x = torch.cat([digits.test.images, 0.7 * digits.test.images[:100] + 0.3 * noise])
    labels, distance, error = scores(defense, x)
    far, unlike = distance > defense.tau_enc, error > defense.tau_dec
    assert (far & ~unlike).any() and (unlike & ~far).any() and (~far & ~unlike).any()
    verdict = defense.verdict(x)
    assert torch.equal(verdict.rejected, far | unlike)
    assert torch.equal(verdict.labels, labels)


def test_logits_are_squared_distances_to_the_means(defense, digits):
    x = digits.test.images[:16]
    z = defense.encoder(x)
    means = torch.eye(10)
    expected = -torch.cdist(z.double(), means.double()).square()
    assert torch.allclose(defense(x)[:, :10].double(), expected, atol=1e-4)
    assert torch.equal(defense.classifier(x), defense(x)[:, :10])


@pytest.mark.parametrize(("latent", "tau"), [(10, 26.90), (12, 30.10)])
def test_the_encoding_threshold_is_the_chi_square_quantile(digits, latent, tau):
    defense = GaussianMixtureVAE(replace(SPEC, latent=latent))
    defense.set_thresholds(digits.train)
    assert float(defense.tau_enc) == pytest.approx(tau, abs=0.01)


def test_the_decoding_threshold_is_the_quantile_of_the_training_errors(defense, digits):
    x = digits.train.images
    errors = (x - defense.decoder(defense.encoder(x))).square().flatten(1).sum(1).numpy()
    assert float(defense.tau_dec) == pytest.approx(float(np.quantile(errors, 0.9973)), rel=1e-4)
    assert (errors > float(defense.tau_dec)).sum() == 3  # 0.27 % of 1,097


def test_covariances_are_those_of_the_training_encodings_about_their_means(defense, digits):
    """Then the mean of the squared Mahalanobis distances of a class is the number of latents: tr(Σ⁻¹ Σ) = k."""
    x, y = digits.train.images, digits.train.labels
    distance, _ = defense.detector_scores(x, defense.encoder(x), y)
    for label in range(10):
        assert float(distance[y == label].mean()) == pytest.approx(10, rel=0.02)


def test_the_prior_covariance_is_the_noise(digits):
    defense = GaussianMixtureVAE(replace(SPEC, covariance="prior"))
    defense.set_thresholds(digits.train)
    assert torch.allclose(defense.precision, 3000 * torch.eye(10).expand(10, 10, 10))
    x, y = digits.train.images[:20], digits.train.labels[:20]
    z = defense.encoder(x)
    distance, _ = defense.detector_scores(x, z, y)
    assert torch.allclose(distance, 3000 * (z - torch.eye(10)[y]).square().sum(1), rtol=1e-4)


def test_nothing_is_rejected_before_thresholds_are_set(digits):
    assert not GaussianMixtureVAE(SPEC).verdict(digits.test.images[:64]).rejected.any()


def test_thresholds_and_weights_come_from_the_training_images_and_the_seed_alone(digits):
    torch.manual_seed(1)
    first = fitted(digits)
    torch.manual_seed(2)
    again = fitted(digits, validation=select(digits.validation, range(30)))
    assert weights_hash(first) == weights_hash(again) != weights_hash(fitted(digits, seed=1))


def test_figures_are_shares_that_sum_to_one(defense, digits):
    figures = defense.figures(digits.validation)
    parts = [figures[f"validation_{part}"] for part in ("accuracy", "error", "rejection")]
    assert sum(parts) == pytest.approx(1)
    assert figures["validation_accuracy_without_rejection"] >= figures["validation_accuracy"]
    verdict = defense.verdict(digits.validation.images)
    assert figures["validation_rejection"] == pytest.approx(float(verdict.rejected.float().mean()))


@pytest.mark.parametrize("batch_size", [1, 8, 30, 64])
def test_answers_are_the_same_bits_in_any_batch(defense, digits, batch_size):
    x = digits.test.images[::5]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    assert torch.equal(blockwise(defense, x[order], batch_size), blockwise(defense, x)[order])


def test_gradients_reach_the_input_through_both_detectors(defense, digits):
    x = digits.test.images[:64].clone().requires_grad_(True)
    outputs = defense(x)
    (gradient,) = torch.autograd.grad((outputs[:, 10] - outputs[:, :10].amax(1)).sum(), x)
    assert gradient.isfinite().all() and (gradient.flatten(1).norm(dim=1) > 0).all()


def test_the_reconstruction_is_what_it_sees(defense, digits):
    x = digits.test.images[:8]
    assert torch.equal(defense.perceived(x), defense.decoder(defense.encoder(x)))
    assert defense.perceived(x).shape == x.shape


def test_fewer_latents_than_classes_are_refused():
    with pytest.raises(ValueError, match="latent"):
        GaussianMixtureVAE(replace(SPEC, latent=9))
