"""An attack with a Lagrange multiplier for each detector, for defenses that reject."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor
from torch.nn import functional as F

from manifold_bench.attacks.base import ViewAttack
from manifold_bench.attacks.batching import all_rows
from manifold_bench.attacks.contract import AttackableDefense, without_rejection
from manifold_bench.attacks.gradient import Best
from manifold_bench.attacks.lagrangian import Descent, IterateValues, ProblemValues, descend
from manifold_bench.attacks.losses import accepted_and_wrong, likeliest_wrong, margin, typical_temperature
from manifold_bench.attacks.selective import SLACK
from manifold_bench.attacks.target import Target
from manifold_bench.attacks.threat import project
from manifold_bench.attacks.view import View

CONFIRM_EVERY = 20
"""Number of steps between confirmations by the deployed defense, if the attacked view is not the deployed defense."""


@dataclass(frozen=True, kw_only=True)
class DetectorLagrangian(ViewAttack):
    """Climbs the margin of a wrong class, with a Lagrange multiplier for each detector.

    min over x′ in the ball, max over λ ≥ 0 of max(confidence − margin, 0) + Σᵢ λᵢ (rᵢ − 1), by Adam, class by
    class.

    The margin is that of the target class, and rᵢ the score of detector i over its threshold for the target class as
    the answer. A multiplier grows while its detector rejects and shrinks while it accepts, so that no weights have to
    be chosen. Margins are in units of the `typical_temperature` of the clean input's logits; so is the reject score of
    a defense without named detectors.

    steps: number of steps towards each class. targets: number of target classes, the likeliest for the clean input
    first; None: all. rate: Adam's learning rate as a share of ε (in L2: of ε divided by the root of the number of
    pixels). ascent: share of a detector's excess by which its multiplier grows in a step. confidence: margin of the
    target class that the attack demands.
    """

    version: ClassVar[int] = 2
    adapted_to = ("detection", "generative rejection")

    steps: Annotated[int, Ge(1)] = 200
    targets: Annotated[int, Ge(1)] | None = None
    rate: Annotated[float, Gt(0), Lt(math.inf)] = 0.1
    ascent: Annotated[float, Gt(0), Lt(math.inf)] = 0.2
    confidence: Annotated[float, Ge(0), Lt(math.inf)] = 5.0

    def __post_init__(self) -> None:
        if self.part != "defense":
            raise ValueError(f"part: {self.part!r} has no detectors, which this attack needs; leave part out")

    def passes(self) -> tuple[int, int]:
        evaluations = (self.targets or 9) * (self.steps + 1)  # a guess, since the number of classes is not known here
        return 1 + evaluations, evaluations

    def unsuited(self, defense: AttackableDefense) -> str | None:
        return super().unsuited(defense) or without_rejection(defense)

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        best, rows = Best(x.clone(), x.new_full((len(x),), -torch.inf)), all_rows(x)
        clean = self.view(target).answer(x, rows)
        likely, unit = likeliest_wrong(clean, y, target.num_classes), typical_temperature(clean, target.num_classes)
        for place in range(min(self.targets or target.num_classes, target.num_classes - 1)):
            rows = self.descend(self.view(target), (x, y, likely[:, place], unit), rows, eps, best)
            if not len(rows):
                break
        return best.point

    def descend(
        self, view: View, inputs: tuple[Tensor, Tensor, Tensor, Tensor], rows: Tensor, eps: float, best: Best
    ) -> Tensor:
        """Run one descent for the inputs at rows [n], update `best`, and return the rows without a success.

        inputs: images x, labels y, target classes and units of the logits, all [N,…].
        """
        (x, y, aims, unit), classes = inputs, view.num_classes
        left = torch.ones_like(rows, dtype=torch.bool)

        def problem(point: Tensor, at: Tensor) -> ProblemValues:
            own, images = rows[at], point.view(-1, *x.shape[1:])
            view.target.count(own, 1, 1)
            logits, ratios = view.detection(images, aims[own], own)
            view.record(images.detach(), own, logits.detach())
            excess = ratios - 1 if view.target.defense.detectors else (ratios - 1) / unit[own, None]
            ahead = margin(logits, aims[own], classes, aims[own]) / unit[own]
            succeeded = accepted_and_wrong(logits, y[own], classes)
            return ProblemValues(F.relu(self.confidence - ahead), excess + SLACK, succeeded)

        def callback(point: Tensor, at: Tensor, values: IterateValues, step: int) -> Tensor:
            own, images = rows[at], point.view(-1, *x.shape[1:])
            values.record_gradients(view.target, own)
            due = step % CONFIRM_EVERY == 0 or step == self.steps
            beaten = view.confirmed(images, y[own], own, values.succeeded, due)
            best.update(own, images, -(values.loss + values.excess.clamp_min(0).sum(1)), beaten)
            left[at[beaten]] = False
            return beaten

        def feasible(point: Tensor, at: Tensor) -> Tensor:
            return project(point.view(-1, *x.shape[1:]), x[rows[at]], self.norm, eps).flatten(1)

        rate = self.rate * eps / (math.sqrt(x[0].numel()) if self.norm == "l2" else 1.0)
        descend(problem, x[rows].flatten(1), callback, Descent(self.steps, rate, self.ascent), feasible)
        return rows[left]
