"""Randomized smoothing: votes, a gradient through the mean of softmaxes, and radii that are right where known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from manifold_bench.attacks.gradient import PGD
from manifold_bench.attacks.target import Target
from manifold_bench.defenses.base import Progress
from manifold_bench.defenses.smoothing import RandomizedSmoothing
from manifold_bench.defenses.weights import training_part, weights_hash


def made(shape=(1, 8, 8), classes=10, **changes) -> RandomizedSmoothing:
    return RandomizedSmoothing(
        RandomizedSmoothing.Spec(shape=shape, num_classes=classes, width=8, hidden=32, epochs=12, **changes)
    )


@pytest.fixture(scope="module")
def trained(digits) -> RandomizedSmoothing:
    defense = made(certificate_copies=1000)
    figures = defense.fit(digits.train, digits.validation, 0.3, 0, Progress())
    assert figures["validation_accuracy"] > 0.8
    return defense


@pytest.fixture(autouse=True)
def drawn():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


class HalfSpace(nn.Module):
    """Class 1 where the pixels sum to more than 0: a ball around x lies on its side up to |Σ x| / √d."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = x.flatten(1).sum(1)
        return torch.stack([-total, total], dim=1)


def half_space(**changes) -> RandomizedSmoothing:
    defense = made(classes=2, **changes)
    defense.network = HalfSpace()
    return defense


@pytest.mark.parametrize("sigma", [0.25, 1.0])
def test_the_certified_radius_of_a_half_space_is_its_distance_from_below(sigma):
    defense = half_space(sigma=sigma, certificate_copies=20_000)
    distance = sigma * torch.tensor([0.05, 0.5, 1.0, 2.0])
    x = (distance / 8)[:, None, None, None].expand(-1, 1, 8, 8)  # Σ x / √64 = distance
    shares = torch.linspace(0.5, 1.2, 141)
    y = torch.ones(4, dtype=torch.long)
    sure = defense.certified(x, y, distance[:, None] * shares)
    assert not sure[:, shares > 1].any()
    assert sure[1:, shares < 0.9].all()  # 20,000 copies tell Φ(0.5) to a hundredth
    assert not defense.certified(x, 1 - y, distance[:, None] * shares).any()


@pytest.mark.parametrize(("alpha", "copies"), [(0.001, 100), (0.001, 1000), (0.05, 1000)])
def test_no_radius_exceeds_what_so_many_copies_can_tell(alpha, copies):
    defense = half_space(sigma=0.5, certificate_copies=copies, alpha=alpha)
    x, y = torch.ones(1, 1, 8, 8), torch.ones(1, dtype=torch.long)
    largest = 0.5 * torch.special.ndtri(torch.tensor(alpha, dtype=torch.float64) ** (1 / copies))
    sure = defense.certified(x, y, largest * torch.tensor([[0.999, 1.001]]))
    assert sure.tolist() == [[True, False]]


def test_a_close_vote_is_certified_for_nothing():
    defense = half_space(certificate_copies=1000)
    x = torch.zeros(1, 1, 8, 8)
    for label in (0, 1):
        assert not defense.certified(x, torch.tensor([label]), torch.tensor([[0.0, 1e-9]])).any()


def test_the_majority_of_the_copies_answers(trained, digits):
    x, y = digits.test.images[:50], digits.test.labels[:50]
    votes = trained.votes(x, 200)
    assert (votes.sum(1) == 200).all()
    clear = votes.amax(1) > 160
    verdict = trained.verdict(x)
    assert torch.equal(verdict.labels[clear], votes.argmax(1)[clear]) and not verdict.rejected.any()
    assert (verdict.labels == y).float().mean() > 0.8
    assert ((verdict.scores >= -1) & (verdict.scores <= -0.1)).all()


def test_what_an_attacker_differentiates_is_the_logarithm_of_a_mean_softmax(digits):
    defense = made(attacked_copies=3)
    x = digits.test.images[:4]
    torch.manual_seed(5)
    logits = defense(x)
    torch.manual_seed(5)
    noise = torch.randn(12, 1, 8, 8).view(3, 4, 1, 8, 8)
    expected = torch.stack([defense.network(x + 0.25 * own).softmax(1) for own in noise]).mean(0).log()
    torch.testing.assert_close(logits, expected)


def test_attacks_through_the_noise_beat_it(trained, digits):
    x, y = digits.test.images[:100], digits.test.labels[:100]
    found = PGD(norm="l2", steps=20, eot=2).run(Target(trained, len(x)), x, y, 1.0, seed=0)
    before, after = ((trained.verdict(images).labels == y).float().mean() for images in (x, found))
    assert after < before - 0.4


def test_certificates_cover_few_images_where_an_attack_beats_many(trained, digits):
    x, y = digits.test.images[:50], digits.test.labels[:50]
    sure = trained.certified(x, y, torch.tensor([0.0, 0.25, 0.5, 3.0]).expand(50, -1))
    assert (sure[:, :-1] >= sure[:, 1:]).all()
    assert sure[:, 0].float().mean() > 0.7 and not sure[:, 3].any()


def test_how_it_is_deployed_is_no_part_of_the_training():
    other = made(copies=7, attacked_copies=2, certificate_copies=50, alpha=0.05)
    assert training_part(other.spec) == training_part(made().spec) != training_part(made(sigma=0.5).spec)


def test_a_seed_gives_the_same_weights_whatever_happened_before(digits):
    hashes = set()
    for seed in (1, 2):
        torch.manual_seed(seed)
        defense = made()
        defense.fit(digits.train, digits.validation, 0.02, 0, Progress())
        hashes.add(weights_hash(defense))
    assert len(hashes) == 1
