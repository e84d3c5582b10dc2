"""Interval bounds hold for every image of the ball, certify what no attack can beat, and can be trained for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from manifold_bench.attacks.batching import blockwise
from manifold_bench.attacks.gradient import PGD
from manifold_bench.attacks.target import Target
from manifold_bench.attacks.threat import random_in_ball
from manifold_bench.bench.datasets.base import select
from manifold_bench.defenses.base import Progress
from manifold_bench.defenses.interval_bounds import largest_margins
from manifold_bench.defenses.interval_training import IntervalTraining
from manifold_bench.defenses.networks import StridedCNN
from manifold_bench.defenses.training import initialise
from manifold_bench.defenses.undefended import Undefended
from manifold_bench.defenses.weights import weights_hash

SIZE = {"num_classes": 10, "width": 8, "hidden": 32, "epochs": 20, "rate": 1e-3}


def fitted(digits, budget: float, **changes) -> tuple[IntervalTraining, dict[str, float]]:
    defense = IntervalTraining(IntervalTraining.Spec(shape=(1, 8, 8), **SIZE | {"eps": 0.05} | changes))
    figures = defense.fit(digits.train, digits.validation, budget, 0, Progress())
    return defense, figures


@pytest.fixture(scope="module")
def trained(digits) -> tuple[IntervalTraining, dict[str, float]]:
    return fitted(digits, 0.3)


def margins(network: StridedCNN, x: Tensor, y: Tensor) -> Tensor:
    logits = network(x)
    return logits - logits.gather(1, y[:, None])


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 12)])
@pytest.mark.parametrize("eps", [0.0, 0.01, 0.1, 1.0])
def test_no_image_of_the_ball_has_a_larger_margin(shape, eps):
    network = StridedCNN(shape, 10, 4, 16)
    initialise(network, 0)
    random = torch.Generator().manual_seed(0)
    x, y = torch.rand(20, *shape, generator=random).double(), torch.arange(20) % 10
    network.double()
    bounds = largest_margins(network, x, y, torch.full((20,), eps))
    assert (bounds.gather(1, y[:, None]).abs() < 1e-9).all()
    found = torch.stack([margins(network, random_in_ball(x, "linf", eps, seed), y) for seed in range(50)]).amax(0)
    assert (found <= bounds + 1e-6).all()
    if eps == 0:
        torch.testing.assert_close(bounds, margins(network, x, y))


def test_bounds_are_met_where_every_weight_is_positive():
    network = StridedCNN((1, 8, 8), 2, 4, 16)
    with torch.no_grad():
        for weight in network.parameters():
            weight.abs_()
        network.output.weight[0] = 0
    network.double()
    x, eps = torch.full((3, 1, 8, 8), 0.5).double(), torch.tensor([0.0, 0.2, 0.5]).double()
    brightest = x + eps[:, None, None, None]
    y = torch.zeros(3, dtype=torch.long)
    torch.testing.assert_close(largest_margins(network, x, y, eps), margins(network, brightest, y))


def test_what_is_certified_withstands_every_attack_and_what_is_beaten_is_not_certified(trained, digits):
    defense, _ = trained
    x, y = digits.test.images, digits.test.labels
    radii = torch.tensor([0.01, 0.05, 0.1])
    certified = defense.certified(x, y, radii.expand(len(x), -1))
    for eps, sure in zip(radii.tolist(), certified.unbind(1), strict=True):
        found = PGD(steps=20, loss="margin").run(Target(defense, len(x)), x, y, eps, seed=0)
        beaten = blockwise(defense, found).argmax(1) != y
        assert beaten.any() and not (beaten & sure).any()
        distance = (found - x).abs().flatten(1).amax(1)
        assert not defense.certified(x[beaten], y[beaten], distance[beaten][:, None]).any()
    assert (certified[:, :-1] >= certified[:, 1:]).all()
    assert 0.2 < certified[:, 0].float().mean() < 1


def test_training_by_bounds_certifies_more_than_plain_training(trained, digits):
    defense, figures = trained
    plain = Undefended(Undefended.Spec(shape=(1, 8, 8), num_classes=10, width=8, hidden=32))
    plain.fit(digits.train, digits.validation, 0.1, 0, Progress())
    x, y = digits.validation.images, digits.validation.labels
    eps = torch.full((len(x), 1), 0.05)
    share = float(defense.certified(x, y, eps).double().mean())
    assert share == figures["validation_certified_accuracy"] > float(plain.certified(x, y, eps).double().mean()) + 0.1
    assert share < figures["validation_accuracy"]


def test_at_radius_zero_it_is_plain_training(trained, digits):
    defense, _ = trained
    x, y = digits.test.images[:32], digits.test.labels[:32]
    torch.testing.assert_close(defense.loss(x, y, 0.0), F.cross_entropy(defense(x), y))


def test_a_seed_gives_the_same_weights(digits):
    rows = range(0, 1000, 4)
    made = []
    for _ in range(2):
        defense = IntervalTraining(IntervalTraining.Spec(shape=(1, 8, 8), **SIZE))
        defense.fit(select(digits.train, rows), digits.validation, 0.02, 0, Progress())
        made.append(weights_hash(defense))
    assert made[0] == made[1]


def test_only_what_answers_by_its_network_alone_has_these_certificates():
    class Otherwise(Undefended):
        def forward(self, x: Tensor) -> Tensor:
            return -self.network(x)

    spec = Undefended.Spec(shape=(1, 8, 8), num_classes=10)
    assert Undefended(spec).certificate is not None
    assert Otherwise(spec).certificate is None
    assert Undefended(Undefended.Spec(shape=(1, 8, 8), num_classes=10, network="D")).certificate is None
