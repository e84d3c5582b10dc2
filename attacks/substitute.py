"""The black-box attack with a model of the attacker's own: Papernot et al. 2017, "Practical Black-Box Attacks"."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal
from weakref import WeakKeyDictionary

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn
from torch.nn import functional as F

from manifold_bench.attacks.base import Attack
from manifold_bench.attacks.batching import blockwise
from manifold_bench.attacks.contract import AttackableDefense
from manifold_bench.attacks.gradient import FGSM, PGD
from manifold_bench.attacks.target import Target
from manifold_bench.attacks.transfer import Surrogate

BATCH = 64
"""Images in a step of the substitute's training, at the most."""


# Module-level because an attack is a frozen value that runs for every batch and ε, and its substitute is trained once.
# The keys are weak, and every job loads a defense of its own: no job's counts depend on another's.
_TRAINED: WeakKeyDictionary[AttackableDefense, dict[tuple[Substitute, int], SubstituteCNN]] = WeakKeyDictionary()
"""Substitutes by the defense they imitate, the attack and the seed."""


class SubstituteCNN(nn.Module):
    """Two 3×3 convolutions of `width` and 2·`width` channels, each halving the size, and 4·`width` hidden units."""

    def __init__(self, shape: tuple[int, int, int], num_classes: int, width: int) -> None:
        super().__init__()
        channels, height, rows = shape
        cells = math.ceil(height / 4) * math.ceil(rows / 4)
        self.conv1 = nn.Conv2d(channels, width, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.hidden = nn.Linear(2 * width * cells, 4 * width)
        self.output = nn.Linear(4 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.conv2(F.relu(self.conv1(x))))
        return self.output(F.relu(self.hidden(h.flatten(1))))


@dataclass(frozen=True, kw_only=True)
class Substitute(Attack):
    """Trains a model on the defense's decisions, attacks that model, and transfers the result.

    FGSM or PGD on the substitute, shown to the defended system.

    Transferred into INC it is also the first of the combined attacks on that defense. The attacker begins with `images`
    held-out images and asks for their labels. In each of `rounds` the substitute is trained from the beginning for
    `epochs`, and (but after the last) the set is doubled: every image gets a neighbour at x + `reach` · sign of the
    gradient of the substitute's output for its label (Jacobian augmentation, their λ = 0.1), labelled by the system
    again. What the system rejects has no label and stays out. Its logits and gradients are never seen.

    images: number of held-out images to begin with. rounds: number of trainings. epochs: epochs of each.
    reach: length of the step to a neighbour in L∞.
    method, steps, restarts: the attack on the substitute, its steps and starts; it runs to its end, since what fools
    the substitute need not fool the system.
    width: channels of the substitute's first layer (`SubstituteCNN`). rate: learning rate of its training by Adam.
    """

    paper = "papernot2017"
    knowledge = "decision"
    version: ClassVar[int] = 2

    images: Annotated[int, Ge(1)] = 150
    rounds: Annotated[int, Ge(1)] = 6
    epochs: Annotated[int, Ge(1)] = 10
    reach: Annotated[float, Gt(0), Lt(1)] = 0.1
    method: Literal["fgsm", "pgd"] = "fgsm"
    steps: Annotated[int, Ge(1)] = 40
    restarts: Annotated[int, Ge(1)] = 1
    width: Annotated[int, Ge(1)] = 32
    rate: Annotated[float, Gt(0), Lt(math.inf)] = 1e-3

    def passes(self) -> tuple[int, int]:
        return math.ceil(self.images * 2 ** (self.rounds - 1) / 100), 0  # shared by a batch of some hundred

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        attack = (
            FGSM(norm=self.norm, part="classifier")
            if self.method == "fgsm"
            else PGD(norm=self.norm, part="classifier", steps=self.steps, restarts=self.restarts)
        )
        surrogate = Surrogate(self.trained_on(target, seed), target.num_classes)
        return attack.run(Target(surrogate, len(x)), x, y, eps, seed)

    def trained_on(self, target: Target, seed: int) -> SubstituteCNN:
        """The substitute of that defense and seed, trained when it is first asked for: it is the same at every ε."""
        known = _TRAINED.setdefault(target.defense, {})
        if (self, seed) not in known:
            known[self, seed] = self.substitute(target, seed)
        return known[self, seed]

    def substitute(self, target: Target, seed: int) -> SubstituteCNN:
        """A model that answers like the target; the labels it takes are counted, a share for every input attacked.

        Raises ValueError where the target accepts none of the images.
        """
        held_out, _ = target.held_out()
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(held_out), generator=generator)[: self.images]
        images, labels = asked(target, held_out[chosen.to(held_out.device)])
        if not len(images):
            raise ValueError(f"the defense rejects all {len(chosen)} images that a substitute would learn from")
        for number in range(self.rounds):
            model = self.trained(images, labels, target.num_classes, seed + number)
            if number < self.rounds - 1:
                more, their_labels = asked(target, self.neighbours(model, images, labels))
                images, labels = torch.cat([images, more]), torch.cat([labels, their_labels])
        return model

    def trained(self, images: Tensor, labels: Tensor, classes: int, seed: int) -> SubstituteCNN:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = SubstituteCNN(tuple(images.shape[1:]), classes, self.width)  # type: ignore[arg-type]
        model.to(images.device)
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.Adam(model.parameters(), lr=self.rate)
        with torch.enable_grad():
            for _ in range(self.epochs):
                for batch in torch.randperm(len(images), generator=generator).to(images.device).split(BATCH):
                    optimizer.zero_grad()
                    F.cross_entropy(model(images[batch]), labels[batch]).backward()
                    optimizer.step()
        return model.eval().requires_grad_(False)

    def neighbours(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """x + reach · sign ∂F_label(x)/∂x for each image, in the box."""
        with torch.enable_grad():
            x = images.clone().requires_grad_(True)
            (gradient,) = torch.autograd.grad(model(x).gather(1, labels[:, None]).sum(), x)
        return (images + self.reach * gradient.sign()).clamp(0, 1)


def asked(target: Target, images: Tensor) -> tuple[Tensor, Tensor]:
    """The images [M,C,H,W] that the defended system accepts, and the labels it gives them.

    Each is a forward pass of the defense, counted in equal shares for the inputs of the target.
    """
    everyone = torch.arange(len(target.forwards))
    target.count(everyone, len(images) / len(everyone), 0)

    def label(part: Tensor) -> Tensor:
        answer = target.defense.verdict(part)
        return answer.labels.masked_fill(answer.rejected, -1)

    labels = blockwise(label, images, batch_size=256)
    return images[labels >= 0], labels[labels >= 0]
