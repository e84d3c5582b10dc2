"""Projected gradient ascent within a ball, and the attacks that are settings of it.

`ProjectedAscent` does the bookkeeping: steps, the best point so far, and inputs that leave the batch once they are
beaten; `attacks.selective` uses it too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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
from manifold_bench.attacks.threat import Norm, draw_per_input, expand, project, random_in_ball, steepest
from manifold_bench.attacks.view import View

CONFIRM_EVERY = 10
"""Number of steps between confirmations by the deployed defense, if the attacked view is not the deployed defense."""

STRAY: Mapping[Norm, float] = {"linf": 0.05, "l2": 0.5, "l1": 2.0}
"""Length of the random step that an attack on boundaries takes where the gradient is zero."""

NO_RANDOMNESS = (
    "this defense is not randomized, so eot > 1 would average equal answers; leave eot out, or say randomized = True"
)


def or_random(gradient: Tensor, point: Tensor, seed: int) -> Tensor:
    """Return the gradients at points [N,C,H,W], with random directions in place of those that are exactly zero."""
    stuck = ~(gradient != 0).flatten(1).any(1)
    if not stuck.any():
        return gradient
    gradient, shape = gradient.clone(), point.shape[1:]
    gradient[stuck] = draw_per_input(point[stuck], seed, lambda generator: torch.randn(shape, generator=generator))
    return gradient


def or_stray(step: Tensor, slope: Tensor, point: Tensor, norm: Norm, seed: int) -> Tensor:
    """Return the steps [N,C,H,W] of an attack, and random steps of length `STRAY` where its gradient is exactly zero.

    slope: gradients by which the steps were computed, [N,...]; an input is stuck where all of them are zero. point:
    points [N,C,H,W] from which the steps go. norm: norm of the length. seed: seed of the random steps.
    """
    stuck = ~(slope != 0).flatten(1).any(1)
    if not stuck.any():
        return step
    aside = steepest(or_random(torch.zeros_like(point), point, seed), norm)
    return torch.where(expand(stuck, step), STRAY[norm] * aside, step)


def confirming(step: int) -> bool:
    """Return whether claims are confirmed at that step: 0, 10, 20, 40, 80, …

    It is rarely, because one answer of the deployed defense may cost more than all steps of the attack.
    """
    rounds, rest = divmod(step, CONFIRM_EVERY)
    return rest == 0 and rounds & (rounds - 1) == 0


@dataclass(frozen=True, kw_only=True)
class FGSM(ViewAttack):
    """Fast gradient sign method: one step of length ε along the sign of the gradient.

    x + ε sign ∇L; in L2 the step goes along the normalised gradient, and in L1 along the signs of its largest entries.

    loss: loss that is climbed, as for `PGD`: `auto` is `selective` for a defense that rejects, and `cross-entropy` for
    any other.
    random: length of a random step before the gradient step, in the attack's norm; the gradient step is shorter by that
    much (α of RAND+FGSM, whose paper takes 0.05 in L∞). Raises ValueError where nothing is left for the gradient step.
    """

    paper = "goodfellow2015"
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")
    version: ClassVar[int] = 2
    loss: LossName = "auto"
    random: Annotated[float, Ge(0), Lt(math.inf)] = 0.0

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        view = self.view(target)
        loss = named_loss(self.loss, view.rejects, targeted=False)
        rows = all_rows(x)
        first, point = self.random_step(eps), x
        if first >= eps > 0:
            raise ValueError(f"random: {first:g} leaves nothing of ε = {eps:g} for the gradient step; give less")
        if first:
            aside = draw_per_input(x, seed, lambda generator: torch.randn(x.shape[1:], generator=generator))
            point = project(x + first * steepest(aside, self.norm), x, self.norm, first)
        _, _, gradient = view.ascent(point, lambda z: loss(z, y, view.num_classes, None), rows)
        return project(point + (eps - first) * steepest(gradient, self.norm), x, self.norm, eps)

    def random_step(self, eps: float) -> float:
        """Return the length of the random step within ε."""
        return self.random

    def passes(self) -> tuple[int, int]:
        return 1, 1


@dataclass(frozen=True, kw_only=True)
class RandFGSM(FGSM):
    """RAND+FGSM: a random step of at most ε/2 first, then FGSM with what is left of ε.

    x′ = x + α sign N(0, I), then x′ + (ε − α) sign ∇L(x′); in L2 both steps go along normalised vectors. The random
    step leads away from points where a defense has flattened the loss.
    """

    paper = "tramer2018"
    version: ClassVar[int] = 3
    random: Annotated[float, Ge(0), Lt(math.inf)] = 0.05

    def random_step(self, eps: float) -> float:
        return min(self.random, eps / 2)


Evaluator = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor, Tensor]]
"""A function that evaluates points [n,C,H,W] of some rows [n] of the batch → logits, objective [n], its gradient.

