"""Projected gradient ascent within a ball, and the attacks that are settings of it.

`PGD` does the bookkeeping: random starts, restarts, the best point so far, and inputs that leave the batch once
they are beaten.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from attacks.base import Attack, Knowledge
from attacks.losses import LossName, accepted_and_wrong, named_loss
from attacks.target import AttackableDefense, GradientMode, Part, Target
from attacks.threat import Norm, expand, flat_norm, project, random_in_ball

CONFIRM_EVERY = 10
"""Steps between full-strength confirmations where the attacked view is not the deployed defense."""


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """The unit step of steepest ascent: the sign in L∞, the normalised gradient in L2. [N,C,H,W] → same."""
    if norm == "linf":
        return gradient.sign()
    return gradient / expand(flat_norm(gradient, "l2").clamp_min(1e-12), gradient)


@dataclass(frozen=True, kw_only=True)
class GradientAttack(Attack):
    """What gradient attacks share: which part, through which gradients, up which loss.

    part: what is differentiated: the whole `defense`, or its `classifier` alone by an attacker who doesn't know the
    rest; the result is judged by the whole defense all the same.
    gradient: how gradients pass what isn't differentiable; `default` is the defense's own choice.
    inner_steps: steps an optimisation inside the defense takes while it is attacked (after its first, full one).
    loss: `auto` is cross-entropy, and the selective margin where the outputs can reject.
    """

    part: Part = "defense"
    gradient: GradientMode = "default"
    inner_steps: Annotated[int, Ge(1)] = 20
    loss: LossName = "auto"

    @property
    def knowledge(self) -> Knowledge:
        return "white-box" if self.part == "defense" else "oblivious"

    def unsuited(self, defense: AttackableDefense) -> str | None:
        if self.part == "classifier" and defense.classifier is None:
            return "the defense has no classifier apart from itself: the attack on the defense is this one"
        if self.gradient != "default" and (self.part != "defense" or self.gradient not in defense.gradient_modes):
            return f"gradient = {self.gradient!r} is for defenses that project, attacked as a whole"
        return None


@dataclass(frozen=True, kw_only=True)
class FGSM(GradientAttack):
    """Fast gradient method: one step of size ε (Goodfellow et al. 2015); in L2 along the normalised gradient."""

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        view = target.view(self.part, self.gradient, self.inner_steps)
        loss = named_loss(self.loss, view.rejects)
        rows = torch.arange(len(x), device=x.device)
        _, _, gradient = view.ascent(x, lambda z: loss(z, y, view.num_classes), rows)
        return project(x + eps * steepest(gradient, self.norm), x, self.norm, eps)

    def passes(self) -> tuple[int, int]:
        return 1, 1


@dataclass(frozen=True, kw_only=True)
class PGD(GradientAttack):
    """Projected gradient descent from random starts (Madry et al. 2018), keeping the best point of all.

    step_size: None means 2.5 ε / steps. Without random_start and with one restart it is BIM (Kurakin et al. 2017).
    An input leaves the batch as soon as it is beaten.
    """

    steps: Annotated[int, Ge(1)] = 40
    restarts: Annotated[int, Ge(1)] = 1
    step_size: Annotated[float, Gt(0)] | None = None
    random_start: bool = True

    def passes(self) -> tuple[int, int]:
        return self.restarts * (self.steps + 1), self.restarts * self.steps

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        best = Best(x.clone(), x.new_full((len(x),), -torch.inf))
        rows = torch.arange(len(x), device=x.device)
        for restart in range(self.restarts):
            start = random_in_ball(x[rows], self.norm, eps, seed + restart) if self.random_start else x[rows]
            rows = self._climb(target, x, y, rows, start, eps, best)
            if not len(rows):
                break
        return best.point

    def _climb(
        self, target: Target, x: Tensor, y: Tensor, rows: Tensor, point: Tensor, eps: float, best: Best
    ) -> Tensor:
        """One ascent of those rows from `point`; updates `best` and returns the rows that are not beaten yet."""
        view = target.view(self.part, self.gradient, self.inner_steps)
        loss = named_loss(self.loss, view.rejects)
        size = 2.5 * eps / self.steps if self.step_size is None else self.step_size
        for step in range(self.steps + 1):
            last = step == self.steps
            labels = y[rows]
            if last:
                logits = view.answer(point, rows)
                values = loss(logits, labels, view.num_classes)
            else:
                logits, values, gradient = view.ascent(point, lambda z: loss(z, y[rows], view.num_classes), rows)
            beaten = accepted_and_wrong(logits, labels, view.num_classes)
            if not view.exact:
                beaten = self._confirmed(target, point, labels, rows, beaten, due=last or step % CONFIRM_EVERY == 0)
            best.update(rows, point, values, beaten)
            if beaten.any():
                rows, point = rows[~beaten], point[~beaten]
            if last or not len(rows):
                break
            direction = steepest(gradient[~beaten], self.norm)
            point = project(point + size * direction, x[rows], self.norm, eps)
        return rows

    def _confirmed(
        self, target: Target, point: Tensor, labels: Tensor, rows: Tensor, claimed: Tensor, due: bool
    ) -> Tensor:
        """Which claimed successes the full-strength defense confirms → [n] bool; asked only when due.

        An attack on a part runs to its end for every input: what it believes of success says nothing of the whole.
        """
        beaten = torch.zeros_like(claimed)
        if due and claimed.any() and self.part == "defense":
            beaten[claimed] = target.verdict(point[claimed], rows[claimed]).wrong(labels[claimed])
        return beaten


@dataclass
class Best:
    """The best point of each input so far, by loss; a beaten input's point is final. point: [N,C,H,W], loss: [N]."""

    point: Tensor
    loss: Tensor

    def update(self, rows: Tensor, point: Tensor, loss: Tensor, beaten: Tensor) -> None:
        """Takes over what is better at those rows, and what is beaten in any case."""
        better = (loss > self.loss[rows]) | beaten
        self.point[rows[better]] = point[better]
        self.loss[rows[better]] = loss[better]
