"""The selective Gaussian-mixture VAE: thresholds as the paper sets them, rejections where they say so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from manifold_bench.attacks.batching import blockwise
from manifold_bench.bench.datasets.base import select
from manifold_bench.bench.datasets.digits import Digits
from manifold_bench.bench.datasets.mnist import Mnist5k
from manifold_bench.defenses.base import LabelledImages, Progress
from manifold_bench.defenses.gmvae import GaussianMixtureVAE, labelled_rows
from manifold_bench.defenses.weights import from_zoo, weights_hash

SPEC = GaussianMixtureVAE.Spec(shape=(1, 8, 8), num_classes=10, width=8, hidden=32, epochs=45)


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
    return labels, defense.distance(z, labels, defense.spec.covariance), defense.error(x, z)


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
    defense.set_thresholds(digits.train, digits.validation)
    assert float(defense.tau_enc) == pytest.approx(tau, abs=0.01)


def test_the_decoding_threshold_is_the_quantile_of_the_training_errors(defense, digits):
    x = digits.train.images
    errors = (x - defense.decoder(defense.encoder(x))).square().flatten(1).sum(1).numpy()
    assert float(defense.tau_dec) == pytest.approx(float(np.quantile(errors.repeat(10), 0.9973)), rel=1e-4)
    assert (errors > float(defense.tau_dec)).sum() == 3  # 0.27 % of 1,097


def test_covariances_are_those_of_the_training_encodings_about_their_means(defense, digits):
    """They are shrunk as if there were (k + 2) more observations of the average variance, which few images need."""
    x, y = digits.train.images, digits.train.labels
    offsets = (defense.encoder(x) - torch.eye(10)[y]).double().detach()
    copies = 10  # 1,097 images, 10,000 encodings
    for label in range(10):
        own = offsets[y == label]
        n = copies * len(own)
        covariance = own.T @ own / len(own)
        expected = (n * covariance + 12 * covariance.trace() / 10 * torch.eye(10)) / (n + 12)
        assert torch.allclose(torch.linalg.inv(defense.precision[label].double()), expected, rtol=1e-3, atol=1e-7)


def test_the_prior_covariance_is_the_noise(digits):
    defense = GaussianMixtureVAE(replace(SPEC, covariance="prior"))
    x, y = digits.train.images[:20], digits.train.labels[:20]
    z = defense.encoder(x)
    distance = defense.distance(z, y, "prior")
    assert torch.allclose(distance, 3000 * (z - torch.eye(10)[y]).square().sum(1), rtol=1e-4)


def test_more_latents_get_less_noise():
    assert replace(SPEC, latent=100).sigma2 == pytest.approx(1 / 30_000) and SPEC.sigma2 == pytest.approx(1 / 3000)


def as_deployed(defense: GaussianMixtureVAE, **fields) -> GaussianMixtureVAE:
    """The same weights, deployed another way."""
    other = GaussianMixtureVAE(replace(SPEC, **fields))
    other.load_state_dict(defense.state_dict())
    return other.eval().requires_grad_(False)


@pytest.mark.parametrize("covariance", ["empirical", "prior"])
@pytest.mark.parametrize("rate", [0.02, 0.1, 0.3])
def test_a_stated_rejection_rate_is_met_on_held_out_images(defense, digits, covariance, rate):
    other = as_deployed(defense, rejection_rate=rate, covariance=covariance)
    rejected = other.verdict(digits.validation.images).rejected.float().mean()
    assert rate - 0.011 <= float(rejected) <= rate + 1e-6  # 200 images: a step is half a percent


def test_a_stated_rejection_rate_scales_both_thresholds_by_one_factor(defense, digits):
    x, y = digits.test.images[:40], digits.test.labels[:40]
    looser = as_deployed(defense, rejection_rate=0.02)
    ratio = defense.detection(x, y)[1] / looser.detection(x, y)[1]
    assert torch.allclose(ratio, looser.looseness.expand_as(ratio), rtol=1e-4)


def test_detection_gives_the_outputs_and_says_when_each_detector_would_reject(defense, digits):
    x = digits.test.images[:100]
    labels, distance, error = scores(defense, x)
    outputs, ratios = defense.detection(x, labels)
    assert torch.equal(outputs, defense(x)) and len(defense.detectors) == ratios.shape[1] == 2
    assert torch.allclose(ratios[:, 0], distance / defense.tau_enc) and torch.equal(
        ratios[:, 1], error / defense.tau_dec
    )
    others = (labels + 1) % 10
    far = defense.distance(defense.encoder(x), others, "empirical")
    assert torch.allclose(defense.detection(x, others)[1][:, 0], far / defense.tau_enc)


def mnist_gmvae(**fields) -> GaussianMixtureVAE:
    """The zoo's, on 28×28: 8×8 digits are too coarse for their reconstructions to tell them apart."""
    defense = from_zoo("gmvae", "mnist", **fields)
    assert isinstance(defense, GaussianMixtureVAE)
    return defense


@pytest.fixture(scope="module")
def perturbed() -> tuple[torch.Tensor, torch.Tensor]:
    """16 MNIST images under a small FGSM on the encoder: most are rejected, and still digits."""
    data = Mnist5k().test
    index = torch.from_numpy(Mnist5k().chosen(16))
    x, y = data.images[index].requires_grad_(True), data.labels[index]
    loss = torch.nn.functional.cross_entropy(mnist_gmvae().classifier(x), y, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, x)
    return (x + 0.12 * gradient.sign()).clamp(0, 1).detach(), y


