"""Invert and classify: rejects by distance, classifies projections, and hands out honest gradients."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
import torch

from manifold_bench.attacks.batching import blockwise
from manifold_bench.attacks.gradient import PGD
from manifold_bench.attacks.target import Target
from manifold_bench.bench.datasets.digits import Digits
from manifold_bench.defenses.base import Progress
from manifold_bench.defenses.invert_and_classify import InvertAndClassify
from manifold_bench.defenses.solvers import AdamSolver, MomentumSolver, QuasiNewtonSolver
from manifold_bench.defenses.training import initialise
from manifold_bench.defenses.variational_autoencoder import VariationalAutoencoderSettings
from manifold_bench.defenses.weights import fill_from_zoo, freeze

SPEC = InvertAndClassify.Spec(
    shape=(1, 8, 8),
    num_classes=10,
    solver=MomentumSolver(steps=40, rate=20.0, starts=2),
    generator=VariationalAutoencoderSettings(
        latent=6, width=4, epochs=60, rate=5e-3, encoder_width=4, encoder_hidden=32, encoder_epochs=6
    ),
)


def with_parts(spec=SPEC, digits: Digits | None = None, budget: float = 0.1) -> InvertAndClassify:
    """Its classifier from the zoo; the generator trained on the digits, if they are given."""
    defense = InvertAndClassify(spec)
    fill_from_zoo(defense.classifier, "digits")
    if digits is not None:
        defense.generator.fit(digits.train, digits.validation, budget, 0, Progress())
    return defense


def fitted(digits: Digits, spec=SPEC) -> InvertAndClassify:
    defense = with_parts(spec)
    initialise(defense.generator, 0)
    defense.fit(digits.train, digits.validation, 1.0, 0, Progress())
    return defense


@pytest.fixture(scope="module")
def defense(digits) -> InvertAndClassify:
    defense = with_parts(digits=digits)
    defense.fit(digits.train, digits.validation, 1.0, 0, Progress())
    assert isinstance(freeze(defense), InvertAndClassify)
    return defense


@pytest.fixture(scope="module")
def mixed(digits) -> torch.Tensor:
    """Digits, and images no generator of digits reaches."""
    return torch.cat([digits.test.images[::12], torch.rand(22, 1, 8, 8, generator=torch.Generator().manual_seed(0))])


def test_the_verdict_is_the_largest_of_its_outputs(defense, mixed):
    logits, verdict = defense(mixed), defense.verdict(mixed)
    assert logits.shape == (64, 11) and defense.rejects
    assert torch.equal(verdict.rejected, logits.argmax(1) == 10) and 0 < verdict.rejected.sum() < 64
    assert torch.equal(verdict.labels, logits[:, :10].argmax(1))


def test_it_classifies_the_projection_and_rejects_by_its_distance(defense, mixed):
    seen = defense.perceived(mixed)
    assert torch.equal(defense(mixed)[:, :10], defense.classifier(seen))
    distance = (mixed - seen).flatten(1).norm(dim=1)
    assert torch.equal(defense.verdict(mixed).rejected, distance > defense.eta)


def test_one_percent_of_the_validation_images_is_rejected(defense, digits):
    """η is such that one in a hundred of 200 distances lies above it."""
    distance = (defense.perceived(digits.validation.images) - digits.validation.images).flatten(1).norm(dim=1)
    assert float(defense.eta) == pytest.approx(float(distance.sort().values[-3]), rel=1e-5)
    rejected = defense.verdict(digits.validation.images).rejected
    at_eta = distance.argsort()[-3]  # its distance is η, so that rounding decides
    assert torch.equal(rejected.index_fill(0, at_eta, False).nonzero()[:, 0], distance.argsort()[-2:].sort().values)


def test_without_rejection_it_never_rejects_and_has_no_reject_score(digits, mixed):
    defense = fitted(digits, replace(SPEC, reject=False, solver=MomentumSolver(steps=3)))
    assert not defense.rejects and defense.eta.isinf()
    assert defense(mixed).shape == (64, 10)
    assert not defense.verdict(mixed).rejected.any()


@pytest.mark.parametrize("batch_size", [1, 8, 30, 64])
def test_answers_are_the_same_bits_in_any_batch(defense, mixed, batch_size):
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(blockwise(defense, mixed[order], batch_size), blockwise(defense, mixed)[order])


@pytest.mark.parametrize("mode", ["identity", "unrolled", "gauss-newton", "implicit"])
def test_an_attack_on_an_input_is_the_same_in_any_company(defense, digits, mode):
    x, y = digits.test.images[::40], digits.test.labels[::40]
    attack = PGD(steps=3, gradient=mode, inner_steps=4)
    together = attack.run(Target(defense, len(x)), x, y, 0.1, 0)
    alone = attack.run(Target(defense, 1), x[4:5], y[4:5], 0.1, 0)
    order = torch.arange(len(x) - 1, -1, -1)
    shuffled = attack.run(Target(defense, len(x)), x[order], y[order], 0.1, 0)
    assert torch.equal(alone[0], together[4]) and torch.equal(shuffled, together[order])


def test_the_gradient_of_the_distance_is_the_slope_of_the_distance():
    """Envelope theorem: at the optimum the derivative of min_z ‖G(z) − x‖ needs no derivative of z."""
    solver = MomentumSolver(steps=1500, rate=3.0, momentum=0.95)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        defense = (
            InvertAndClassify(replace(SPEC, generator=replace(SPEC.generator, latent=2, width=2), solver=solver))
            .double()
            .eval()
        )
    freeze(defense)
    network = defense.generator.generator
    network.dense.weight *= 4
    for layer in network.layers:
        layer.weight *= 3
    defense.held_out.keep(torch.full((1, 1), 0.5, dtype=torch.float64))
    random = torch.Generator().manual_seed(1)
    x = defense.generator(torch.tensor([[0.4, -0.3]], dtype=torch.float64))
    x = (x + 0.1 * torch.randn(x.shape, generator=random, dtype=torch.float64)).clamp(0, 1)
    directions = torch.randn(5, 1, 8, 8, generator=random, dtype=torch.float64)
    directions /= directions.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    h = 1e-4

    def excess(images: torch.Tensor) -> torch.Tensor:
        outputs = defense(images)
        return outputs[:, 10] - outputs[:, :10].amax(1)

    one = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(excess(one).sum(), one)
    with torch.no_grad():
        slopes = (excess(x + h * directions) - excess(x - h * directions)) / (2 * h)
    assert torch.allclose((gradient * directions).flatten(1).sum(1), slopes, atol=1e-4)
    assert slopes.abs().amax() > 0.05


def test_the_modes_agree_on_the_answer_and_differ_in_the_gradient(defense, digits):
    x = digits.test.images[::50].clone().requires_grad_(True)
    answers, gradients = [], []
    for mode in ("identity", "unrolled", "gauss-newton", "implicit"):
        logits, ended = defense.attack_forward(x, mode, None, 3)
        answers.append(logits.detach())
        gradients.append(torch.autograd.grad(logits[:, :10].square().sum(), x)[0])
        assert ended.shape == (10, 1, 6)
    agreeing = answers[0].argmax(1) == answers[1].argmax(1)
    assert agreeing.float().mean() >= 0.8  # three more steps of the descent may move one
    assert all(g.isfinite().all() and g.flatten(1).any(1).all() for g in gradients)
    assert torch.equal(answers[0], answers[2]) and torch.equal(answers[0], answers[3])
    assert not any(torch.allclose(one, other, rtol=0.1) for one, other in combinations(gradients, 2))


def test_unrolled_through_every_step_is_the_slope_of_the_answer():
    """A steady descent ends at its best point: the answer is that of the last step, and so is its derivative."""
    steady = MomentumSolver(steps=25, rate=0.5, momentum=0.0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        defense = InvertAndClassify(replace(SPEC, solver=steady, reject=False)).double().eval()
    freeze(defense)
    random = torch.Generator().manual_seed(1)
    x, aside = (torch.rand(2, 1, 8, 8, generator=random, dtype=torch.float64) for _ in range(2))
    point = x.clone().requires_grad_(True)
    logits, _ = defense.attack_forward(point, "unrolled", None, steady.steps)
    assert torch.allclose(logits, defense(x), atol=1e-12)
    (gradient,) = torch.autograd.grad(logits[:, 3].sum(), point)
    h = 1e-5
    slopes = (defense(x + h * aside) - defense(x - h * aside))[:, 3] / (2 * h)
    assert torch.allclose((gradient * aside).flatten(1).sum(1), slopes, rtol=1e-4)


@pytest.mark.parametrize("steps", [19, 20, 21, 40])
@pytest.mark.parametrize(
    "solver",
    [
        MomentumSolver(steps=20, rate=2.0, momentum=0.5),
        MomentumSolver(steps=20, rate=2.0, momentum=0.5, drop=0.5),
        AdamSolver(steps=20, rate=0.1),
        QuasiNewtonSolver(steps=20),
        QuasiNewtonSolver(steps=20, starts=2, race=5, origin="prior"),
    ],
    ids=["momentum", "momentum-drop", "adam", "l-bfgs", "l-bfgs-race"],
)
def test_however_many_steps_are_unrolled_the_attack_sees_a_projection_as_near_as_the_deployed_one(
    defense, digits, solver, steps
):
    x = digits.test.images[::50]
    searched = InvertAndClassify(replace(SPEC, solver=solver))
    searched.load_state_dict(defense.state_dict())
    freeze(searched)

    def distance(projected: torch.Tensor) -> float:
        return float((projected - x).flatten(1).norm(dim=1).mean())

    _, reached = searched.attack_forward(x, "unrolled", None, steps)
    assert distance(searched.generator(reached[:, 0])) <= 1.01 * distance(searched.perceived(x))


def test_identity_sends_the_gradient_of_the_classifier_straight_to_the_input(defense, digits):
    x = digits.test.images[:8].clone().requires_grad_(True)
    (through,) = torch.autograd.grad(defense(x)[:, :10].square().sum(), x)
    seen = defense.perceived(x.detach()).requires_grad_(True)
    (own,) = torch.autograd.grad(defense.classifier(seen).square().sum(), seen)
    assert torch.allclose(through, own, rtol=1e-5, atol=1e-6)


def test_a_start_is_gone_on_from(defense, digits):
    x = digits.test.images[:8]
    _, ended = defense.attack_forward(x, "identity", None, 0)
    _, same = defense.attack_forward(x, "identity", ended, 1)

    def errors(z: torch.Tensor) -> torch.Tensor:
        images = defense.generator(z.reshape(-1, 6)).view(8, 1, -1)
        return (images - x.view(8, 1, -1)).square().mean(2)

    assert (errors(same) <= errors(ended) + 1e-7).all()


def test_predictions_work_without_gradients(defense, mixed):
    expected = defense(mixed).detach()
    with torch.no_grad():
        assert torch.equal(defense(mixed), expected)
