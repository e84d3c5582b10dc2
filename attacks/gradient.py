"""Projected gradient ascent within a ball, and the attacks that are settings of it.

`ProjectedAscent` does the bookkeeping: steps, the best point so far, and inputs that leave the batch once they are
beaten; `attacks.selective` uses it too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from manifold_bench.attacks.base import ViewAttack
from manifold_bench.attacks.batching import all_rows, remaining
from manifold_bench.attacks.contract import AttackableDefense
from manifold_bench.attacks.losses import Loss, LossName, accepted_and_wrong, named_loss
from manifold_bench.attacks.target import Target
from manifold_bench.attacks.threat import Norm, draw_per_input, expand, flat_norm, project, random_in_ball
from manifold_bench.attacks.view import View

CONFIRM_EVERY = 10
"""Steps from which on full-strength confirmations are asked where the attacked view is not the deployed defense."""

STRAY: dict[Norm, float] = {"linf": 0.05, "l2": 0.5}
"""Length of a random step where an attack that follows boundaries has no gradient to follow."""

NO_RANDOMNESS = "eot is the mean over a defense's own randomness, and this one has none"


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """The unit step of steepest ascent: the sign in L∞, the normalised gradient in L2. [N,C,H,W] → same."""
    if norm == "linf":
        return gradient.sign()
    # First by the largest entry: the squares of a confident model's tiny gradients would vanish
    scaled = gradient / expand(flat_norm(gradient, "linf").clamp_min(1e-37), gradient)
    return scaled / expand(flat_norm(scaled, "l2").clamp_min(1e-12), gradient)


def or_random(gradient: Tensor, point: Tensor, seed: int) -> Tensor:
    """Gradients at points [N,C,H,W], but a random direction where one is exactly zero: to stay would be to give up."""
    stuck = ~(gradient != 0).flatten(1).any(1)
    if not stuck.any():
        return gradient
    gradient, shape = gradient.clone(), point.shape[1:]
    gradient[stuck] = draw_per_input(point[stuck], seed, lambda generator: torch.randn(shape, generator=generator))
    return gradient


def or_stray(step: Tensor, slope: Tensor, point: Tensor, norm: Norm, seed: int) -> Tensor:
    """Steps from points [N,C,H,W], but a random one of length `STRAY` where the slope [N,...] is exactly zero."""
    stuck = ~(slope != 0).flatten(1).any(1)
    if not stuck.any():
        return step
    aside = steepest(or_random(torch.zeros_like(point), point, seed), norm)
    return torch.where(expand(stuck, step), STRAY[norm] * aside, step)


def confirming(step: int) -> bool:
    """Whether claims are confirmed at that step: 0, 10, 20, 40, 80, …; a full answer may cost more than all steps."""
    rounds, rest = divmod(step, CONFIRM_EVERY)
    return rest == 0 and rounds & (rounds - 1) == 0


@dataclass(frozen=True, kw_only=True)
class FGSM(ViewAttack):
    """Fast gradient sign method: one step of length ε along the sign of the gradient.

    x + ε sign ∇L; in L2 the step goes along the normalised gradient.

    loss: name of the loss that is climbed, see `attacks.losses.named_loss`.
    random: length of a random step before it, in the attack's norm, by which the other one is shorter (RAND+FGSM,
    Tramèr et al. 2018, where it is 0.05 in L∞).
    """

    paper = "goodfellow2015"
    version: ClassVar[int] = 2
    loss: LossName = "auto"
    random: Annotated[float, Ge(0), Lt(math.inf)] = 0.0

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        view = self.view(target)
        loss = named_loss(self.loss, view.rejects, targeted=False)
        rows = all_rows(x)
        first, point = min(self.random, eps), x
        if first:
            aside = draw_per_input(x, seed, lambda generator: torch.randn(x.shape[1:], generator=generator))
            point = project(x + first * steepest(aside, self.norm), x, self.norm, first)
        _, _, gradient = view.ascent(point, lambda z: loss(z, y, view.num_classes, None), rows)
        return project(point + (eps - first) * steepest(gradient, self.norm), x, self.norm, eps)

    def passes(self) -> tuple[int, int]:
        return 1, 1


Look = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor, Tensor]]
"""How an ascent sees points [n,C,H,W] of certain rows of its batch: their logits, objective [n] and its gradient.