def test_what_is_accepted_is_not_reclassified_and_most_of_what_is_rejected_becomes_right(perturbed):
    x, y = perturbed
    before, after = mnist_gmvae().verdict(x), mnist_gmvae(reclassify=True).verdict(x)
    kept = ~before.rejected
    assert torch.equal(before.labels[kept], after.labels[kept]) and not after.rejected[kept].any()
    forced = mnist_gmvae(reclassify=True, reject_after=False).verdict(x)
    assert before.rejected.sum() >= 5 and not forced.rejected.any()
    assert (forced.labels == y)[before.rejected].float().mean() > 0.7
    assert torch.equal(forced.labels[~after.rejected], after.labels[~after.rejected])


def test_what_is_accepted_by_force_alone_is_the_most_suspicious_of_all_that_is_accepted(perturbed):
    noise = torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    x = torch.cat([perturbed[0][:8], noise])
    again, forced = (mnist_gmvae(reclassify=True, reject_after=after).verdict(x) for after in (True, False))
    assert again.rejected[8:].all() and not again.rejected[:8].any() and not forced.rejected.any()
    assert forced.scores[8:].amin() > forced.scores[:8].amax() and forced.scores.amax() <= 0


@pytest.mark.parametrize("pull", [True, False])
def test_reclassification_is_the_nearest_mean_of_the_best_descent(perturbed, pull):
    again = mnist_gmvae(reclassify=True, reject_after=False, pull=pull)
    x = perturbed[0][mnist_gmvae().verdict(perturbed[0]).rejected][:4]
    starts = torch.eye(10).expand(len(x), -1, -1)
    weight = again.spec.alpha / 784 if pull else 0.0

    def pulled(z: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return weight * (z - starts.flatten(0, 1)[rows]).square().sum(1)

    reached = again.spec.descent.solve(again.decoder, x, starts, again.spec.descent.steps, penalty=pulled)
    errors = (again.decoder(reached.flatten(0, 1)).view(len(x), 10, -1) - x.flatten(1)[:, None]).square().mean(2)
    penalties = pulled(reached.flatten(0, 1), torch.arange(10 * len(x)))
    best = reached[torch.arange(len(x)), (errors + penalties.view(-1, 10)).argmin(1)]
    assert torch.equal(again.verdict(x).labels, torch.cdist(best, torch.eye(10)).argmin(1))


@pytest.mark.parametrize("batch_size", [1, 10])
def test_reclassification_is_the_same_bits_in_any_batch(perturbed, batch_size):
    again = mnist_gmvae(reclassify=True, descent={"steps": 5})
    assert torch.equal(blockwise(again, perturbed[0], batch_size), blockwise(again, perturbed[0]))


@pytest.mark.parametrize("mode", ["identity", "unrolled"])
def test_gradients_pass_the_reclassification(perturbed, mode):
    again = mnist_gmvae(reclassify=True, descent={"steps": 20})
    assert again.gradient_modes == ("identity", "unrolled") and again.inference_steps == 20
    x = perturbed[0].clone().requires_grad_(True)
    logits, end = again.attack_forward(x, mode, None, 5)
    (gradient,) = torch.autograd.grad(logits[:, :10].logsumexp(1).sum(), x)
    assert gradient.isfinite().all() and (gradient.flatten(1).norm(dim=1) > 0).all() and end.shape == (16, 10)
    warm, _ = again.attack_forward(x, mode, end, 5)
    assert (warm.argmax(1) == logits.argmax(1)).float().mean() >= 0.7


def test_labels_that_are_not_known_are_not_used(digits):
    spec = replace(SPEC, labelled_per_class=20, epochs=2)
    train = digits.train
    known = labelled_rows(train.labels, 20)
    assert len(known) == 200 and (train.labels[known].bincount() == 20).all()
    scrambled = train.labels.roll(1)
    scrambled[known] = train.labels[known]
    weights = []
    for labels in (train.labels, scrambled):
        defense = GaussianMixtureVAE(spec)
        # the first 20 of a class are the same images in both, or the labels would be
        labels = torch.where(torch.isin(torch.arange(len(labels)), known), labels, torch.full_like(labels, -1))
        defense.fit(LabelledImages(train.images, labels), digits.validation, 1.0, 0, Progress())
        weights.append(weights_hash(defense))
    assert weights[0] == weights[1]


def test_a_variable_posterior_learns_its_variances(digits):
    defense = GaussianMixtureVAE(replace(SPEC, posterior="variable"))
    defense.fit(digits.train, digits.validation, 1.0, 0, Progress())
    outputs = defense.encoder.network(digits.test.images)
    assert outputs.shape == (500, 20) and defense.encoder(digits.test.images).shape == (500, 10)
    assert (outputs[:, 10:].mean(0) < 0).all()  # log(s²/σ²): the decoder wants less noise than the prior has
    assert (defense.classifier(digits.test.images).argmax(1) == digits.test.labels).float().mean() > 0.8


def test_samples_are_drawn_from_the_mixture(defense):
    images = defense.sample(40, seed=0)
    assert images.shape == (40, 1, 8, 8) and torch.equal(images, defense.sample(40, seed=0))
    assert not torch.equal(images, defense.sample(40, seed=1))
    assert (defense.classifier(images).argmax(1) == torch.arange(40) % 10).float().mean() > 0.8


def test_nothing_is_rejected_before_thresholds_are_set(digits):
    assert not GaussianMixtureVAE(SPEC).verdict(digits.test.images[:64]).rejected.any()


def test_thresholds_and_weights_come_from_the_training_images_and_the_seed_alone(digits):
    torch.manual_seed(1)
    first = fitted(digits).state_dict()
    torch.manual_seed(2)
    again = fitted(digits, validation=select(digits.validation, range(30))).state_dict()
    differ = [name for name in first if not torch.equal(first[name], again[name])]
    assert differ == ["held_out.ordered"]
    assert weights_hash(fitted(digits)) != weights_hash(fitted(digits, seed=1))


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