The last argument says whether this is the last evaluation, which needs no gradient.
"""


def evaluator_of(view: View, climbed: Loss, y: Tensor, aims: Tensor | None) -> Evaluator:
    """Return a function that evaluates the loss `climbed` for labels y [N] and target classes `aims` [N] or None."""

    def evaluate(point: Tensor, rows: Tensor, last: bool) -> tuple[Tensor, Tensor, Tensor]:
        def loss(logits: Tensor) -> Tensor:
            return climbed(logits, y[rows], view.num_classes, None if aims is None else aims[rows])

        if not last:
            return view.ascent(point, loss, rows)
        logits = view.answer(point, rows)
        return logits, loss(logits), torch.zeros_like(point)

    return evaluate


def averaged(evaluators: Sequence[Evaluator]) -> Evaluator:
    """Return the mean of several evaluations: expectation over the defense's randomness (EOT, Athalye et al. 2018)."""

    def evaluate(point: Tensor, rows: Tensor, last: bool) -> tuple[Tensor, Tensor, Tensor]:
        evaluated = [one(point, rows, last) for one in evaluators]
        logits, values, gradient = (torch.stack(parts).mean(0) for parts in zip(*evaluated, strict=True))
        return logits, values, gradient

    return evaluators[0] if len(evaluators) == 1 else evaluate


def smoothed(evaluate: Evaluator, neighbours: int, radius: float, norm: Norm, seed: int) -> Evaluator:
    """Return an evaluation whose gradient is the mean over each point and `neighbours` random points near it.

    Logits and objective are those of the point itself. The neighbours are uniform in the ball of that radius. They are
    evaluated first, so that a warm start goes on from the point.
    """

    def around(point: Tensor, rows: Tensor, last: bool) -> tuple[Tensor, Tensor, Tensor]:
        near = range(0 if last else neighbours)
        slopes = [evaluate(random_in_ball(point, norm, radius, seed + k), rows, last)[2] for k in near]
        logits, values, gradient = evaluate(point, rows, last)
        return logits, values, torch.stack([*slopes, gradient]).mean(0)

    return around if neighbours else evaluate


@dataclass
class Best:
    """The best point of each input; `update` replaces it by a point that beat the defense or has a larger loss.

    A caller that passes `beaten` stops updating those inputs. point: images [N,C,H,W] or latents [N,k]. loss: [N].
    """

    point: Tensor
    loss: Tensor

    def update(self, rows: Tensor, point: Tensor, loss: Tensor, beaten: Tensor | None = None) -> None:
        """Replace the best points of those rows by points [n,C,H,W] that have a larger loss [n] or are `beaten` [n]."""
        better = loss > self.loss[rows]
        better = (better if beaten is None else better | beaten).nonzero()[:, 0]
        # index_copy_ and index_select take a fifth of the time of indexing images by rows
        self.point.index_copy_(0, rows[better], point.index_select(0, better))
        self.loss[rows[better]] = loss[better].to(self.loss)


def nearest_so_far(view: View, x: Tensor, y: Tensor, clean: Tensor) -> tuple[Best, Tensor]:
    """Return the best points of attacks that look for small distances, before they begin, and the rows still to beat.

    clean: logits of the images x [N,C,H,W], whose labels are y [N]. An input that is wrong without an attack is beaten
    at distance 0. The loss of the best points is the negative distance, −∞ for inputs that are not beaten.
    """
    rows = all_rows(x)
    beaten = view.confirmed(x, y, rows, accepted_and_wrong(clean, y, view.num_classes))
    return Best(x.clone(), torch.where(beaten, 0.0, -torch.inf).to(x)), rows[~beaten]