The last argument says that it is the last look: no gradient is asked for.
"""


def looking(view: View, climbed: Loss, y: Tensor, aims: Tensor | None) -> Look:
    """At that loss for labels y [N], towards the classes `aims` [N] where given."""

    def look(point: Tensor, rows: Tensor, last: bool) -> tuple[Tensor, Tensor, Tensor]:
        def loss(logits: Tensor) -> Tensor:
            return climbed(logits, y[rows], view.num_classes, None if aims is None else aims[rows])

        if not last:
            return view.ascent(point, loss, rows)
        logits = view.answer(point, rows)
        return logits, loss(logits), torch.zeros_like(point)

    return look


def averaged(looks: Sequence[Look]) -> Look:
    """Return a look that averages several: expectation over the defense's randomness (EOT, Athalye et al. 2018)."""

    def look(point: Tensor, rows: Tensor, last: bool) -> tuple[Tensor, Tensor, Tensor]:
        seen = [one(point, rows, last) for one in looks]
        logits, values, gradient = (torch.stack(parts).mean(0) for parts in zip(*seen, strict=True))
        return logits, values, gradient

    return looks[0] if len(looks) == 1 else look


@dataclass
class Best:
    """The point of each input with the largest loss so far. point: [N,C,H,W], loss: [N]."""

    point: Tensor
    loss: Tensor

    def update(self, rows: Tensor, point: Tensor, loss: Tensor, beaten: Tensor | None = None) -> None:
        """Take over what is better at those rows, and in any case what is beaten [n]."""
        better = loss > self.loss[rows]
        better = (better if beaten is None else better | beaten).nonzero()[:, 0]
        # these two take a fifth of the time that indexing images by rows does
        self.point.index_copy_(0, rows[better], point.index_select(0, better))
        self.loss[rows[better]] = loss[better].to(self.loss)


@dataclass(frozen=True)
class Climb:
    """One ascent of a batch: images x [N,C,H,W] with labels y [N], within ε.

    view: what is attacked; look: how points are seen; best: the best points so far, which the ascent updates; final:
    whether no other ascent follows.
    """

    view: View
    look: Look
    x: Tensor
    y: Tensor
    eps: float
    best: Best
    final: bool

    def beaten(self, point: Tensor, rows: Tensor, logits: Tensor, step: int, last: bool) -> Tensor:
        """Which points [n,C,H,W] of those rows may leave the ascent: accepted and wrong, confirmed now and then → [n].

        What is claimed at the very end of the final ascent needs no confirmation: the judge asks anyway. An attack
        on a part runs to its end for every input: what it believes of success says nothing of the whole.
        """
        y = self.y[rows]
        claimed = accepted_and_wrong(logits, y, self.view.num_classes)
        if self.view.part != "defense":
            return torch.zeros_like(claimed)
        if last and self.final:
            return claimed
        return self.view.confirmed(point, y, rows, claimed, due=last or confirming(step))


