"""Square Attack: random search that changes one square at a time, from scores alone (Andriushchenko et al. 2020)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from manifold_bench.attacks.base import Attack
from manifold_bench.attacks.batching import all_rows, remaining
from manifold_bench.attacks.losses import Loss, accepted_and_wrong, margin, wrong_first
from manifold_bench.attacks.target import Target
from manifold_bench.attacks.threat import Norm, expand, flat_norm, input_seeds, project
from manifold_bench.attacks.view import View

DRAWN = 50
"""Number of queries whose random numbers are drawn together."""

POWERS: Mapping[Norm, int] = {"l2": 2, "l1": 1}
"""Power of a change whose sum over the image is that power of the norm."""

DECAY = {2: 2, 1: 4}
"""Exponent by which a bump falls with the distance from its centre, for each of the `POWERS`."""

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Numbers of queries, of 10,000, after which the share of pixels in a square is halved (section 5 of the paper)."""


@dataclass(frozen=True, kw_only=True)
class Square(Attack):
    """Square Attack: random search that changes one square at a time, from scores alone.

    A change is kept where it lowers the margin f_y(x) − max_{k≠y} f_k(x).

    queries: largest number of forward passes for each input.
    share: share of the pixels in the first squares (p in the paper); it is halved along the paper's schedule.
    horizon: number of queries to which that schedule for 10,000 queries is scaled; None: `queries`.

    On a defense that rejects, the search looks for a wrong answer first, and then for one that is accepted
    (`attacks.losses.wrong_first` of the margin); the reject score is one of the scores. Each input has its own random
    numbers.
    """

    paper = "andriushchenko2020"
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")
    knowledge = "score"

    queries: Annotated[int, Ge(1)] = 5000
    share: Annotated[float, Gt(0), Le(1)] = 0.8
    horizon: Annotated[int, Ge(1)] | None = None

    def passes(self) -> tuple[int, int]:
        return self.queries, 0

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        view = target.view()
        rows = all_rows(x)
        draws = Draws(x, seed, numbers=5 + x.shape[1])
        change: Callable[[Sequence[Tensor], Tensor, int, Tensor], Tensor]
        if self.norm == "linf":
            found, change = stripes(x, eps, draws), square_linf
            around = [project(x + end, x, "linf", eps) for end in (-eps, eps)]
        else:
            found, around = tiles(x, self.norm, eps, draws), [x]
            change = partial(square_bump, norm=self.norm, eps=eps)
        label = y
        value, beaten = score(view, found, label, rows)
        for query in range(1, self.queries):
            rows, label, value, *around = remaining(~beaten, rows, label, value, *around)
            if not len(rows):
                break
            candidate = change(around, found.index_select(0, rows), self._side(query, x), draws.of(rows, query))
            new, beaten = score(view, candidate, label, rows)
            better = ((new > value) | beaten).nonzero()[:, 0]
            found.index_copy_(0, rows[better], candidate.index_select(0, better))
            value[better] = new[better]
        return found

    def _side(self, query: int, x: Tensor) -> int:
        """Return the side of that query's square, in pixels."""
        height, width = x.shape[2:]
        at = query * 10_000 / (self.horizon or self.queries)
        covered = self.share / 2 ** sum(at > halving for halving in HALVINGS) * height * width
        side = round(covered**0.5)
        if self.norm != "linf":
            side = max(side, 3) + (max(side, 3) % 2 == 0)
        return min(max(side, 1), height, width)


