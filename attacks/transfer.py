"""Attacks made on another model and shown to the defense."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from manifold_bench.attacks.base import Knowledge
from manifold_bench.attacks.contract import AttackableDefense, Part
from manifold_bench.attacks.gradient import PGD
from manifold_bench.attacks.target import Target


@dataclass(frozen=True, kw_only=True)
class Transfer(PGD):
    """PGD on a classifier of the attacker's own (`Target.source`), climbed to its end; the defense is never asked.

    A success on the source says nothing of the defense, so no input leaves the batch early (as with part =
    "classifier").
    """

    part: Part = "classifier"

    @property
    def knowledge(self) -> Knowledge:
        return "oblivious"

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        own: Any = SimpleNamespace(
            classifier=target.source(), num_classes=target.num_classes, gradient_modes=("default",), randomized=False
        )
        return super().run(Target(own, len(x)), x, y, eps, seed)

    def passes(self) -> tuple[int, int]:
        """None through the defense."""
        return 0, 0

    def unsuited(self, defense: AttackableDefense) -> str | None:
        return None
