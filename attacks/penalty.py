"""A penalty for the missing margin, weighted by bisection: what Carlini & Wagner's attack, EAD and ZOO share."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple, Protocol, Self

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor
from torch.nn import functional as F

from manifold_bench.attacks.base import ViewAttack
from manifold_bench.attacks.batching import all_rows, remaining
from manifold_bench.attacks.gradient import CONFIRM_EVERY, Best, nearest_so_far, or_random
from manifold_bench.attacks.losses import accepted_and_wrong, selective, typical_temperature
from manifold_bench.attacks.target import Target
from manifold_bench.attacks.threat import expand
from manifold_bench.attacks.view import View

PROGRESS = 0.9999
"""A descent ends where a tenth of its steps left the loss above this share of its value (as in the authors' code)."""


class DescentState(Protocol):
    """The images [n,C,H,W] at which a descent is, and what it remembers of its steps."""

    @property
    def image(self) -> Tensor: ...

    def only(self, going: Tensor) -> Self:
        """Return the state of the rows where `going` [n] is true."""
        ...

    def after(self, gradient: Tensor, step: int) -> Self:
        """Return the state after that step; gradient: gradient [n,C,H,W] of c times the missing margin."""
        ...


@dataclass(frozen=True)
class Search:
    """One descent, for images x [N,C,H,W] with labels y [N], on the penalty distance + c · margin of the logits.

    weight: the factor c of each image, [N], in inverse units of the logits. nearest: the nearest adversarial point met
    so far for each image; `Best` keeps the point of the largest value, here minus the distance.
    """

    view: View
    x: Tensor
    y: Tensor
    weight: Tensor
    nearest: Best


class Weights(NamedTuple):
    """The weights c of the penalty, one for each input, and the bounds between which they are bisected.

    now: weight of the next descent, [N]. lower: largest weight that failed, [N]; 0 before the first failure. upper:
    smallest weight that succeeded, [N]; ∞ before the first success.
    """

    now: Tensor
    lower: Tensor
    upper: Tensor

    @classmethod
    def first(cls, x: Tensor, c: float) -> Weights:
        """Return the weight c for each of the images x [N,C,H,W], with the bounds 0 and ∞."""
        return cls(x.new_full((len(x),), c), x.new_zeros(len(x)), x.new_full((len(x),), torch.inf))

    def after(self, rows: Tensor, succeeded: Tensor) -> Weights:
        """Return the next weights: ten times the last until one has succeeded, then the middle of their bounds.

        succeeded: whether those rows did, [n].
        """
        upper, lower = self.upper.clone(), self.lower.clone()
        upper[rows] = torch.where(succeeded, self.now[rows], upper[rows])
        lower[rows] = torch.where(succeeded, lower[rows], self.now[rows])
        return Weights(torch.where(upper.isfinite(), (lower + upper) / 2, 10 * self.now), lower, upper)


@dataclass(frozen=True, kw_only=True)
class PenaltyAttack(ViewAttack):
    """The base of attacks that minimise size(δ) + c · max(κ − margin, 0) over δ, with c found by bisection.

    searches: number of values of c that are tried: each is ten times the last until one succeeds; then bisection
    follows.
    steps: number of steps for each value of c.
    rate: learning rate of a step.
    c: the first value of c.
    confidence: the margin κ that a success needs.
    early: whether an input leaves a descent once a tenth of its steps lowered neither the least loss nor the smallest
    distance of a success (the authors' code stops whole batches, and only by the loss). Inputs that are wrong but
    rejected stay, because their reject excess may be larger than the margin was before. With
    `shrinking_steps` those that have succeeded stay, too.
    """

    minimal = True
    shrinking_steps: ClassVar[bool] = False
    """Whether steps become smaller, so that a descent that has succeeded comes nearest at its end."""

    searches: Annotated[int, Ge(1)] = 5
    steps: Annotated[int, Ge(1)] = 1000
    rate: Annotated[float, Gt(0), Lt(math.inf)] = 5e-3
    c: Annotated[float, Gt(0), Lt(math.inf)] = 0.01
    confidence: Annotated[float, Ge(0), Lt(math.inf)] = 0.0
    early: bool = True

    @abstractmethod
    def first_state(self, x: Tensor) -> DescentState:
        """Return the state of a descent that starts at images x [n,C,H,W]."""

    @abstractmethod
    def sizes(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Return the size that the loss has of perturbations [n,C,H,W], and their distance in `norm`, both [n]."""

    def passes(self) -> tuple[int, int]:
        return 1 + self.searches * self.steps, self.searches * self.steps

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        view = self.view(target)
        clean = view.answer(x, all_rows(x))
        unit = typical_temperature(clean, view.num_classes)
        nearest, rows = nearest_so_far(view, x, y, clean)
        weights = Weights.first(x, self.c)
        for _ in range(self.searches):
            if not len(rows):
                break
            succeeded = self._descend(Search(self.view(target), x, y, weights.now / unit, nearest), rows)
            weights = weights.after(rows, succeeded)
        return nearest.point

    def _descend(self, search: Search, rows: Tensor) -> Tensor:
        """Run one descent of those rows, update `search.nearest`, and return which of them succeeded, [n] bool."""
        view, x, y, weight, nearest = vars(search).values()
        succeeded = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        begun, origin = rows, x.index_select(0, rows)
        state = self.first_state(origin)
        least, least_before, distance_before = (x.new_full((len(rows),), torch.inf) for _ in range(3))
        for step in range(self.steps):
            image = state.image

            def excess(logits: Tensor, label: Tensor = y[rows]) -> Tensor:
                return F.relu(self.confidence - selective(logits, label, view.num_classes))

            logits, loss, gradient = view.ascent(image, excess, rows)
            claimed = accepted_and_wrong(logits, y[rows], view.num_classes) & (loss <= 0)
            due = step == self.steps - 1 or step % CONFIRM_EVERY == 0
            beaten = view.confirmed(image, y[rows], rows, claimed, due)
            succeeded[rows[beaten]] = True
            size, distance = self.sizes(image - origin)
            nearest.update(rows, image, -distance.masked_fill(~beaten, torch.inf))
            least = torch.minimum(least, size + weight[rows] * loss)
            if self.early and step % max(self.steps // 10, 1) == 0:
                distance = -nearest.loss[rows]
                past = (logits[:, : view.num_classes].argmax(1) != y[rows]) & ~beaten
                stays = past | succeeded[rows] if self.shrinking_steps else past
                going = (least < PROGRESS * least_before) | (distance < PROGRESS * distance_before) | stays
                least_before, distance_before = least[going], distance[going]
                rows, origin, least, gradient, loss = remaining(going, rows, origin, least, gradient, loss)
                state = state.only(going)
                if not len(rows):
                    break
            gradient = torch.where(expand(loss > 0, gradient), or_random(gradient, state.image, step), 0.0)
            state = state.after(expand(weight[rows], gradient) * gradient, step)
        return succeeded[begun]
