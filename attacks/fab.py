"""Fast adaptive boundary attack: minimal perturbations by projections on linearised boundaries (Croce & Hein 2020)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from manifold_bench.attacks.batching import all_rows, remaining
from manifold_bench.attacks.gradient import CONFIRM_EVERY, GradientAttack
from manifold_bench.attacks.losses import accepted_and_wrong, boundary, likeliest_wrong
from manifold_bench.attacks.target import Target
from manifold_bench.attacks.threat import Norm, expand, flat_norm, random_in_ball
from manifold_bench.attacks.view import View

BIAS = 0.1
"""α_max: how far a step may be drawn towards the original image."""

OVERSHOOT = 1.05
"""η: steps go that far past the linearised boundary."""

BACKWARD = 0.9
"""β: from a new adversarial point the search goes on at this share of its distance."""

REACH: dict[Norm, float] = {"linf": 0.3, "l2": 1.0}
"""How far away restarts begin where neither an ε nor an adversarial point is known: half of that."""


@dataclass(frozen=True, kw_only=True)
class FAB(GradientAttack):
    """FAB, targeted: towards the likeliest wrong classes in turn, the smallest perturbation found counts.

    Each step projects the point, and the original image, on the linearised boundary z_aim = z_y within the box, and
    goes to a mean of both. On a defense that rejects the boundary is that of acceptance as soon as the answer is wrong.
    targets: how many classes; steps: towards each; restarts: of these, from a random point but for the first.
    Within a finite ε (as a part of AutoAttack) an input leaves as soon as its perturbation is no larger; else it looks
    for the smallest to the end. What it found then it has found for every larger ε: the search is the same there, but
    for restarts, and for a defense's own randomness.
    """

    targets: Annotated[int, Ge(1)] = 9
    steps: Annotated[int, Ge(1)] = 100
    restarts: Annotated[int, Ge(1)] = 1

    @property
    def minimal(self) -> bool:
        return True

    def passes(self) -> tuple[int, int]:
        rounds = self.targets * self.restarts * self.steps
        return 1 + 2 * rounds, rounds

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        rows = all_rows(x)
        found = Found(x.clone(), x.new_full((len(x),), torch.inf))
        repeats = self.restarts == 1 and not target.defense.randomized
        if repeats:
            distance = target.notes.stored("distance", found.distance)
            known = ~distance.isnan()
            found.update(rows[known], target.notes.stored("point", x)[known], distance[known])
            rows = rows[~known]
        if len(rows):
            fresh, left = self._find(target.only(rows), x[rows], y[rows], eps, seed)
            found.update(rows, fresh.point, fresh.distance)
            if repeats:
                target.notes.store("point", rows[left], fresh.point[left])
                target.notes.store("distance", rows[left], fresh.distance[left])
        within = found.distance <= eps
        return torch.where(expand(within & found.distance.isfinite(), x), found.point, x)

    def _find(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> tuple[Found, Tensor]:
        """What all searches have found, and the rows that are not within ε and were searched to the end."""
        rows = all_rows(x)
        view = self.view(target)
        clean = view.answer(x, rows)
        beaten = view.confirmed(x, y, rows, accepted_and_wrong(clean, y, view.num_classes))
        found = Found(x.clone(), torch.where(beaten, 0.0, torch.inf).to(x))
        rows = rows[~beaten]
        for number, aims in enumerate(likeliest_wrong(clean, y, target.num_classes).unbind(1)[: self.targets]):
            for restart in range(self.restarts):
                if not len(rows):
                    break
                point = x[rows]
                if restart:
                    point = self._start(x[rows], found.distance[rows], eps, seed + number * self.restarts + restart)
                rows = self._search(Search(self.view(target), x, y, aims, eps, found), rows, point)
        return found, rows

    def _start(self, x: Tensor, distance: Tensor, eps: float, seed: int) -> Tensor:
        """A random point within half the distance known so far."""
        reach = distance.clamp_max(eps if math.isfinite(eps) else REACH[self.norm])
        shift = random_in_ball(x, self.norm, 1.0, seed) - x
        return (x + expand(reach / 2, x) * shift).clamp(0, 1)

    def _search(self, search: Search, rows: Tensor, point: Tensor) -> Tensor:
        """Search from points [n,C,H,W] of those rows; updates `search.found`, returns the rows not yet within ε."""
        view, found, eps = search.view, search.found, search.eps
        origin = search.x.index_select(0, rows)
        for step in range(self.steps):
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
            point = ((point + OVERSHOOT * here) * (1 - bias) + (origin + OVERSHOOT * there) * bias).clamp(0, 1)
            claimed = accepted_and_wrong(view.answer(point, rows), label, view.num_classes)
            due = step == self.steps - 1 or step % CONFIRM_EVERY == 0
            beaten = view.confirmed(point, label, rows, claimed, due)
            distance = flat_norm(point - origin, self.norm).masked_fill(~beaten, torch.inf)
            found.update(rows, point, distance)
            point = torch.where(expand(beaten, point), origin + BACKWARD * (point - origin), point)
            going = found.distance[rows] > eps if math.isfinite(eps) else torch.ones_like(beaten)
            rows, point, origin = remaining(going, rows, point, origin)
            if not len(rows):
                break
        return rows


@dataclass
class Found:
    """The nearest adversarial point of each input so far [N,C,H,W], and its distance [N], ∞ where there is none."""

    point: Tensor
    distance: Tensor

    def update(self, rows: Tensor, point: Tensor, distance: Tensor) -> None:
        """Takes over what is nearer at those rows."""
        nearer = (distance < self.distance[rows]).nonzero()[:, 0]
        self.point.index_copy_(0, rows[nearer], point.index_select(0, nearer))
        self.distance[rows[nearer]] = distance[nearer]


@dataclass(frozen=True)
class Search:
    """A search for the boundaries between images x [N,C,H,W] with labels y [N] and the classes `aims` [N].

    It ends for an input within ε; what is found goes to `found`.
    """

    view: View
    x: Tensor
    y: Tensor
    aims: Tensor
    eps: float
    found: Found


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