@dataclass(frozen=True, kw_only=True)
class ProjectedAscent(ViewAttack):
    """Steepest ascent, projected on the ball after every step, from several starts.

    An input leaves the batch as soon as it is beaten.

    steps: number of steps of each ascent. restarts: number of ascents, each from a start of its own.
    step_size: length of a step; None means 2.5 ε / steps.
    """

    steps: Annotated[int, Ge(1)] = 40
    restarts: Annotated[int, Ge(1)] = 1
    step_size: Annotated[float, Gt(0), Lt(math.inf)] | None = None

    def size(self, step: int, eps: float) -> float:
        """Length of that step, in the attack's norm."""
        return 2.5 * eps / self.steps if self.step_size is None else self.step_size

    def direction(self, gradient: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """gradient, memory: [N,C,H,W] → ascent direction of unit length and new memory, same shapes."""
        return steepest(gradient, self.norm), memory

    def climb(self, climb: Climb, rows: Tensor, point: Tensor) -> Tensor:
        """Ascend from points [n,C,H,W] of those rows; updates `climb.best`, returns the rows that are not beaten."""
        memory, origin = torch.zeros_like(point), climb.x[rows]
        for step in range(self.steps + 1):
            last = step == self.steps
            logits, values, gradient = climb.look(point, rows, last)
            beaten = climb.beaten(point, rows, logits, step, last)
            climb.best.update(rows, point, values, beaten)
            rows, point, memory, gradient, origin = remaining(~beaten, rows, point, memory, gradient, origin)
            if last or not len(rows):
                break
            direction, memory = self.direction(or_random(gradient, point, step), memory)
            point = project(point.add(direction, alpha=self.size(step, climb.eps)), origin, self.norm, climb.eps)
        return rows


@dataclass(frozen=True, kw_only=True)
class PGD(ProjectedAscent):
    """Projected gradient descent: climbs the loss from random starts and keeps the best point.

    x ← Π(x + α sign ∇L), Π the projection on the ball; in L2 along the normalised gradient.

    Without random_start and with one restart it is BIM (Kurakin et al. 2017).

    loss: name of the loss that is climbed, see `attacks.losses.named_loss`.
    random_start: whether ascents begin at random points of the ball; without it, all begin at the input.
    targeted: whether it aims at every wrong class in turn, with all restarts for each, instead of away from the label;
    not for cross-entropy.
    eot: number of answers of a randomized defense over which every loss and gradient is averaged (EOT). Where the
    defense optimises, each has an optimisation of its own that goes on from step to step.
    """

    paper = "madry2018"
    version: ClassVar[int] = 2
    loss: LossName = "auto"
    random_start: bool = True
    targeted: bool = False
    eot: Annotated[int, Ge(1)] = 1

    def __post_init__(self) -> None:
        if self.targeted and self.loss == "cross-entropy":
            raise ValueError("targeted: not for loss = 'cross-entropy'; leave the loss out or use a margin")

    @property
    def adapted_to(self) -> tuple[str, ...]:
        return ("projection",) if self.gradient in ("gauss-newton", "implicit") else ("adversarial training",)

    def passes(self) -> tuple[int, int]:
        climbs = self.restarts * (9 if self.targeted else 1)  # a guess: the classes aren't known here
        return climbs * (self.steps + 1) * self.eot, climbs * self.steps * self.eot

    def unsuited(self, defense: AttackableDefense) -> str | None:
        return (NO_RANDOMNESS if self.eot > 1 and not defense.randomized else None) or super().unsuited(defense)

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        best = Best(x.clone(), x.new_full((len(x),), -torch.inf))
        rows = all_rows(x)
        offsets = range(1, target.num_classes) if self.targeted else (None,)
        climbs = list(product(range(self.restarts), offsets))
        for number, (_, offset) in enumerate(climbs):
            start = random_in_ball(x[rows], self.norm, eps, seed + number) if self.random_start else x[rows]
            aims = None if offset is None else (y + offset) % target.num_classes
            views = [self.view(target) for _ in range(self.eot)]
            loss = named_loss(self.loss, views[0].rejects, self.targeted)
            look = averaged([looking(view, loss, y, aims) for view in views])
            climb = Climb(views[0], look, x, y, eps, best, final=number == len(climbs) - 1)
            rows = self.climb(climb, rows, start)
            if not len(rows):
                break
        return best.point


@dataclass(frozen=True, kw_only=True)
class MIM(PGD):
    """Momentum iterative method: PGD along a running sum of the normalised gradients.

    g ← μ g + ∇/‖∇‖₁, x ← x + α sign(g), α = ε / steps (their algorithm 1).

    In L2: x ← x + α g/‖g‖₂ (their eq. 9). decay: the factor μ of the running sum.
    """

    paper = "dong2018"
    steps: Annotated[int, Ge(1)] = 10
    random_start: bool = False
    decay: Annotated[float, Ge(0), Lt(math.inf)] = 1.0

    def size(self, step: int, eps: float) -> float:
        return eps / self.steps if self.step_size is None else self.step_size

    def direction(self, gradient: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        length = gradient.abs().flatten(1).sum(1).clamp_min(1e-37)
        memory = self.decay * memory + gradient / expand(length, gradient)
        return steepest(memory, self.norm), memory
