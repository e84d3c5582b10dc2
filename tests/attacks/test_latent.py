"""Attacks on the range of a generator, on linear ones whose distances are known in closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attacks.latent import overpowered_pairs

RANGE = torch.linalg.qr(torch.randn(16, 4, generator=torch.Generator().manual_seed(2)))[0] * 0.5
WEIGHT = torch.randn(3, 16, generator=torch.Generator().manual_seed(3))
LATENTS = torch.randn(24, 2, 4, generator=torch.Generator().manual_seed(4))


def generator(z: Tensor) -> Tensor:
    """[N,4] → [N,1,4,4] in a plane; ‖G z − G z′‖ = ‖z − z′‖ / 2."""
    return (z @ RANGE.T + 0.5).view(-1, 1, 4, 4)


def classifier(x: Tensor) -> Tensor:
    return (x - 0.5).flatten(1) @ WEIGHT.T


def constant(x: Tensor) -> Tensor:
    return torch.tensor([0.0, 1.0, 0.0]).expand(len(x), 3) + 0 * x.flatten(1)[:, :1]


def judged(z: Tensor, other: Tensor, eta: float) -> Tensor:
    """Whether that really is an overpowered pair, [M]."""
    one, two = generator(z), generator(other)
    near = (one.double() - two.double()).flatten(1).norm(dim=1) <= eta
    return near & (classifier(one).argmax(1) != classifier(two).argmax(1))


@pytest.mark.parametrize("eta", [0.5, 0.1])
def test_pairs_on_both_sides_of_a_boundary_are_found_from_anywhere(eta):
    """Any η > 0 has such pairs: the range is connected and the classifier isn't constant on it."""
    for other in (LATENTS[:, 1], LATENTS[:, 0] + 0.01):
        pairs = overpowered_pairs(generator, classifier, LATENTS[:, 0], other, eta, steps=400)
        assert pairs.found.all() and judged(pairs.z, pairs.other, eta).all()
        distance = (generator(pairs.z) - generator(pairs.other)).flatten(1).norm(dim=1)
        assert torch.allclose(pairs.distance.float(), distance, atol=1e-6)


@pytest.mark.parametrize("eta", [0.2, 1e9])
def test_what_is_classified_alike_is_never_found_however_near(eta):
    pairs = overpowered_pairs(generator, constant, LATENTS[:, 0], LATENTS[:, 0] + 1e-4, eta, steps=20)
    assert not pairs.found.any()


def test_what_is_classified_differently_is_found_only_within_eta():
    z, other = LATENTS.unbind(1)
    differ = classifier(generator(z)).argmax(1) != classifier(generator(other)).argmax(1)
    distance = (generator(z).double() - generator(other).double()).flatten(1).norm(dim=1)
    eta = float(distance[differ].median()) + 1e-4
    expected = differ & (distance <= eta)
    assert expected.any() and (differ & ~expected).any()
    pairs = overpowered_pairs(generator, classifier, z, other, eta, steps=1, rate=1e-9)
    assert torch.equal(pairs.found, expected)
    pairs = overpowered_pairs(generator, classifier, z, other, eta, steps=100)
    assert torch.equal(pairs.z[expected], z[expected]) and torch.equal(pairs.other[expected], other[expected])


def test_pairs_are_as_confident_as_asked_for():
    def least_margin(confidence: float) -> Tensor:
        pairs = overpowered_pairs(generator, classifier, *LATENTS.unbind(1), eta=1.0, steps=300, confidence=confidence)
        assert pairs.found.all()
        both = torch.stack([classifier(generator(latents)) for latents in (pairs.z, pairs.other)])
        top = both.topk(2, dim=2).values
        return (top[..., 0] - top[..., 1]).amin(0)

    assert (least_margin(0.5) >= 0.499).float().mean() > 0.75
    assert (least_margin(0.0) >= 0.499).float().mean() < 0.5


def test_a_pair_is_the_same_alone_and_in_a_batch():
    whole = overpowered_pairs(generator, classifier, *LATENTS.unbind(1), eta=0.1, steps=60)
    for row in (0, 11, 23):
        alone = overpowered_pairs(generator, classifier, *LATENTS[row : row + 1].unbind(1), eta=0.1, steps=60)
        assert torch.equal(alone.z[0], whole.z[row]) and torch.equal(alone.other[0], whole.other[row])