def score(view: View, x: Tensor, y: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Query images x [n,C,H,W] with labels y [n] → values to maximise [n] float64 and whether each is a success [n].

    The value is the margin; on a defense that rejects, `attacks.losses.wrong_first` of it.
    """
    # Fresh, because an attacker with scores alone cannot choose where an inner optimisation starts
    logits = view.answer(x, rows, fresh=True)
    climbed: Loss = wrong_first(margin) if view.rejects else margin
    value = climbed(logits, y, view.num_classes, None)
    claimed = accepted_and_wrong(logits, y, view.num_classes)
    return value.double().nan_to_num(nan=-torch.inf), view.confirmed(x, y, rows, claimed)


class Draws:
    """Uniform random numbers in [0,1) for each input x [N,C,H,W]; every input has its own generator.

    numbers: how many numbers each query takes.
    """

    def __init__(self, x: Tensor, seed: int, numbers: int) -> None:
        self.generators = [torch.Generator().manual_seed(s) for s in input_seeds(x, seed)]
        self.numbers = torch.empty(len(x), DRAWN, numbers).to(x)
        self.like = x

    def of(self, rows: Tensor, query: int) -> Tensor:
        """Return the random numbers [n,numbers] of those rows for that query; queries come in order, from 1."""
        if (query - 1) % DRAWN == 0:
            shape = self.numbers.shape[1:]
            fresh = [torch.rand(shape, generator=self.generators[row]) for row in rows.tolist()]
            self.numbers[rows] = torch.stack(fresh).to(self.numbers)
        return self.numbers[rows, (query - 1) % DRAWN]

    def first(self, *shape: int) -> Tensor:
        """Return random numbers for the starting points, [N,*shape]."""
        drawn = [torch.rand(shape, generator=generator) for generator in self.generators]
        return torch.stack(drawn).to(self.like) if drawn else self.like.new_empty(0, *shape)


def signs(uniform: Tensor) -> Tensor:
    """Turn uniform numbers in [0,1) into −1 and 1, equally likely."""
    return 1 - 2 * (uniform < 0.5).to(uniform)


def stripes(x: Tensor, eps: float, draws: Draws) -> Tensor:
    """Return the starting points in L∞: every column of every channel is x + ε or x − ε, at random."""
    return project(x + eps * signs(draws.first(x.shape[1], 1, x.shape[3])), x, "linf", eps)


def tiles(x: Tensor, norm: Norm, eps: float, draws: Draws) -> Tensor:
    """Return the starting points in L2 or L1: x plus 5 × 5 `bump`s with random signs and orientations.

    In L2 they are scaled to the norm ε, and in L1 projected on the ball, as in the reference implementation.
    """
    channels, height, width = x.shape[1:]
    side = max(min(height, width) // 5, 1)
    down, across = height // side, width // side
    u = draws.first(down * across, channels + 1)
    delta = torch.zeros_like(x)
    for tile in range(down * across):
        top, left = tile // across * side, tile % across * side
        shape = oriented(x, side, POWERS[norm], u[:, tile, 0])
        delta[:, :, top : top + side, left : left + side] = shape * signs(u[:, tile, 1:])[:, :, None, None]
    if norm == "l2":
        delta = eps * delta / expand(flat_norm(delta, norm).clamp_min(1e-12), x)
    return project(x + delta, x, norm, eps)


def square_linf(around: Sequence[Tensor], best: Tensor, side: int, u: Tensor) -> Tensor:
    """Return `best` with one square of each image set to x − ε or x + ε, by channel (algorithm 2 of the paper).

    around: x − ε and x + ε, clipped to [0,1]. u: random numbers [n,numbers]. Where that changes nothing, the square is
    set to the other end, because a query about the same image would be wasted.
    """
    low, high = around
    inside = window(best, *corner(best, side, u[:, 0], u[:, 1]), side)
    down = (u[:, 5:] < 0.5)[:, :, None, None]
    placed = torch.where(inside, torch.where(down, low, high), best)
    same = (placed == best).flatten(1).all(1)
    if same.any():
        placed[same] = torch.where(inside[same], torch.where(down[same], high[same], low[same]), best[same])
    return placed


def square_bump(around: Sequence[Tensor], best: Tensor, side: int, u: Tensor, *, norm: Norm, eps: float) -> Tensor:
    """Return `best` with the perturbation of one window set to zero and its norm spent on a bump in another window.

    This is algorithm 3 of the paper, for L2. In L1 sums of absolute values take the place of sums of squares, and the
    point is projected on the ball within [0,1] (Croce & Hein 2021). around: a tuple of the clean images x alone. u:
    random numbers [n,numbers] that choose both windows, and the form and signs of the bump.
    """
    (x,) = around
    order = POWERS[norm]
    channels = x.shape[1]
    delta = best - x
    corners = corner(x, side, u[:, 0], u[:, 1])
    taken, given = window(x, *corner(x, side, u[:, 2], u[:, 3]), side), window(x, *corners, side)
    mass = delta.abs() ** order
    unused = (eps**order - mass.flatten(1).sum(1)).clamp_min(0)
    held = (mass * (taken | given)).sum((2, 3))
    available = (held + unused[:, None] / channels) ** (1 / order)
    pixels = (
        all_rows(x)[:, None, None],
        (corners[0][:, None] + torch.arange(side, device=x.device))[:, :, None],
        (corners[1][:, None] + torch.arange(side, device=x.device))[:, None, :],
    )
    there = delta.permute(0, 2, 3, 1)[pixels].permute(0, 3, 1, 2)  # [n,C,side,side]
    moved = oriented(x, side, order, u[:, 4]) * signs(u[:, 5:])[:, :, None, None] + unit(there, order)
    delta = delta.masked_fill(taken, 0.0).permute(0, 2, 3, 1).contiguous()
    delta[pixels] = (unit(moved, order) * available[:, :, None, None]).permute(0, 2, 3, 1)
    return project(x + delta.permute(0, 3, 1, 2), x, norm, eps)


def unit(delta: Tensor, order: int) -> Tensor:
    """Scale each channel of delta [n,C,h,w] to norm 1 in L1 or L2; channels of zeros stay zero."""
    return delta / delta.flatten(2).norm(order, dim=2)[:, :, None, None].clamp_min(1e-12)


def corner(x: Tensor, side: int, down: Tensor, across: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows and columns [n] of the top left pixels of squares within the images, from numbers [n] in [0,1)."""
    return (down * (x.shape[2] - side + 1)).long(), (across * (x.shape[3] - side + 1)).long()


def window(x: Tensor, top: Tensor, left: Tensor, side: int) -> Tensor:
    """Return which pixels lie in the squares with those corners → [n,1,H,W] bool."""
    rows = torch.arange(x.shape[2], device=x.device) - top[:, None]
    columns = torch.arange(x.shape[3], device=x.device) - left[:, None]
    within = ((rows >= 0) & (rows < side))[:, :, None] & ((columns >= 0) & (columns < side))[:, None, :]
    return within[:, None]


def oriented(x: Tensor, side: int, order: int, uniform: Tensor) -> Tensor:
    """Return the square perturbation `bump` n times, each upright or transposed by chance → [n,1,side,side].

    side: height and width in pixels. order: 1 or 2, the norm (L1 or L2) in which it has size 1. uniform: random numbers
    in [0, 1), [n]; from 0.5 on the perturbation is transposed.
    """
    shape = bump(side, order).to(x)
    return torch.where((uniform < 0.5)[:, None, None, None], shape, shape.T)


@cache
def bump(side: int, order: int) -> Tensor:
    """Return two rectangles of opposite sign that decrease from their centres, [side,side] (paper's eq. 2).

    Its norm is 1, in L2 or L1 by `order`.
    """

    def rectangle(height: int, width: int) -> Tensor:
        rows = (torch.arange(height) - height // 2).abs()
        columns = (torch.arange(width) - width // 2).abs()
        ring = torch.maximum(rows[:, None], columns[None])
        heights = 1 / torch.arange(1, max(height, width) // 2 + 2).double() ** DECAY[order]
        return heights.flip(0).cumsum(0).flip(0)[ring]

    shape = torch.cat([rectangle(side // 2, side), -rectangle(side - side // 2, side)])
    return (shape / shape.norm(order)).float()
