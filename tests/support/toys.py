"""Small defenses that gradient attacks are tried on; of the linear ones every distance is known."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from manifold_bench.attacks.base import Attack
from manifold_bench.attacks.contract import Verdict
from manifold_bench.attacks.target import Target
from manifold_bench.defenses.networks import StridedCNN


class Toy(nn.Module):
    """What a defense has at the least; logits are `answer(x)`."""

    num_classes = 2
    rejects = False
    randomized = False
    gradient_modes: tuple[str, ...] = ("default",)

    def __init__(self) -> None:
        super().__init__()
        self.classifier: Toy | None = None

    def answer(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(x)

    def verdict(self, x: Tensor) -> Verdict:
        logits = self(x)
        return Verdict(logits[:, : self.num_classes].argmax(1), logits.argmax(1) == self.num_classes)


class Linear(Toy):
    """Logits scale · (Wx + b) over [N,1,4,4].

    Rows of W have supports apart from each other and the same norms, so that the class with the smallest gap is the
    nearest one in every norm.
    """

    def __init__(self, classes: int, scale: float = 1.0) -> None:
        super().__init__()
        self.num_classes = classes
        self.scale = scale
        random = torch.Generator().manual_seed(7)
        values = (torch.rand(16 // classes, generator=random) + 0.2) * 2
        self.weight = torch.zeros(classes, 16)
        for c in range(classes):
            signs = torch.randint(0, 2, values.shape, generator=random) * 2 - 1
            self.weight[c, c::classes][: len(values)] = values * signs
        self.bias = -self.weight.sum(1) / 2

    def answer(self, x: Tensor) -> Tensor:
        return self.scale * (x.flatten(1) @ self.weight.T + self.bias)

    def distance(self, x: Tensor, y: Tensor, norm: str) -> Tensor:
        """The gap to the nearest class over the dual norm of the difference of weights [N]; in the box in L1, L0."""
        logits = self.answer(x) / self.scale
        gaps = logits.gather(1, y[:, None]) - logits
        slope = self.weight[y][:, None] - self.weight[None]
        if norm in ("l1", "l0"):
            least = boxed_l1 if norm == "l1" else boxed_l0
            each = ((least(gaps[i, c], slope[i, c], x[i]) for c in range(self.num_classes)) for i in range(len(x)))
            return torch.tensor([min(ways) for ways in each])
        dual = slope.abs().sum(2) if norm == "linf" else slope.norm(dim=2)
        return (gaps / dual.clamp_min(1e-9)).masked_fill(dual == 0, torch.inf).amin(1)


def boxed_l1(gap: Tensor, slope: Tensor, x: Tensor) -> float:
    """The least sum of changes of one image within [0,1] that closes a gap of a linear function; ∞ where none does."""
    if not slope.any():
        return float("inf")
    left, spent = float(gap), 0.0
    for pixel in slope.abs().argsort(descending=True).tolist():
        steepness = float(slope[pixel])
        if not steepness:
            return float("inf")
        room = float(x.flatten()[pixel]) if steepness > 0 else 1 - float(x.flatten()[pixel])
        if abs(steepness) * room >= left:
            return spent + left / abs(steepness)
        left, spent = left - abs(steepness) * room, spent + room
    return float("inf")


def boxed_l0(gap: Tensor, slope: Tensor, x: Tensor) -> float:
    """The least number of pixels of an image [C,H,W] whose changes within [0,1] close a gap of a linear function.

    slope [C·H·W]: how much the gap closes when a value falls by 1. ∞ where no change closes it.
    """
    room = torch.where(slope > 0, x.flatten(), 1 - x.flatten())
    most = (slope.abs() * room).view(x.shape[0], -1).sum(0).sort(descending=True).values.cumsum(0)
    return float((most <= gap).sum() + 1) if slope.any() and most[-1] > gap else float("inf")


def near_the_middle(n: int = 24) -> Tensor:
    return 0.4 + 0.2 * torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def beaten(defense: Toy, x: Tensor, y: Tensor) -> list[bool]:
    return defense.verdict(x).wrong(y).tolist()


class Colours(Toy):
    """Two classes by a dense linear function of images [N,3,6,6]; of its images the least numbers of pixels vary."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.randn(108, generator=torch.Generator().manual_seed(3))

    def answer(self, x: Tensor) -> Tensor:
        value = (x.flatten(1) - 0.5) @ self.weight
        return torch.stack([-value, value], dim=1)

    def images(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Images further and further from the boundary, their labels, and the least number of pixels to cross it."""
        x = torch.rand(n, 3, 6, 6, generator=torch.Generator().manual_seed(0))
        x = (x + torch.linspace(0, 0.3, n).view(-1, 1, 1, 1) * self.weight.sign().view(3, 6, 6)).clamp(0, 1)
        value = (x.flatten(1) - 0.5) @ self.weight
        least = [boxed_l0(v.abs(), v.sign() * self.weight, one) for v, one in zip(value, x, strict=True)]
        return x, self.verdict(x).labels, torch.tensor(least)


class Parity(Toy):
    """Even or odd, by the largest logit of each."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.network = classifier

    def answer(self, x: Tensor) -> Tensor:
        logits = self.network(x)
        return torch.stack([logits[:, ::2].amax(1), logits[:, 1::2].amax(1)], dim=1)


class CNN(Toy):
    """Random weights: nothing is linear, nothing is symmetric."""

    num_classes = 10

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.network = StridedCNN((1, 8, 8), 10, 8, 32).requires_grad_(False)
            usual = self.network(torch.rand(256, 1, 8, 8))
        self.network.output.bias -= usual.mean(0)  # so that every class occurs

    def answer(self, x: Tensor) -> Tensor:
        return self.network(x)


class Coin(Toy):
    """Randomized: adds noise of its own to the logits."""

    randomized = True

    def answer(self, x: Tensor) -> Tensor:
        return Linear(2)(x) + torch.randn(len(x), 2)


class Pocket(Toy):
    """Class 1 only where x [N,1,2,2] has one pixel above .62; its gradient points away from there."""

    def answer(self, x: Tensor) -> Tensor:
        top = x.flatten(1).amax(1)
        return torch.stack([torch.where(top > 0.62, -1.0, 1.0) + 0 * top, -0.01 * top], dim=1)


def check_bits_in_any_company(attack: Attack) -> None:
    """Assert that a minimal attack finds the same bits for an input, in as many passes, whichever inputs go with it."""
    model, x = CNN(), torch.rand(19, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y, target = model.verdict(x).labels, Target(model, 19)
    together = attack.run(target, x, y, math.inf, 11)
    assert model.verdict(together).wrong(y).sum() > 10
    mixed = torch.randperm(19, generator=torch.Generator().manual_seed(5))
    for rows in (mixed, torch.tensor([18]), torch.arange(3, 9)):
        counted = Target(model, len(rows))
        assert torch.equal(attack.run(counted, x[rows], y[rows], math.inf, 11), together[rows])
        assert torch.equal(counted.forwards, target.forwards[rows])
    assert attack.run(Target(model, 0), x[:0], y[:0], math.inf, 11).shape == (0, 1, 8, 8)


def check_wrong_inputs_stay(attack: Attack) -> None:
    """Assert that an attack leaves inputs as they are that are wrong already, after one forward pass for each."""
    model, x = Linear(2), near_the_middle(6)
    y = 1 - model.verdict(x).labels
    target = Target(model, 6)
    assert torch.equal(attack.run(target, x, y, math.inf, 0), x)
    assert target.forwards.tolist() == [1] * 6
