"""Fast adaptive boundary attack: minimal perturbations by projections on linearised boundaries (Croce & Hein 2020)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor

from manifold_bench.attacks.base import ViewAttack
from manifold_bench.attacks.batching import all_rows, remaining
from manifold_bench.attacks.gradient import CONFIRM_EVERY, Best, nearest_so_far, or_stray
from manifold_bench.attacks.losses import accepted_and_wrong, boundary, likeliest_wrong
from manifold_bench.attacks.target import Target
from manifold_bench.attacks.threat import Norm, expand, flat_norm
from manifold_bench.attacks.view import View

BIAS = 0.1
"""α_max in the paper: largest weight of the original image's projection in a step."""

OVERSHOOT = 1.05
"""η in the paper: length of a step, as a multiple of the distance to the linearised boundary."""

BACKWARD = 0.9
"""β in the paper: from a new adversarial point the search goes back to this share of its distance from the original."""


@dataclass(frozen=True, kw_only=True)
class FAB(ViewAttack):
    """Fast adaptive boundary attack: small perturbations by projections on linearised boundaries.

    It searches towards the likeliest wrong classes in turn, and keeps the smallest perturbation.

    Each step projects the point and the original image on the linearised boundary z_aim = z_y within the box [0,1], and
    goes to a weighted mean of both projections. In L1 projections change the values with the largest gradient, each as
    far as the box allows. On a defense that rejects, the boundary is that of acceptance as soon
    as the answer is wrong.

    targets: number of target classes. steps: number of steps towards each target class.

    With a finite ε (as a part of AutoAttack) an input leaves the batch as soon as its perturbation is within ε.
    Otherwise the search for the smallest perturbation uses all steps.
    """

    paper = "croce2020fab"
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")
    minimal = True

    targets: Annotated[int, Ge(1)] = 9
    steps: Annotated[int, Ge(1)] = 100

    def passes(self) -> tuple[int, int]:
        rounds = self.targets * self.steps
        return 1 + 2 * rounds, rounds

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        view = self.view(target)
        clean = view.answer(x, all_rows(x))
        nearest, rows = nearest_so_far(view, x, y, clean)
        for aims in likeliest_wrong(clean, y, target.num_classes).unbind(1)[: self.targets]:
            rows = self._search(Search(self.view(target), x, y, aims, eps, nearest), rows)
        return torch.where(expand(-nearest.loss <= eps, x), nearest.point, x)

    def _search(self, search: Search, rows: Tensor) -> Tensor:
        """Search for those rows, update `search.nearest`, and return the rows without a success within ε."""
        view, nearest, eps = search.view, search.nearest, search.eps
        point = origin = search.x.index_select(0, rows)
        for step in range(self.steps):
            if not len(rows):
                break
            label = search.y[rows]

            def lead(logits: Tensor, aim: Tensor = search.aims[rows, None], label: Tensor = label) -> Tensor:
                return boundary(logits, label, view.num_classes, aim)[:, 0]

            _, value, slope = view.ascent(point, lead, rows)
            # Projections of the point and of the original image on the plane value + slope · (z − point) = 0
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
    """A search for the boundaries between images x [N,C,H,W] with labels y [N] and the target classes `aims` [N].

    eps: size of a perturbation that ends the search for an input; ∞: none does. nearest: the adversarial points with
    the smallest distances; its loss is minus the distance.
    """

    view: View
    x: Tensor
    y: Tensor
    aims: Tensor
    eps: float
    nearest: Best


def to_plane(x: Tensor, slope: Tensor, value: Tensor, norm: Norm) -> Tensor:
    """Return the smallest step δ [N,C,H,W] in `norm` with x + δ in [0,1] and slope · δ = −value [N].

    slope: gradient of a linear function, [N,C,H,W]. Where no step within [0,1] is large enough, the largest one is
    returned.
    """
    size = slope.abs().flatten(1)
    down = -(slope * expand(value.sign(), slope)).sign()  # the direction in which each pixel has to change
    room = torch.where(down > 0, 1 - x, x).flatten(1) * (size > 0)
    step = least_change_l1(size, room, value.abs()) if norm == "l1" else least_change(size, room, value.abs(), norm)
    return down * step.view_as(x)


def least_change_l1(size: Tensor, room: Tensor, wanted: Tensor) -> Tensor:
    """Return the smallest change in L1 that moves a linear function by `wanted` [N]: the largest slopes first.

    size: absolute slope of each value, [N,D]. room: how far each may change, [N,D].
    """
    size, order = size.sort(dim=1, descending=True)
    room = room.gather(1, order)
    gained = size * room
    left = (wanted[:, None] - (gained.cumsum(1) - gained)).clamp_min(0)  # what the values before leave to do
    return torch.zeros_like(size).scatter_(1, order, torch.minimum(room, left / size.clamp_min(1e-37)))


def least_change(size: Tensor, room: Tensor, wanted: Tensor, norm: Norm) -> Tensor:
    """Return the smallest change in L∞ or L2 that moves a linear function by `wanted` [N]: all values change at once.

    size, room: as for `least_change_l1`.
    """
    rate = torch.ones_like(size) if norm == "linf" else size
    # At time t a pixel has changed by min(t · rate, room). The function's change is concave and piecewise linear in t,
    # so that Newton's method from 0 never overshoots and ends exactly at the solution after a few steps. Sorting the
    # pixels by their time of arrival would take three times as long.
    arrival = room / rate.clamp_min(1e-37)
    speed, gained = size * rate, size * room
    time, before = torch.zeros_like(wanted), torch.full_like(wanted, -1.0)
    while (time > before).any():
        moving = arrival > time[:, None]
        left = (wanted - gained.masked_fill(moving, 0.0).sum(1)).clamp_min(0)
        pull = speed.masked_fill(~moving, 0.0).sum(1).clamp_min(1e-37)
        before, time = time, torch.maximum(time, left / pull)
    return torch.minimum(time.clamp_max(1e30)[:, None] * rate, room)
