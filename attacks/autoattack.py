"""AutoAttack: four attacks with fixed parameters, each on what resisted the ones before (Croce & Hein 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from torch import Tensor

from manifold_bench.attacks.apgd import APGD
from manifold_bench.attacks.base import Attack, ViewAttack
from manifold_bench.attacks.batching import all_rows
from manifold_bench.attacks.contract import AttackableDefense
from manifold_bench.attacks.fab import FAB
from manifold_bench.attacks.square import Square
from manifold_bench.attacks.target import Target
from manifold_bench.attacks.threat import Norm


@dataclass(frozen=True, kw_only=True)
class AutoAttack(ViewAttack):
    """AutoAttack: APGD, FAB and Square in a row, with fixed budgets and nothing to tune.

    An input is robust if argmax_k f(x′)_k = y for the outputs x′ of all of them. The budgets are those of the reference
    implementation. In L1 they are those of "Mind the box" (Croce & Hein 2021): untargeted APGD of `standard`
    starts five times, and targeted APGD has five target classes.

    variant: `version` of the reference implementation. `standard` is APGD on the cross-entropy, APGD on the DLR loss
    and FAB towards 9 classes each, all with 100 steps, and Square with 5,000 queries. `rand`, for randomized defenses,
    is untargeted APGD on the cross-entropy and on the DLR loss, with gradients that are means over 20 answers. The DLR
    loss needs four classes; with two or three the margin takes its place, and every wrong class is a target class.

    The deployed defense decides which inputs the next attack gets. On a defense that rejects, each attack includes the
    reject score in its loss.
    """

    paper = "croce2020apgd"
    version: ClassVar[int] = 3
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")
    adapted_to = ("adversarial training", "certified", "gradient masking", "input transformation")

    variant: Literal["standard", "rand"] = "standard"

    def __post_init__(self) -> None:
        if self.part != "defense":
            raise ValueError(f"part: {self.part!r} is not allowed here: Square needs the whole defense; leave it out")

    def members(self, classes: int) -> tuple[Attack, ...]:
        """Return the attacks on a defense with that number of classes, in their order."""
        loss: Literal["dlr", "margin"] = "dlr" if classes >= 4 else "margin"
        given, steps, warm = self.gradient, self.inner_steps, self.warm_start
        apgd = partial(APGD, norm=self.norm, gradient=given, inner_steps=steps, warm_start=warm)
        if self.variant == "rand":
            return apgd(eot=20), apgd(loss=loss, eot=20)
        restarts, targets = (5, 5) if self.norm == "l1" else (1, 9)
        return (
            apgd(restarts=restarts),
            apgd(loss=loss, targets=targets),
            FAB(targets=9, norm=self.norm, gradient=given, inner_steps=steps, warm_start=warm),
            Square(norm=self.norm, horizon=10_000),  # 5,000 queries, with the sizes of 10,000, as in the reference
        )

    def passes(self) -> tuple[int, int]:
        forwards, backwards = zip(*(member.passes() for member in self.members(classes=10)), strict=True)
        return sum(forwards) + len(forwards) - 1, sum(backwards)

    def unsuited(self, defense: AttackableDefense) -> str | None:
        return next(
            (reason for member in self.members(defense.num_classes) if (reason := member.unsuited(defense))), None
        )

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        found, rows = x.clone(), all_rows(x)
        members = self.members(target.num_classes)
        for member in members:
            found[rows] = member.run(target.only(rows), x[rows], y[rows], eps, seed)
            if member is members[-1]:
                break  # the judge decides about the last ones
            rows = rows[~target.verdict(found[rows], rows).wrong(y[rows])]
            if not len(rows):
                break
        return found
