"""Transfer attacks: adversarial images for another model, tried on the defense."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from manifold_bench.attacks.contract import AttackableDefense, Part, Verdict
from manifold_bench.attacks.gradient import PGD
from manifold_bench.attacks.target import Target


class Surrogate:
    """The attacker's own classifier, images → logits [N,K], with the interface of a defense under attack."""

    rejects = randomized = False
    detectors: tuple[str, ...] = ()
    gradient_modes: tuple[str, ...] = ("default",)
    inference_steps = attacked_steps = 0

    def __init__(self, classifier: Callable[[Tensor], Tensor], num_classes: int) -> None:
        self.classifier, self.num_classes = classifier, num_classes

    def __call__(self, x: Tensor, /) -> Tensor:
        return self.classifier(x)

    def verdict(self, x: Tensor) -> Verdict:
        labels = self(x).argmax(1)
        return Verdict(labels, torch.zeros_like(labels, dtype=torch.bool))


@dataclass(frozen=True, kw_only=True)
class Transfer(PGD):
    """PGD on the attacker's own classifier (`Target.source`), without a single query of the defense.

    It uses all of its steps, because a success on its own classifier says nothing about the defense.
    """

    knowledge = "oblivious"
    part: Part = "classifier"

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        surrogate = Surrogate(target.source(), target.num_classes)
        return super().run(Target(surrogate, len(x)), x, y, eps, seed)

    def passes(self) -> tuple[int, int]:
        """Return 0 passes, since none goes through the defense."""
        return 0, 0

    def unsuited(self, defense: AttackableDefense) -> str | None:
        return None
