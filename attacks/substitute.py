"""The black-box attack through a substitute model (Papernot et al. 2017, "Practical Black-Box Attacks")."""

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
"""Batch size of the substitute's training."""


# Module-level, because an attack is an immutable value that runs for every batch and ε, and trains its substitute once.
# The keys are weak, and every job loads its own defense, so that no job's counts depend on another job.
_TRAINED: WeakKeyDictionary[AttackableDefense, dict[tuple[Substitute, int], SubstituteCNN]] = WeakKeyDictionary()
"""Substitutes by the defense they imitate, the attack and the seed."""


class SubstituteCNN(nn.Module):
    """A network of two 3×3 convolutions with stride 2, `width` and 2·`width` channels, and 4·`width` hidden units."""

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

    The attack on the substitute is FGSM or PGD.

    The attacker starts with `images` held-out images and the labels that the defense gives them. In each of `rounds`
    rounds the substitute is trained from scratch for `epochs` epochs. After every round but the last the set is
    doubled: each image gets a neighbour x + `reach` · sign of the gradient of the substitute's output for its label
    (Jacobian augmentation; λ = 0.1 in the paper), and the defense labels it. Images that the defense rejects have no
    label and are left out. The attacker never sees logits or gradients of the defense.

    images: number of held-out images with which the training of the substitute begins. rounds: number of trainings;
    after each one the images are augmented by a step from every image. epochs: number of epochs of each training.
    reach: L∞ length of a step that augments the images. method: attack that is run on the substitute. steps: number of
    steps of PGD on the substitute; all are taken, because an image that fools the substitute need not fool the defense.
    restarts: number of starts of PGD on the substitute. width: number of channels of the substitute's first layer
    (`SubstituteCNN`). rate: learning rate of Adam.
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
        return math.ceil(self.images * 2 ** (self.rounds - 1) / 100), 0  # shared by a batch of about a hundred

    def training_passes(self) -> int:
        return 3 * self.epochs * self.images * (2**self.rounds - 1)  # a backward pass takes twice as long as a forward

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        attack = (
            FGSM(norm=self.norm, part="classifier")
            if self.method == "fgsm"
            else PGD(norm=self.norm, part="classifier", steps=self.steps, restarts=self.restarts)
        )
        surrogate = Surrogate(self.trained_on(target, seed), target.num_classes)
        return attack.run(Target(surrogate, len(x)), x, y, eps, seed)

    def trained_on(self, target: Target, seed: int) -> SubstituteCNN:
        """Return the substitute for that defense and seed; it is trained at the first call and kept for every ε."""
        known = _TRAINED.setdefault(target.defense, {})
        if (self, seed) not in known:
            known[self, seed] = self.substitute(target, seed)
        return known[self, seed]

    def substitute(self, target: Target, seed: int) -> SubstituteCNN:
        """Train a model that answers like the target; passes for its labels are spread evenly over the attacked inputs.

        Raises ValueError where the target accepts none of the images.
        """
        held_out, _ = target.held_out()
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(held_out), generator=generator)[: self.images]
        images, labels = labelled(target, held_out[chosen.to(held_out.device)])
        if not len(images):
            raise ValueError(f"the defense rejects all {len(chosen)} images that a substitute would learn from")
        for number in range(self.rounds):
            model = self.trained(images, labels, target.num_classes, seed + number)
            if number < self.rounds - 1:
                more, their_labels = labelled(target, self.neighbours(model, images, labels))
                images, labels = torch.cat([images, more]), torch.cat([labels, their_labels])
        return model

    def trained(self, images: Tensor, labels: Tensor, classes: int, seed: int) -> SubstituteCNN:
        """Train a substitute on images [M,C,H,W] with labels [M] from scratch."""
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
        """Return x + reach · sign ∂F_label(x)/∂x for each image x [M,C,H,W], clipped to [0,1]."""
        with torch.enable_grad():
            x = images.clone().requires_grad_(True)
            (gradient,) = torch.autograd.grad(model(x).gather(1, labels[:, None]).sum(), x)
        return (images + self.reach * gradient.sign()).clamp(0, 1)


def labelled(target: Target, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return those of the images [M,C,H,W] that the deployed defense accepts, and the labels that it gives them.

    Each image costs a forward pass of the defense; the passes are spread evenly over the inputs of the target.
    """
    everyone = torch.arange(len(target.forwards))
    target.count(everyone, len(images) / len(everyone), 0)

    def label(part: Tensor) -> Tensor:
        answer = target.defense.verdict(part)
        return answer.labels.masked_fill(answer.rejected, -1)

    labels = blockwise(label, images, batch_size=256)
    return images[labels >= 0], labels[labels >= 0]
