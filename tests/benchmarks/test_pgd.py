"""PGD-40 on the MNIST classifiers of the zoo: the whole harness' engine beside ART, Foolbox and a bare loop.

pytest tests/benchmarks --benchmark-only --benchmark-group-by=group
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from attacks.gradient import PGD
from attacks.target import Target, blockwise
from bench.datasets.mnist import Mnist5k
from defenses.estimators import to_art, to_foolbox
from defenses.weights import from_zoo

EPS, STEPS, STEP = 0.2, 40, 0.0125
N = 128


def bare_loop(defense: torch.nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """What a researcher writes in a notebook: every step for every input."""
    point = (x + EPS * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    for _ in range(STEPS):
        point.requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(defense(point), y, reduction="sum"), point)
        point = torch.clamp(point.detach() + STEP * gradient.sign(), x - EPS, x + EPS).clamp(0, 1)
    return point


def ours(defense: torch.nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return PGD(steps=STEPS, step_size=STEP).run(Target(defense, len(x)), x, y, EPS, seed=0)


def art(defense: torch.nn.Module, x: Tensor, y: Tensor) -> Tensor:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch

    attack = ProjectedGradientDescentPyTorch(
        to_art(defense), eps=EPS, eps_step=STEP, max_iter=STEPS, num_random_init=1, batch_size=len(x), verbose=False
    )
    return torch.from_numpy(attack.generate(x.numpy(), y=F.one_hot(y, 10).numpy()))


def foolbox(defense: torch.nn.Module, x: Tensor, y: Tensor) -> Tensor:
    from foolbox.attacks import LinfPGD

    return LinfPGD(abs_stepsize=STEP, steps=STEPS)(to_foolbox(defense), x, y, epsilons=EPS)[1]


@pytest.mark.parametrize("attack", [bare_loop, ours, art, foolbox])
@pytest.mark.parametrize("name", ["undefended", "pgd-training"])
def test_pgd_40(benchmark, name: str, attack: Callable[..., Tensor]):
    torch.set_num_threads(1)
    defense = from_zoo(name, "mnist")
    data = Mnist5k()
    rows = torch.from_numpy(data.chosen(N))
    x, y = data.test.images[rows], data.test.labels[rows]
    benchmark.group = f"PGD-40, {name}, n = {N}"
    found = benchmark.pedantic(attack, args=(defense, x, y), rounds=3, warmup_rounds=1)
    right = (blockwise(defense, found).argmax(1) == y).float().mean()
    benchmark.extra_info["robust_accuracy"] = round(float(right), 4)