@dataclass(frozen=True)
class Climb:
    """One ascent from images x [N,C,H,W] with labels y [N], within ε.

    view: view of the attacked defense. evaluate: function that evaluates points. best: best points so far, which the
    ascent updates. final: whether this is the last ascent of the attack.
    """

    view: View
    evaluate: Evaluator
    x: Tensor
    y: Tensor
    eps: float
    best: Best
    final: bool

    def beaten(self, point: Tensor, rows: Tensor, logits: Tensor, step: int, last: bool) -> Tensor:
        """Return which points [n,C,H,W] of those rows are confirmed successes, and leave the ascent → [n] bool.

        At the very end of the final ascent no confirmation is needed, because the judge follows. An attack on a part
        runs to its end for every input, because a success on a part says nothing about the whole defense.
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
    """Steepest ascent from several starts, projected on the ball after every step.

    An input leaves the batch as soon as the attack succeeds on it.

    steps: number of steps of each ascent. restarts: number of ascents, each from a start of its own.
    step_size: length of a step; None means 2.5 ε / steps.
    """

    steps: Annotated[int, Ge(1)] = 40
    restarts: Annotated[int, Ge(1)] = 1
    step_size: Annotated[float, Gt(0), Lt(math.inf)] | None = None

    def size(self, step: int, eps: float) -> float:
        """Return the length of that step, in the attack's norm."""
        return 2.5 * eps / self.steps if self.step_size is None else self.step_size

    def direction(self, gradient: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ascent direction of unit length and the new memory, both [N,C,H,W] like gradient and memory."""
        return steepest(gradient, self.norm), memory

    def climb(self, climb: Climb, rows: Tensor, point: Tensor) -> Tensor:
        """Ascend from points [n,C,H,W] of those rows, update `climb.best`, and return the rows without a success."""
        memory, origin = torch.zeros_like(point), climb.x[rows]
        for step in range(self.steps + 1):
            last = step == self.steps
            logits, values, gradient = climb.evaluate(point, rows, last)
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

    x ← Π(x + α sign ∇L), where Π projects on the ball; in L2 the step goes along the normalised gradient, and in L1
    along the signs of its largest 5 % (sparse L1 descent, Tramèr & Boneh 2019).

    loss: loss that is climbed: `cross-entropy`; `margin`, the largest wrong logit minus the true one, without the
    reject score; `selective-margin`, the margin in which the wrong logit has to exceed the reject score, too;
    `selective`, the margin until the answer is wrong, and from there on how clearly it is accepted; or `auto`, which is
    `selective` for a defense that rejects, and for any other `cross-entropy` (`margin` where `targeted`).
    random_start: whether ascents start at random points of the ball; otherwise they start at the input.
    targeted: whether there are ascents towards every wrong class, with all restarts for each, in place of ascents away
    from the label; not for cross-entropy.
    eot: number of answers of a randomized defense over which every loss and gradient is averaged (EOT). If the defense
    optimises at inference, each of these answers has its own optimisation, which goes on from step to step.
    neighbours: number of random points near each point over which its gradient is averaged too, for defenses whose
    gradient is shattered: it changes from one pixel value to the next. radius: largest distance of these points, in the
    attack's norm.
    """

    paper = "madry2018"
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")
    version: ClassVar[int] = 2
    loss: LossName = "auto"
    random_start: bool = True
    targeted: bool = False
    eot: Annotated[int, Ge(1)] = 1
    neighbours: Annotated[int, Ge(0)] = 0
    radius: Annotated[float, Gt(0), Lt(math.inf)] = 0.05

    def __post_init__(self) -> None:
        if self.targeted and self.loss == "cross-entropy":
            raise ValueError("targeted: impossible with loss = 'cross-entropy'; leave loss out, or set it to 'margin'")

    @property
    def adapted_to(self) -> tuple[str, ...]:
        if self.gradient in ("gauss-newton", "implicit"):
            return ("projection",)
        averaged = self.eot > 1 and self.gradient != "identity"
        through = ("projection",) if self.gradient == "unrolled" else ()
        return ("adversarial training", *through, *(("purification",) if averaged else ()))

    def passes(self) -> tuple[int, int]:
        climbs = self.restarts * (9 if self.targeted else 1)  # a guess, since the number of classes is not known here
        gradients = climbs * self.steps * (1 + self.neighbours) * self.eot
        return gradients + climbs * self.eot, gradients

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
            evaluate = averaged([evaluator_of(view, loss, y, aims) for view in views])
            evaluate = smoothed(evaluate, self.neighbours, self.radius, self.norm, seed)
            climb = Climb(views[0], evaluate, x, y, eps, best, final=number == len(climbs) - 1)
            rows = self.climb(climb, rows, start)
            if not len(rows):
                break
        return best.point


@dataclass(frozen=True, kw_only=True)
class BIM(PGD):
    """Basic iterative method: PGD that starts at the input instead of a random point.

    x₀ = x, xₜ₊₁ = Π(xₜ + α sign ∇L) with α = 2.5 ε / steps, where Π projects on the ball.
    """

    paper = "kurakin2017"
    steps: Annotated[int, Ge(1)] = 10
    random_start: bool = False


@dataclass(frozen=True, kw_only=True)
class MIM(PGD):
    """Momentum iterative method: PGD along a running sum of the normalised gradients.

    g ← μ g + ∇/‖∇‖₁, x ← x + α sign(g), α = ε / steps (algorithm 1 of the paper); in L2, x ← x + α g/‖g‖₂ (its eq. 9).

    decay: the factor μ of the running sum.
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
