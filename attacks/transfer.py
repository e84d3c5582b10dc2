"""Attacks made on another model and shown to the defense."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from manifold_bench.attacks.contract import AttackableDefense, Part, Verdict
from manifold_bench.attacks.gradient import PGD
from manifold_bench.attacks.target import Target


class Surrogate:
    """A classifier of the attacker's own, images → logits [N,K], in the place of a defense under attack."""

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
    """PGD on a classifier of the attacker's own (`Target.source`), climbed to its end; the defense is never asked.

    A success on the source says nothing of the defense, so no input leaves the batch early (as with part =
    "classifier").
    """

    knowledge = "oblivious"
    part: Part = "classifier"

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        surrogate = Surrogate(target.source(), target.num_classes)
        return super().run(Target(surrogate, len(x)), x, y, eps, seed)

    def passes(self) -> tuple[int, int]:
        """None through the defense."""
        return 0, 0

    def unsuited(self, defense: AttackableDefense) -> str | None:
        return None
