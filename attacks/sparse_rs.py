"""Sparse-RS: random search over the pixels of a perturbation, from scores alone (Croce et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from manifold_bench.attacks.base import Attack
from manifold_bench.attacks.batching import all_rows, remaining
from manifold_bench.attacks.square import Draws, score
from manifold_bench.attacks.target import Target
from manifold_bench.attacks.threat import Norm

SCHEDULE = ((0, 2), (50, 4), (200, 5), (500, 6), (1000, 8), (2000, 10), (4000, 12), (6000, 15), (8000, 20))
"""Numbers of queries, of 10,000, after which α is the first α over that divisor (the schedule of the paper)."""


@dataclass(frozen=True, kw_only=True)
class SparseRS(Attack):
    """Sparse-RS: random search over which ε pixels change, to corners of the colour cube, from scores alone.

    z ← x on k pixels A of M, and a random colour of {0,1}^C on k pixels B outside M; M ← (M ∖ A) ∪ B where that brings
    the answer nearer to a wrong class, with k = max(⌊α ε⌋, 1).

    M is the set of ε changed pixels, of which each image has its own, and α falls along the paper's schedule. L0 counts
    pixels, each in all its channels. Where a random colour is the pixel's own, the opposite corner is taken, so that no
    query is about an image with fewer changes. If ε is the number of all pixels, A = B.

    queries: largest number of forward passes for each input. share: share α of the changed pixels that one query
    replaces, at the beginning; it is halved on the way.

    On a defense that rejects, the search looks for a wrong answer first, and then for one that is accepted
    (`attacks.losses.wrong_first` of the margin). An input leaves the batch as soon as the attack succeeds on it.
    """

    paper = "croce2022"
    norms: ClassVar[tuple[Norm, ...]] = ("l0",)
    knowledge = "score"

    norm: Norm = "l0"
    queries: Annotated[int, Ge(1)] = 5000
    share: Annotated[float, Gt(0), Le(1)] = 0.3

    def passes(self) -> tuple[int, int]:
        return self.queries, 0

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        view, rows, label, origin = target.view(), all_rows(x), y, x
        channels, pixels = x.shape[1], x.shape[2:].numel()
        changed = min(int(eps), pixels)
        full = changed == pixels  # then no pixel is left to move to, and pixels of M get other colours instead
        most = self._moved(1, changed) if full else min(self._moved(1, changed), pixels - changed)
        draws = Draws(x, seed, numbers=(2 + channels) * most)
        order = draws.first(pixels).argsort(dim=1)  # the first `changed` pixels of an image are those of M
        found = painted(x, x, order[:, :changed], draws.first(channels, changed))
        value, beaten = score(view, found, y, rows)
        for query in range(1, self.queries):
            rows, label, value, order, origin = remaining(~beaten, rows, label, value, order, origin)
            if not len(rows):
                break
            count = min(self._moved(query, changed), most)
            numbers = draws.of(rows, query)[:, : (2 + channels) * count].unflatten(1, (-1, count))
            order = shuffled(order, 0, changed, numbers[:, 0])
            order = order if full else shuffled(order, changed, pixels, numbers[:, 1])
            leaving, entering = order[:, :count], order[:, :count] if full else order[:, changed : changed + count]
            best = found.index_select(0, rows)
            candidate = painted(restored(best, origin, leaving), origin, entering, numbers[:, 2:])
            new, beaten = score(view, candidate, label, rows)
            better = (new > value) | beaten
            found.index_copy_(0, rows[better], candidate[better])
            value = torch.where(better, new, value)
            if not full:
                moved = torch.cat([entering, order[:, count:changed], leaving, order[:, changed + count :]], dim=1)
                order = torch.where(better[:, None], moved, order)
        return found

    def _moved(self, query: int, changed: int) -> int:
        """Return the number k of pixels that move in that query."""
        at = query * 10_000 / self.queries
        divisor = max(divisor for after, divisor in SCHEDULE if at > after)
        return max(int(self.share / divisor * changed), 1)


def shuffled(order: Tensor, first: int, last: int, uniform: Tensor) -> Tensor:
    """Return `order` [n,D] with a random choice of its entries from `first` up to `last` moved to position `first` on.

    uniform: random numbers in [0,1), [n,k], one for each chosen entry (the Fisher–Yates shuffle's first k steps).
    """
    order = order.clone()
    for place, number in enumerate(uniform.unbind(1), first):
        other = (place + (number * (last - place)).long()).clamp_max(last - 1)[:, None]
        here = order[:, place].clone()
        order[:, place] = order.gather(1, other)[:, 0]
        order.scatter_(1, other, here[:, None])
    return order


def restored(x: Tensor, origin: Tensor, chosen: Tensor) -> Tensor:
    """Return images x [n,C,H,W] with the chosen pixels [n,k] as they are in `origin`."""
    at = chosen[:, None].expand(-1, x.shape[1], -1)
    return x.flatten(2).scatter(2, at, origin.flatten(2).gather(2, at)).view_as(x)


def painted(x: Tensor, origin: Tensor, chosen: Tensor, uniform: Tensor) -> Tensor:
    """Return images x [n,C,H,W] whose chosen pixels [n,k] have random colours of {0,1}^C, each unlike in `origin`.

    uniform: random numbers in [0,1), [n,C,k].
    """
    at = chosen[:, None].expand(-1, x.shape[1], -1)
    colour, before = (uniform < 0.5).to(x), origin.flatten(2).gather(2, at)
    same = (colour == before).all(1, keepdim=True)
    return x.flatten(2).scatter(2, at, torch.where(same, 1 - colour, colour)).view_as(x)
