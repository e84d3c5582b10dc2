"""A recorder of an attack's queries: the best point of each input, and signs that the attack stopped trying."""

from __future__ import annotations

import math
from copy import copy

import torch
from torch import Tensor

from manifold_bench.attacks.contract import Verdict, succeeded
from manifold_bench.attacks.losses import margin, selective_margin, spread
from manifold_bench.attacks.threat import Norm, flat_norm, inside

SHRUNK = 2.0
"""Factor by which the spread of the wrong classes' logits has to shrink to be taken for the reason why a loss rose."""

LEAST_SPREAD = 0.25
"""Smallest spread of the wrong classes' logits, as a share of the spread of all, with which shrinking is noticed."""


class Queries:
    """A recorder of the queries about images x [N,C,H,W] with labels y [N] and aims [N] or None, as in `succeeded`.

    point [N,C,H,W]: the image with the smallest perturbation within ε, of all queries that were successes on the
    deployed defense. distance [N] float64: size of that perturbation; ∞ where no query was a success.
    All other values [N] are about the queries before an input's first success. gradients: number of gradients. blind:
    number of gradients that were exactly zero or not finite. moved: whether any query differed from x. improved:
    whether a query came nearer than the first one to a wrong class, or to an accepted wrong class, by the margin: the
    largest logit of a wrong class minus that of the right one. A margin that is larger only because all logits are
    smaller is no improvement. The logits are smaller where the spread of the wrong classes' ones is less than
    1/`SHRUNK` of that at the first query, and the margin in units of this spread has not grown. Where the wrong classes
    differ little from each other at the first query (`LEAST_SPREAD`), as with two classes, a smaller margin and smaller
    logits look the same, and count as an improvement. frozen: inputs about which nothing is recorded any more.
    """

    def __init__(self, x: Tensor, y: Tensor, aims: Tensor | None, norm: Norm, eps: float) -> None:
        self.x, self.y, self.aims, self.norm, self.eps = x, y, aims, norm, eps
        self.rows = torch.arange(len(x), device=x.device)
        self.point = x.clone()
        self.distance = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
        self.gradients, self.blind, self.calls = (torch.zeros_like(self.distance) for _ in range(3))
        self.moved, self._succeeded, self.frozen = (torch.zeros_like(self.rows, dtype=torch.bool) for _ in range(3))
        # Of the margin and the selective margin: at the first query, the largest, and whether logits had shrunk there
        self.first, self.unit = self.distance.new_full((len(x), 2), torch.nan), self.distance.new_ones(len(x))
        self.differ = torch.zeros_like(self.frozen)  # whether the wrong classes did at the first query
        self.best = self.distance.new_full((len(x), 2), -torch.inf)
        self.shrunk = torch.zeros_like(self.best, dtype=torch.bool)

    @property
    def improved(self) -> Tensor:
        """Whether a later query came nearer than the first to a wrong class, or to an accepted wrong class, [N] bool.

        It is true, too, where nothing could improve: with fewer than two queries that return scores, and for noise.
        """
        return self._succeeded | ((self.best > self.first) & ~self.shrunk).any(1) | (self.calls < 2)

    @property
    def solved(self) -> Tensor:
        """Whether an input is beaten and no smaller perturbation is searched, because ε bounds it, [N] bool."""
        return self.distance.isfinite() & math.isfinite(self.eps)

    def only(self, rows: Tensor) -> Queries:
        """Return the same recorder for some of the inputs; its rows are positions in `rows` [n]."""
        some = copy(self)
        some.rows = self.rows[rows]
        return some

    def about(self, x: Tensor) -> Tensor:
        """Return the index of the input that is nearest in L2 to each image x [M,C,H,W] → [M]."""
        return torch.cdist(x.flatten(1), self.x[self.rows].flatten(1)).argmin(1)

    def record_logits(self, x: Tensor, rows: Tensor, logits: Tensor, classes: int) -> None:
        """Record logits [n,K] or [n,K+1], of the defense or of any part of it, for images x [n,C,H,W] of those rows."""
        at = self.rows[rows]
        still = ~self.moved[at] & ~self.frozen[at]
        if still.any():
            changed = (x[still] != self.x[at[still]]).flatten(1).any(1)
            self.moved[at[still][changed]] = True
        labelled = (self.y[at] >= 0) & self.distance[at].isinf() & ~self.frozen[at]
        if not labelled.any():
            return
        at, logits = at[labelled], logits[labelled]
        # An image on its way into a wrong class may become rejected: progress of either margin counts
        leads = [margin(logits, self.y[at], classes), selective_margin(logits, self.y[at], classes)]
        lead = torch.stack(leads, dim=1).double().nan_to_num(-torch.inf)
        others = logits.double().scatter(1, self.y[at, None], -torch.inf)
        unit, whole = spread(others, classes), spread(logits.double(), classes)
        best = self.best.scatter_reduce(0, at[:, None].expand(-1, 2), lead, "amax")
        self.calls[at] += 1
        nearest = (lead == best[at]) & (lead > self.best[at])
        self.best.copy_(best)
        begun = self.first[at, 0].isnan()
        self.first[at[begun]], self.unit[at[begun]] = best[at[begun]], unit[begun]
        self.differ[at[begun]] = (unit >= LEAST_SPREAD * whole)[begun]
        smaller = self.differ[at] & (SHRUNK * unit < self.unit[at])
        no_nearer = lead / unit[:, None] <= self.first[at] / self.unit[at][:, None]
        self.shrunk[at] = torch.where(nearest, smaller[:, None] & no_nearer, self.shrunk[at])

    def record_answers(self, x: Tensor, rows: Tensor, answer: Verdict) -> None:
        """Record answers of the deployed defense to images x [n,C,H,W] of those rows."""
        at = self.rows[rows]
        won = succeeded(answer, self.y[at], None if self.aims is None else self.aims[at]) & ~self.frozen[at]
        if not won.any():
            return
        at, x = at[won], x.detach()[won]
        valid = inside(x, self.x[at], self.norm, self.eps)
        at, x = at[valid], x[valid]
        distance = flat_norm(x.double() - self.x[at].double(), self.norm)
        # Several queries may be about one input
        least = self.distance.scatter_reduce(0, at, distance, "amin")
        nearer = (distance == least[at]) & (distance < self.distance[at])
        self.point[at[nearer]] = x[nearer].to(self.point)
        self.distance.copy_(least)
        self.moved[at] = self._succeeded[at] = True

    def record_gradients(self, rows: Tensor, gradient: Tensor) -> None:
        """Record gradients [n,...] at images of those rows."""
        at = self.rows[rows]
        size = gradient.flatten(1).abs().amax(1)
        trying = (self.distance[at].isinf() & ~self.frozen[at]).double()
        self.gradients.index_add_(0, at, trying)
        self.blind.index_add_(0, at, trying * ~(size.isfinite() & (size > 0)))
