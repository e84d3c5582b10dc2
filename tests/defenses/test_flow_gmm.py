"""FlowGMM: a likelihood that follows from the change of variables, and thresholds from held-out images."""

from __future__ import annotations

import math

import pytest
import torch

from manifold_bench.attacks.selective import SelectivePGD
from manifold_bench.attacks.target import Target
from manifold_bench.defenses.base import Progress
from manifold_bench.defenses.flow_gmm import FLOOR, FlowGMM, FlowGMMSpec, MixtureFlow, evidence
from manifold_bench.defenses.training import initialise

SPEC = FlowGMMSpec(shape=(1, 8, 8), num_classes=10, couplings=4, hidden=64, rate=3e-3, rejection_rate=0.05)


def flow(shape, couplings=4, classes=3) -> MixtureFlow:
    model = MixtureFlow(FlowGMMSpec(shape=shape, num_classes=classes, couplings=couplings, hidden=16))
    initialise(model, 1)
    return model.double().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def trained(digits) -> FlowGMM:
    defense = FlowGMM(SPEC)
    figures = defense.fit(digits.train, digits.validation, 0.5, 0, Progress())
    assert figures["validation_accuracy_without_rejection"] > 0.9
    assert figures["validation_rejection"] == pytest.approx(0.05, abs=0.01)
    return defense


@pytest.mark.parametrize("shape", [(1, 2, 2), (3, 2, 2), (1, 3, 3)])
@pytest.mark.parametrize("couplings", [2, 5])
def test_the_log_determinant_is_that_of_the_jacobian(shape, couplings):
    model, x = flow(shape, couplings), torch.rand(4, *shape, dtype=torch.float64)
    z, log_det = model.latents(x)
    jacobians = [torch.func.jacrev(lambda one: model.latents(one[None])[0][0])(image) for image in x]
    expected = [torch.linalg.slogdet(j.reshape(z.shape[1], -1))[1] for j in jacobians]
    assert torch.allclose(log_det, torch.stack(expected), atol=1e-9)
    normal = torch.distributions.Normal(model.means, 1.0)
    assert torch.allclose(model(x), normal.log_prob(z[:, None]).sum(2) + log_det[:, None])


def test_the_likelihood_of_all_images_of_two_pixels_sums_to_the_mass_inside_the_box():
    """The sum of p(x|c) over a fine grid is the share of draws of class c whose image under f⁻¹ lies in the box."""
    model = flow((1, 1, 2), classes=2)
    side = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    grid = torch.cartesian_prod(side, side).view(-1, 1, 1, 2)
    mass = model(grid).exp().mean(0)

    z = model.means[:, None] + torch.randn(
        2, 40_000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    a, b = z[..., :1], z[..., 1:]
    for network in reversed(model.couplings.networks):
        scale, offset = network(b).chunk(2, dim=-1)
        a, b = b, (a - offset) * torch.exp(-2 * torch.tanh(scale / 2))
    share = (torch.cat([a, b], dim=-1).sigmoid() - FLOOR) / (1 - 2 * FLOOR)
    pixels = 1.1 * share - 0.05
    inside = ((pixels >= 0) & (pixels <= 1)).all(-1).double().mean(1)
    assert torch.allclose(mass, inside, atol=0.01) and (mass > 0.05).all()


def test_the_answer_is_the_likeliest_class_and_rejects_what_is_unlikely(trained, digits):
    x = digits.test.images[:200]
    logits, likely = trained(x), trained.classifier(x)
    assert torch.equal(logits[:, :10], likely)
    rejected = logits.argmax(1) == 10
    threshold = evidence(trained.classifier(digits.validation.images)).quantile(0.05)
    clear = (evidence(likely) - threshold).abs() > 0.5
    assert torch.equal(rejected[clear], (evidence(likely) < threshold)[clear])
    assert (trained(torch.rand(50, 1, 8, 8)).argmax(1) == 10).all()
    _, ratios = trained.detection(x, logits[:, :10].argmax(1))
    assert torch.equal(ratios[:, 0] > 1, rejected)


def test_evidence_is_the_mean_of_the_classes_likelihoods():
    assert float(evidence(torch.tensor([[0.5, 0.1]]).log())) == pytest.approx(math.log(0.3))


def test_an_attack_that_knows_the_likelihood_finds_likely_images_of_a_wrong_class(trained, digits):
    x, y = digits.test.images[:24], digits.test.labels[:24]
    target = Target(trained, 24)
    found = SelectivePGD(steps=40, targets=3).run(target, x, y, 0.2, 0)
    answers = trained(found).argmax(1)
    assert ((answers != y) & (answers != 10)).double().mean() > 0.5


def test_the_noise_of_the_training_keeps_latents_finite(trained, digits):
    x = digits.test.images[:8]
    ends = [trained.classifier.latents(x, offset)[0] for offset in (0.0, 0.5, 1.0)]
    assert all(end.isfinite().all() for end in ends) and not torch.equal(ends[0], ends[2])
