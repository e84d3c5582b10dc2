"""What the tests of other libraries' attacks compare with: the closed form of a linear model, and our own PGD."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from manifold_bench.attacks import losses
from manifold_bench.attacks.gradient import PGD
from manifold_bench.attacks.target import Target


def interior_inputs(model: Any, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """x [n,1,2,2] in [.35,.65], its labels and its exact L2 distances to the nearest other class, .02 to .2.

    So far from the edges of [0,1] and so near a boundary, the closed form is the smallest distance within the box.
    """
    x = 0.35 + 0.3 * torch.rand(20 * n, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    distance = model.distance(x)
    x = x[(distance > 0.02) & (distance < 0.2)][:n]
    assert len(x) == n
    return x, model(x).argmax(1), model.distance(x)


def l2(a: Tensor, b: Tensor) -> Tensor:
    """Distances [N]."""
    return (a - b).flatten(1).norm(dim=1)


def check_distances(model: Any, attack: Any, factor: float) -> None:
    """An attack on the linear model beats each input, never nearer than possible, on median within `factor` of it."""
    x, y, distance = interior_inputs(model, 8)
    found = attack.run(Target(model, 8), x, y, 0.0, seed=0)
    assert model.verdict(found).wrong(y).all()
    assert (l2(found, x) >= 0.999 * distance).all()
    assert (l2(found, x) / distance).median() <= factor
    assert (l2(found, x) <= 2 * factor * distance).all()


def check_seed(attack: Any, defense: Any, x: Tensor, y: Tensor) -> None:
    """The seed alone decides what an attack finds, and the global generators stay as they were."""
    state = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    first, again, other = (attack.run(Target(defense, len(x)), x, y, 0.1, seed) for seed in (1, 1, 2))
    assert (np.random.get_state()[1] == state[0]).all()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), state[1])
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def check_company(attack: Any, defense: Any, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """An input gets the same result, bit for bit, alone and among others; returns the forward passes of each [N]."""
    target = Target(defense, len(x))
    together = attack.run(target, x, y, eps, 11)
    shuffled = torch.randperm(len(x), generator=torch.Generator().manual_seed(5))
    for rows in (shuffled, torch.tensor([len(x) - 1]), torch.arange(3, 9)):
        counted = Target(defense, len(rows))
        assert torch.equal(attack.run(counted, x[rows], y[rows], eps, 11), together[rows])
        assert torch.equal(counted.forwards, target.forwards[rows])
    return target.forwards


def comparable(defense: Any, x: Tensor, ours: Tensor, theirs: Tensor, y: Tensor) -> Tensor:
    """Where our PGD and another must agree [N]: no success on the way (ours stops there), and no saturated loss.

    Below 1e-4 the softmax of the true class is so near 1 that the libraries' float32 gradient is rounding noise.
    """
    with torch.no_grad():
        before = F.cross_entropy(defense(x), y, reduction="none")
        after = F.cross_entropy(defense(theirs), y, reduction="none")
    return ~defense.verdict(ours).wrong(y) & (before > 1e-4) & (after > before)


OURS = PGD(steps=5, step_size=0.01, random_start=False, loss="cross-entropy")


def check_pgd(defense: Any, x: Tensor, y: Tensor, theirs: Any, monkeypatch: Any, ours: Any = OURS) -> None:
    """Our PGD of five steps is another's where the last step is the best: ours returns the best point."""
    with monkeypatch.context() as patch:
        patch.setattr(losses, "SHARPNESS", losses.SHARPNESS / 2)  # the temperature at which libraries see logits
        a = ours.run(Target(defense, 128), x, y, 0.05, seed=0)
    b = theirs.run(Target(defense, 128), x, y, 0.05, seed=0)
    same = comparable(defense, x, a, b, y)
    assert same.sum() > 32
    assert ((a - b)[same].abs() > 1e-5).float().mean() < 0.001, "but for rounding where a gradient is nearly zero"
    assert torch.equal(defense.verdict(a).wrong(y), defense.verdict(b).wrong(y))
