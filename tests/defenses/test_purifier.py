"""Diffusion purification: the processes where they have a closed form, and the gradients that attacks take."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manifold_bench.attacks.gradient import PGD
from manifold_bench.attacks.target import Target
from manifold_bench.defenses.base import Progress
from manifold_bench.defenses.diffusion import Diffusion, DiffusionSettings, DiffusionSpec
from manifold_bench.defenses.purifier import Purifier, PurifierSpec
from manifold_bench.defenses.training import initialise
from manifold_bench.defenses.weights import fill_from_zoo, freeze

SPEC = PurifierSpec(shape=(1, 8, 8), num_classes=10, diffusion=DiffusionSettings(width=8, epochs=8), time=300, steps=4)


@pytest.fixture
def defense() -> Purifier:
    defense = Purifier(SPEC)
    fill_from_zoo(defense.classifier, "digits")
    initialise(defense.diffusion, 0)
    return freeze(defense)


@pytest.fixture(autouse=True)
def drawn():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def gradient(value: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(value.square().sum(), x)[0]


def test_noised_images_have_the_variance_of_their_time():
    """ᾱ_1 = 1 − 1e-4, and ᾱ_1000 is 4e-5 for the paper's β."""
    model = Diffusion(DiffusionSpec(shape=(1, 8, 8), num_classes=10))
    assert model.kept[0] == 1 and float(model.kept[1]) == pytest.approx(1 - 1e-4)
    assert float(model.kept[1000]) == pytest.approx(4e-5, rel=0.05)
    x = torch.full((4000, 1, 8, 8), 0.5)
    noisy = model.noised(x, torch.full((4000,), 400), torch.randn_like(x))
    kept = float(model.kept[400])
    assert float(noisy.mean()) == pytest.approx(0.5 * kept**0.5, abs=0.01)
    assert float(noisy.var()) == pytest.approx(1 - kept, abs=0.01)


@pytest.mark.parametrize("steps", [1, 3, 50])
def test_a_network_that_knows_the_image_returns_it(defense, monkeypatch, steps):
    """The true noise is (x_t − √ᾱ x) / √(1 − ᾱ); its estimate of the clean image is x at every time."""
    known, model = 2 * torch.rand(6, 1, 8, 8) - 1, defense.diffusion

    def noise(noisy: Tensor, t: Tensor) -> Tensor:
        kept = model.kept[t].view(-1, 1, 1, 1)
        return (noisy - kept.sqrt() * known) / (1 - kept).sqrt()

    monkeypatch.setattr(model, "forward", noise)
    given = torch.rand(6, 1, 8, 8)  # whatever was given
    assert torch.allclose(2 * defense.purified(given, defense.noise(given, steps)) - 1, known, atol=1e-4)


def test_an_inner_step_has_the_distribution_of_its_time(monkeypatch):
    """From x_400 to x_100, with the image known: mean √ᾱ_100 x and variance 1 − ᾱ_100."""
    model = Diffusion(DiffusionSpec(shape=(1, 8, 8), num_classes=10))
    known = torch.full((4000, 1, 8, 8), 0.7)
    first = torch.randn_like(known)
    monkeypatch.setattr(model, "forward", lambda noisy, t: first)
    found = model.reversed(model.noised(known, 400, first), (400, 100), torch.randn(4000, 1, 1, 8, 8))
    kept = float(model.kept[100])
    assert float(found.mean()) == pytest.approx(0.7 * kept**0.5, abs=0.01)
    assert float(found.var()) == pytest.approx(1 - kept, abs=0.01)


