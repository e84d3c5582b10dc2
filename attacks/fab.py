"""Fast adaptive boundary attack: minimal perturbations by projections on linearised boundaries (Croce & Hein 2020)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from manifold_bench.attacks.base import ViewAttack
from manifold_bench.attacks.batching import all_rows, remaining
from manifold_bench.attacks.gradient import CONFIRM_EVERY, Best, or_stray
from manifold_bench.attacks.losses import accepted_and_wrong, boundary, likeliest_wrong
from manifold_bench.attacks.target import Target
from manifold_bench.attacks.threat import Norm, expand, flat_norm
from manifold_bench.attacks.view import View

BIAS = 0.1
"""α_max: how far a step may be drawn towards the original image."""

OVERSHOOT = 1.05
"""η: steps go that far past the linearised boundary."""

BACKWARD = 0.9
"""β: from a new adversarial point the search goes on at this share of its distance."""


@dataclass(frozen=True, kw_only=True)
class FAB(ViewAttack):
    """Fast adaptive boundary attack: small perturbations by projections on linearised boundaries.

    It aims at the likeliest wrong classes in turn, and the smallest perturbation found counts.

    Each step projects the point, and the original image, on the linearised boundary z_aim = z_y within the box, and
    goes to a mean of both. On a defense that rejects the boundary is that of acceptance as soon as the answer is wrong.

    targets: number of classes that are aimed at. steps: number of steps towards each.

    Within a finite ε (as a part of AutoAttack) an input leaves as soon as its perturbation is no larger; else it looks
    for the smallest to the end.
    """

    paper = "croce2020fab"
    minimal = True

    targets: Annotated[int, Ge(1)] = 9
    steps: Annotated[int, Ge(1)] = 100

    def passes(self) -> tuple[int, int]:
        rounds = self.targets * self.steps
        return 1 + 2 * rounds, rounds

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        rows, view = all_rows(x), self.view(target)
        clean = view.answer(x, rows)
        beaten = view.confirmed(x, y, rows, accepted_and_wrong(clean, y, view.num_classes))
        nearest = Best(x.clone(), torch.where(beaten, 0.0, -torch.inf).to(x))
        rows = rows[~beaten]
        for aims in likeliest_wrong(clean, y, target.num_classes).unbind(1)[: self.targets]:
            rows = self._search(Search(self.view(target), x, y, aims, eps, nearest), rows)
        return torch.where(expand(-nearest.loss <= eps, x), nearest.point, x)

    def _search(self, search: Search, rows: Tensor) -> Tensor:
        """Search for those rows; updates `search.nearest`, returns the rows not yet within ε."""
        view, nearest, eps = search.view, search.nearest, search.eps
        point = origin = search.x.index_select(0, rows)
        for step in range(self.steps):
            if not len(rows):
                break
            label = search.y[rows]

            def lead(logits: Tensor, aim: Tensor = search.aims[rows, None], label: Tensor = label) -> Tensor:
                return boundary(logits, label, view.num_classes, aim)[:, 0]

            _, value, slope = view.ascent(point, lead, rows)
            # The plane value + slope · (z − point) = 0, seen from the point and from the original image
            here = to_plane(point, slope, value, self.norm)
            offset = value + ((origin - point) * slope).flatten(1).sum(1)
            there = to_plane(origin, slope, offset, self.norm)
            near, far = (flat_norm(delta, self.norm).clamp_min(1e-8) for delta in (here, there))
            bias = expand((near / (near + far)).clamp_max(BIAS), point)
            here = or_stray(here, slope, point, self.norm, step)
            point = ((point + OVERSHOOT * here) * (1 - bias) + (origin + OVERSHOOT * there) * bias).clamp(0, 1)
            claimed = accepted_and_wrong(view.answer(point, rows), label, view.num_classes)
            due = step == self.steps - 1 or step % CONFIRM_EVERY == 0
            beaten = view.confirmed(point, label, rows, claimed, due)
            distance = flat_norm(point - origin, self.norm).masked_fill(~beaten, torch.inf)
            nearest.update(rows, point, -distance)
            point = torch.where(expand(beaten, point), origin + BACKWARD * (point - origin), point)
            going = -nearest.loss[rows] > eps if math.isfinite(eps) else torch.ones_like(beaten)
            rows, point, origin = remaining(going, rows, point, origin)
        return rows


@dataclass(frozen=True)
class Search:
    """A search for the boundaries between images x [N,C,H,W] with labels y [N] and the classes `aims` [N].

    It ends for an input within ε. nearest: adversarial points, of which the least distance is the best.
    """

    view: View
    x: Tensor
    y: Tensor
    aims: Tensor
    eps: float
    nearest: Best


def to_plane(x: Tensor, slope: Tensor, value: Tensor, norm: Norm) -> Tensor:
    """The smallest step within the box [0,1] that changes a linear function by −value. Shapes [N,C,H,W], value [N].

    slope: its gradient. Where no point of the box is far enough: the step to the farthest one.
    """
    size = slope.abs().flatten(1)
    down = -(slope * expand(value.sign(), slope)).sign()  # which way each pixel has to go
    room = torch.where(down > 0, 1 - x, x).flatten(1) * (size > 0)
    pace = torch.ones_like(size) if norm == "linf" else size
    # At time t a pixel has gone min(t · pace, room). What that achieves is concave and piecewise linear in t: Newton's
    # method from 0 never goes too far, and ends at the solution itself after a few steps; sorting the pixels by when
    # they arrive would take three times as long.
    arrival, wanted = room / pace.clamp_min(1e-37), value.abs()
    speed, gained = size * pace, size * room
    time, before = torch.zeros_like(wanted), torch.full_like(wanted, -1.0)
    while (time > before).any():
        moving = arrival > time[:, None]
        left = (wanted - gained.masked_fill(moving, 0.0).sum(1)).clamp_min(0)
        pull = speed.masked_fill(~moving, 0.0).sum(1).clamp_min(1e-37)
        before, time = time, torch.maximum(time, left / pull)
    step = torch.minimum(time.clamp_max(1e30)[:, None] * pace, room)
    return down * step.view_as(x)
