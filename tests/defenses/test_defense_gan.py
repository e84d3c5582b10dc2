"""Defense-GAN: the paper's search, random starts that depend on the input and the draw alone, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from manifold_bench.attacks.batching import blockwise
from manifold_bench.attacks.gradient import PGD
from manifold_bench.attacks.target import Target
from manifold_bench.bench.running.judge import verdict
from manifold_bench.defenses.base import Progress, Trainable
from manifold_bench.defenses.defense_gan import PAPER, DefenseGAN
from manifold_bench.defenses.solvers import mean_squared_error
from manifold_bench.defenses.training import initialise
from manifold_bench.defenses.variational_autoencoder import VariationalAutoencoderSettings
from manifold_bench.defenses.wasserstein_gan import Critic, WassersteinGANSettings, gradient_penalty
from manifold_bench.defenses.weights import fill_from_zoo, freeze, from_zoo

SPEC = DefenseGAN.Spec(
    shape=(1, 8, 8),
    num_classes=10,
    network="strided",
    solver=replace(PAPER, steps=30, starts=4, spread=0.5),
    generator=WassersteinGANSettings(latent=6, width=4, encoder_width=4, encoder_hidden=16),
)


@pytest.fixture(scope="module")
def defense() -> DefenseGAN:
    defense = DefenseGAN(SPEC)
    fill_from_zoo(defense.classifier, "digits")
    initialise(defense.generator, 0)
    return freeze(defense)


def drawn(defense: DefenseGAN, x: torch.Tensor, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return defense.perceived(x)


def test_the_paper_s_search_is_the_default():
    spec = DefenseGAN.Spec(shape=(1, 28, 28), num_classes=10)
    assert (spec.solver.steps, spec.solver.starts, spec.solver.rate, spec.solver.momentum) == (200, 10, 10.0, 0.7)
    assert spec.solver.spread == pytest.approx((1 / 128) ** 0.5) and spec.generator.latent == 128


def test_the_rate_is_a_tenth_after_four_fifths_of_the_steps():
    solver, gradient = replace(PAPER, momentum=0.0), torch.ones(1, 3)
    lengths = [
        -solver.step(torch.zeros(1, 3), torch.ones(1), gradient, (torch.zeros(1, 3),), number)[0][0, 0].item()
        for number in (1, 160, 161, 200)
    ]
    assert lengths == pytest.approx([10, 10, 1, 1])


def test_it_classifies_the_best_of_its_descents_and_never_rejects(defense, digits):
    x = digits.test.images[:16]
    torch.manual_seed(3)
    logits = defense(x)
    seen = drawn(defense, x, 3)
    assert not defense.rejects and logits.shape == (16, 10) and torch.equal(logits, defense.classifier(seen))
    torch.manual_seed(3)
    errors = mean_squared_error(defense.generator(defense.invert(x).reshape(-1, 6)), x.repeat_interleave(4, 0)).view(
        16, 4
    )
    assert torch.allclose(mean_squared_error(seen, x), errors.amin(1))


def test_the_score_is_the_distance_to_what_it_sees(defense, digits):
    x = digits.test.images[:16]
    torch.manual_seed(3)
    answer = defense.verdict(x)
    torch.manual_seed(3)
    assert torch.equal(answer.labels, defense(x).argmax(1)) and not answer.rejected.any()
    assert answer.scores is not None
    assert torch.allclose(answer.scores, (x - drawn(defense, x, 3)).flatten(1).norm(dim=1))


@pytest.mark.parametrize("mode", ["identity", "unrolled", "gauss-newton"])
def test_an_attack_sees_searches_from_one_start_anew_each_time(defense, digits, mode):
    x = digits.test.images[:8]
    for _ in range(2):
        torch.manual_seed(5)
        alone = replace(defense.spec.solver, starts=1)
        start = defense.starts(x)[:, :1]
        expected = alone.solve(defense.generator, x, start, alone.steps)
        torch.manual_seed(5)
        _, reached = defense.attack_forward(x, mode, None, 0)
        assert torch.equal(reached, expected)


def test_answers_differ_from_draw_to_draw_and_not_by_company(defense, digits):
    x = digits.test.images[:16]
    first = drawn(defense, x, 0)
    assert torch.equal(first, drawn(defense, x, 0)) and not torch.equal(first, drawn(defense, x, 1))
    assert torch.equal(drawn(defense, x[8:], 0), first[8:])


def test_the_worst_of_several_draws_is_judged(digits):
    """After a single step from afar the answer depends on the start."""
    hasty = replace(PAPER, steps=1, starts=1, spread=2.0)
    defense = DefenseGAN(replace(SPEC, solver=hasty, generator=VariationalAutoencoderSettings()))
    fill_from_zoo(defense.generator, "digits")
    fill_from_zoo(defense.classifier, "digits")
    x, y = digits.test.images[:64], digits.test.labels[:64]
    assert defense.randomized
    once, often = (verdict(defense, x, y, draws, 0) for draws in (1, 6))
    wrong_once, wrong_often = once.wrong(y), often.wrong(y)
    assert (wrong_often | ~wrong_once).all() and wrong_often.sum() > wrong_once.sum()


def test_an_attack_averages_over_draws_of_its_own(defense, digits):
    x, y = digits.test.images[:8], digits.test.labels[:8]
    target = Target(defense, 8)
    found = PGD(steps=2, eot=3, gradient="implicit", inner_steps=3).run(target, x, y, 0.2, 0)
    assert found.shape == x.shape and (found - x).abs().amax() <= 0.2 + 1e-6
    assert (target.backwards <= 2 * 3).all() and target.backwards.max() == 6


def test_it_learns_nothing_itself():
    assert DefenseGAN.fit is Trainable.fit and DefenseGAN.parts == ("generator", "classifier")


def test_the_penalty_pulls_a_linear_critic_to_slope_one():
    """critic(x) = a·x has the gradient a everywhere: the penalty is (‖a‖ − 1)²."""
    real, made = torch.rand(5, 1, 2, 2), torch.rand(5, 1, 2, 2)
    weight = torch.full((1, 2, 2), 1.5)
    penalty = gradient_penalty(lambda x: (x * weight).flatten(1).sum(1), real, made)  # type: ignore[arg-type]
    assert float(penalty) == pytest.approx((3.0 - 1) ** 2)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64), (1, 8, 8)])
def test_generator_encoder_and_critic_fit_any_image(shape):
    spec = replace(SPEC, shape=shape)
    defense = DefenseGAN(spec)
    z = torch.randn(2, 6)
    images = defense.generator(z)
    assert images.shape == (2, *shape) and images.amin() >= 0 and images.amax() <= 1
    assert defense.generator.encode(images).shape == (2, 6) and Critic(shape, 4)(images).shape == (2,)


def test_the_encoder_learns_to_invert(digits):
    model = from_zoo("vae", "digits").requires_grad_(True)
    trained = model.encoding_error(digits.validation)
    initialise(model.encoder, 0)
    before = model.encoding_error(digits.validation)
    model.fit_encoder(digits.train, 0.1, 0, Progress())
    assert trained < model.encoding_error(digits.validation) < 0.7 * before and not model.encoder.training


def test_samples_are_the_same_whatever_their_number(defense):
    assert torch.allclose(defense.generator.sample(3, 5), defense.generator.sample(10, 5)[:3], atol=1e-6)
    assert torch.equal(blockwise(lambda x: x, defense.generator.sample(3, 5)), defense.generator.sample(3, 5))