@pytest.mark.parametrize("inner_steps", [4, 20])
def test_the_gradient_through_every_step_is_that_of_plain_autograd(defense, digits, inner_steps):
    x = digits.test.images[:8].clone().requires_grad_(True)
    logits, noise = defense.attack_forward(x, "unrolled", None, inner_steps)
    assert noise.shape == (8, 5, 1, 8, 8)

    model = defense.diffusion
    point = model.noised(2 * x - 1, 300, noise[:, 0])
    for step, (now, then) in enumerate(pairwise((300, 225, 150, 75, 0))):
        point = model.step(point, now, then, noise[:, step + 1])
    expected = defense.classifier((point + 1) / 2)
    assert torch.equal(logits, expected)
    exact = gradient(expected, x)
    assert exact.abs().amax() > 0 and torch.allclose(gradient(logits, x), exact, rtol=1e-5, atol=1e-9)


def test_a_surrogate_has_fewer_steps(defense, digits):
    x = digits.test.images[:8].clone().requires_grad_(True)
    logits, noise = defense.attack_forward(x, "unrolled", None, 2)
    assert noise.shape == (8, 3, 1, 8, 8) and gradient(logits, x).abs().amax() > 0


def test_the_identity_gives_the_classifier_s_gradient_at_the_purified_image(defense, digits):
    x = digits.test.images[:8].clone().requires_grad_(True)
    logits, noise = defense.attack_forward(x, "identity", None, 1)
    purified = defense.purified(x, noise).detach().requires_grad_(True)
    assert noise.shape == (8, 5, 1, 8, 8)
    assert torch.allclose(gradient(logits, x), gradient(defense.classifier(purified), purified), atol=1e-5)


@pytest.mark.parametrize("mode", Purifier(SPEC).gradient_modes)
def test_answers_are_random_unless_an_attack_keeps_their_noise(defense, digits, mode):
    x = digits.test.images[:8]
    first, noise = defense.attack_forward(x, mode, None, 4)
    again, kept = defense.attack_forward(x, mode, noise, 4)
    assert torch.equal(first, again) and torch.equal(noise, kept)
    assert not torch.equal(first, defense.attack_forward(x, mode, None, 4)[0])
    assert defense.randomized and not torch.equal(defense(x), defense(x))


class AlwaysThree(nn.Module):
    """A classifier that nothing fools."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * F.one_hot(torch.full((len(x),), 3), 10) - 1 + 0 * x.flatten(1).sum(1, keepdim=True)


@pytest.mark.parametrize(("warm_start", "draws"), [(True, 2), (False, 8)])
def test_an_attack_with_a_warm_start_draws_noise_once_for_each_answer(defense, digits, monkeypatch, warm_start, draws):
    """Two answers are averaged, and there are three steps and the last point."""
    drawn = []
    monkeypatch.setattr(defense, "noise", lambda x, steps: drawn.append(x) or Purifier.noise(defense, x, steps))
    defense.classifier = AlwaysThree()
    x, y = digits.test.images[:8], torch.full((8,), 3)
    PGD(steps=3, eot=2, warm_start=warm_start).run(Target(defense, 8), x, y, 0.1, 0)
    assert len(drawn) == 1 + draws  # one answer to clean images decides the unit of the outputs


@pytest.mark.parametrize(("time", "steps"), [(501, 10), (5, 6)])
def test_a_process_that_was_not_trained_or_has_no_times_is_refused(time, steps):
    with pytest.raises(ValueError, match=r"^(time|steps): "):
        replace(SPEC, time=time, steps=steps)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 7, 9), (2, 28, 28)])
def test_the_network_fits_any_image(shape):
    model = Diffusion(DiffusionSpec(shape=shape, num_classes=10, settings=DiffusionSettings(width=8)))
    assert model(torch.randn(2, *shape), torch.tensor([1, 300])).shape == (2, *shape)


def test_training_finds_noise(digits):
    """A network that knows nothing of the images has a loss of about 1."""
    model = Diffusion(DiffusionSpec(shape=(1, 8, 8), num_classes=10, settings=SPEC.diffusion))
    figures = model.fit(digits.train, digits.validation, 0.2, 0, Progress())
    assert figures["validation_loss"] < 0.7 and not model.training
