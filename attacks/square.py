"""Square Attack: random search along squares, from scores alone (Andriushchenko et al. 2020)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from manifold_bench.attacks.base import Attack
from manifold_bench.attacks.batching import all_rows, remaining
from manifold_bench.attacks.losses import Loss, accepted_and_wrong, margin, wrong_first
from manifold_bench.attacks.target import Target
from manifold_bench.attacks.threat import expand, flat_norm, input_seeds, project
from manifold_bench.attacks.view import View

DRAWN = 50
"""Queries whose random numbers an input draws at once."""

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Of 10,000 queries, those after which the share of pixels that a square covers is halved (their section 5)."""


@dataclass(frozen=True, kw_only=True)
class Square(Attack):
    """Square Attack: random search that changes one square at a time, from scores alone.

    A change stays where it shrinks the margin.

    queries: largest number of forward passes for each input.
    share: share of the pixels that the first squares cover (their p); it halves along the paper's schedule.
    horizon: number of queries over which that schedule, written for 10,000, is stretched; None: `queries`.

    On a defense that rejects, whatever is wrong beats whatever isn't, and is then improved until it is accepted
    (`attacks.losses.wrong_first` of the margin): scores, the reject score among them, are all that is asked for.
    Each input has random numbers of its own, and squares of its own.
    """

    paper = "andriushchenko2020"
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
            found, change, around = tiles(x, eps, draws), partial(square_l2, eps=eps), [x]
        label = y
        value, beaten = self._ask(target, view, found, label, rows)
        for query in range(1, self.queries):
            rows, label, value, *around = remaining(~beaten, rows, label, value, *around)
            if not len(rows):
                break
            candidate = change(around, found.index_select(0, rows), self._side(query, x), draws.of(rows, query))
            new, beaten = self._ask(target, view, candidate, label, rows)
            better = ((new > value) | beaten).nonzero()[:, 0]
            found.index_copy_(0, rows[better], candidate.index_select(0, better))
            value[better] = new[better]
        return found

    def _ask(self, target: Target, view: View, x: Tensor, y: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Values to climb [n] and whether the search is over [n], for one query of each row."""
        # Fresh: whoever has only scores can't hand in where an optimisation inside the defense shall start
        logits = view.answer(x, rows, fresh=True)
        climbed: Loss = wrong_first(margin) if view.rejects else margin
        value = climbed(logits, y, view.num_classes, None)
        claimed = accepted_and_wrong(logits, y, view.num_classes)
        return value.double().nan_to_num(nan=-torch.inf), view.confirmed(x, y, rows, claimed)

    def _side(self, query: int, x: Tensor) -> int:
        """How many pixels a side of that query's square has."""
        height, width = x.shape[2:]
        at = query * 10_000 / (self.horizon or self.queries)
        covered = self.share / 2 ** sum(at > halving for halving in HALVINGS) * height * width
        side = round(covered**0.5)
        if self.norm == "l2":
            side = max(side, 3) + (max(side, 3) % 2 == 0)
        return min(max(side, 1), height, width)


class Draws:
    """Uniform numbers in [0,1) for each input x [N,C,H,W], from a generator of its own."""

    def __init__(self, x: Tensor, seed: int, numbers: int) -> None:
        self.generators = [torch.Generator().manual_seed(s) for s in input_seeds(x, seed)]
        self.numbers = torch.empty(len(x), DRAWN, numbers).to(x)
        self.like = x

    def of(self, rows: Tensor, query: int) -> Tensor:
        """`numbers` for those rows and that query, counted from 1 → [n,numbers]; queries have to come in order."""
        if (query - 1) % DRAWN == 0:
            shape = self.numbers.shape[1:]
            fresh = [torch.rand(shape, generator=self.generators[row]) for row in rows.tolist()]
            self.numbers[rows] = torch.stack(fresh).to(self.numbers)
        return self.numbers[rows, (query - 1) % DRAWN]

    def first(self, *shape: int) -> Tensor:
        """Numbers for the starting points, [N,*shape]."""
        drawn = [torch.rand(shape, generator=generator) for generator in self.generators]
        return torch.stack(drawn).to(self.like) if drawn else self.like.new_empty(0, *shape)


def signs(uniform: Tensor) -> Tensor:
    """Numbers in [0,1) as −1 and 1, equally likely."""
    return 1 - 2 * (uniform < 0.5).to(uniform)


def stripes(x: Tensor, eps: float, draws: Draws) -> Tensor:
    """The start in L∞: every column of every channel up or down by ε."""
    return project(x + eps * signs(draws.first(x.shape[1], 1, x.shape[3])), x, "linf", eps)


def tiles(x: Tensor, eps: float, draws: Draws) -> Tensor:
    """The start in L2: 5 × 5 of the perturbations `bump`, with random signs and orientations, of norm ε together."""
    channels, height, width = x.shape[1:]
    side = max(min(height, width) // 5, 1)
    down, across = height // side, width // side
    u = draws.first(down * across, channels + 1)
    delta = torch.zeros_like(x)
    for tile in range(down * across):
        top, left = tile // across * side, tile % across * side
        shape = oriented(x, side, u[:, tile, 0])
        delta[:, :, top : top + side, left : left + side] = shape * signs(u[:, tile, 1:])[:, :, None, None]
    return project(x + eps * delta / expand(flat_norm(delta, "l2").clamp_min(1e-12), x), x, "l2", eps)


def square_linf(around: Sequence[Tensor], best: Tensor, side: int, u: Tensor) -> Tensor:
    """`best` with one square of each image at x ± ε, a sign for each channel (their algorithm 2). u: [n,numbers].

    around: x − ε and x + ε, in the box. Where that is what stands there already, at the other end: a query that changes
    nothing tells nothing.
    """
    low, high = around
    inside = window(best, *corner(best, side, u[:, 0], u[:, 1]), side)
    down = (u[:, 5:] < 0.5)[:, :, None, None]
    placed = torch.where(inside, torch.where(down, low, high), best)
    same = (placed == best).flatten(1).all(1)
    if same.any():
        placed[same] = torch.where(inside[same], torch.where(down[same], high[same], low[same]), best[same])
    return placed


def square_l2(around: Sequence[Tensor], best: Tensor, side: int, u: Tensor, eps: float) -> Tensor:
    """`best` with the norm of one window moved to another, towards a bump there (their algorithm 3). u: [n,numbers].

    around: x alone.
    """
    (x,) = around
    channels = x.shape[1]
    delta = best - x
    corners = corner(x, side, u[:, 0], u[:, 1])
    taken, given = window(x, *corner(x, side, u[:, 2], u[:, 3]), side), window(x, *corners, side)
    unused = (eps**2 - delta.square().flatten(1).sum(1)).clamp_min(0)
    held = (delta.square() * (taken | given)).sum((2, 3))
    available = (held + unused[:, None] / channels).sqrt()
    pixels = (
        all_rows(x)[:, None, None],
        (corners[0][:, None] + torch.arange(side, device=x.device))[:, :, None],
        (corners[1][:, None] + torch.arange(side, device=x.device))[:, None, :],
    )
    there = delta.permute(0, 2, 3, 1)[pixels].permute(0, 3, 1, 2)  # [n,C,side,side]
    moved = oriented(x, side, u[:, 4]) * signs(u[:, 5:])[:, :, None, None] + unit(there)
    delta = delta.masked_fill(taken, 0.0).permute(0, 2, 3, 1).contiguous()
    delta[pixels] = (unit(moved) * available[:, :, None, None]).permute(0, 2, 3, 1)
    return project(x + delta.permute(0, 3, 1, 2), x, "l2", eps)


def unit(delta: Tensor) -> Tensor:
    """[n,C,h,w] with each channel of norm 1, or 0."""
    return delta / delta.flatten(2).norm(dim=2)[:, :, None, None].clamp_min(1e-12)


def corner(x: Tensor, side: int, down: Tensor, across: Tensor) -> tuple[Tensor, Tensor]:
    """The top left pixels [n] of squares that lie within the images, from numbers in [0,1)."""
    return (down * (x.shape[2] - side + 1)).long(), (across * (x.shape[3] - side + 1)).long()


def window(x: Tensor, top: Tensor, left: Tensor, side: int) -> Tensor:
    """Which pixels lie in the squares with those corners → [n,1,H,W] bool."""
    rows = torch.arange(x.shape[2], device=x.device) - top[:, None]
    columns = torch.arange(x.shape[3], device=x.device) - left[:, None]
    within = ((rows >= 0) & (rows < side))[:, :, None] & ((columns >= 0) & (columns < side))[:, None, :]
    return within[:, None]


def oriented(x: Tensor, side: int, uniform: Tensor) -> Tensor:
    """`bump` of that side, standing or lying by a number in [0,1) for each input → [n,1,side,side]."""
    shape = bump(side).to(x)
    return torch.where((uniform < 0.5)[:, None, None, None], shape, shape.T)


@cache
def bump(side: int) -> Tensor:
    """Their eq. 2: two rectangles of opposite sign, each falling off from its centre; norm 1. → [side,side]"""

    def rectangle(height: int, width: int) -> Tensor:
        rows = (torch.arange(height) - height // 2).abs()
        columns = (torch.arange(width) - width // 2).abs()
        ring = torch.maximum(rows[:, None], columns[None])
        heights = 1 / torch.arange(1, max(height, width) // 2 + 2).double().square()
        return heights.flip(0).cumsum(0).flip(0)[ring]

    shape = torch.cat([rectangle(side // 2, side), -rectangle(side - side // 2, side)])
    return (shape / shape.norm()).float()
