"""Jacobian-based saliency map attack: pairs of pixels that raise a target class most (Papernot et al. 2016)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor

from manifold_bench.attacks.base import ViewAttack
from manifold_bench.attacks.batching import all_rows, remaining
from manifold_bench.attacks.gradient import Best, nearest_so_far
from manifold_bench.attacks.losses import accepted_and_wrong, likeliest_wrong, reject_excess
from manifold_bench.attacks.target import Target
from manifold_bench.attacks.threat import Norm, flat_norm
from manifold_bench.attacks.view import View

CANDIDATES = 128
"""Number of pixels among which the best pair is searched; they are those that alone raise the target most."""


@dataclass(frozen=True, kw_only=True)
class JSMA(ViewAttack):
    """Jacobian-based saliency map attack: changes the pair of pixels that raises a target class most, and repeats.

    (p, q) = argmax of −α β where α = a_p + a_q > 0 and β = b_p + b_q < 0; a and b are what a pixel adds to the target's
    logit and to the sum of all others, by the Jacobian, when it goes to the end of the box [0,1].

    It is algorithm 3 of the paper with θ = ±1: each value goes up or down, whichever is better for a − b, and counts
    with the room that the box leaves it; a pixel changes in all its channels at once, and only once. Target classes are
    tried in turn, the likeliest for the input first, and the success of fewest pixels is kept.

    steps: largest number of pairs for each target class (the paper's 14.5 % of 784 pixels are 57 pairs). targets:
    number of target classes. A step costs a forward and two backward passes.

    On a defense that rejects, any accepted wrong answer is a success. Where the answer is wrong and rejected, pairs
    lower the reject score in place of the logits of other classes.
    """

    paper = "papernot2016jsma"
    norms: ClassVar[tuple[Norm, ...]] = ("l0",)
    minimal = True

    norm: Norm = "l0"
    steps: Annotated[int, Ge(1)] = 57
    targets: Annotated[int, Ge(1)] = 3

    def passes(self) -> tuple[int, int]:
        return 1 + self.targets * (self.steps + 1), self.targets * 2 * self.steps

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        view = self.view(target)
        clean = view.answer(x, all_rows(x))
        fewest, rows = nearest_so_far(view, x, y, clean)
        for aims in likeliest_wrong(clean, y, target.num_classes).unbind(1)[: self.targets]:
            self._raise(self.view(target), x, y, aims, rows, fewest)
        return fewest.point

    def _raise(self, view: View, x: Tensor, y: Tensor, aims: Tensor, rows: Tensor, fewest: Best) -> None:
        """Raise the target classes `aims` [N] of those rows, pair by pair, and update `fewest`."""
        point = origin = x[rows]
        label, aim = y[rows], aims[rows]
        for step in range(self.steps + 1):
            if not len(rows):
                break
            if step == self.steps:
                logits = view.answer(point, rows)
            else:
                seen = partial(opposed, y=label, classes=view.num_classes, aims=aim)
                logits, _, slopes = view.ascent(point, seen, rows)
            claimed = accepted_and_wrong(logits, label, view.num_classes)
            # Each claim is confirmed: an unconfirmed one would cost two more pixels
            beaten = view.confirmed(point, label, rows, claimed)
            size = flat_norm(point - origin, "l0")
            fewest.update(rows, point, -size.masked_fill(~beaten, torch.inf))
            if step == self.steps:
                break
            changed, found = with_pair(point, origin, slopes)
            going = found & (size + 2 < -fewest.loss[rows])
            rows, label, aim, point, origin = remaining(going, rows, label, aim, changed, origin)


def opposed(logits: Tensor, y: Tensor, classes: int, aims: Tensor) -> Tensor:
    """Return what pairs raise and what they lower, [N,2]: the target's logit, and the sum of the other classes'.

    Where the answer is wrong and may be rejected, they are minus the reject excess and the reject excess.
    """
    real = logits[:, :classes]
    up = real.gather(1, aims[:, None])[:, 0]
    both = torch.stack([up, real.sum(1) - up], dim=1)
    if logits.shape[1] == classes:
        return both
    excess = reject_excess(logits, classes)
    return torch.where((real.argmax(1) != y)[:, None], torch.stack([-excess, excess], dim=1), both)


def with_pair(point: Tensor, origin: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """Return points [n,C,H,W] with their best pair of unchanged pixels at the ends of the box, and which have one [n].

    slopes: gradients of what is raised and of what is lowered, [n,2,C,H,W].
    """
    raised, lowered = slopes.unbind(1)
    end = (raised > lowered).to(point)
    rise, fall = (unit((slope * (end - point)).sum(1).flatten(1)) for slope in (raised, lowered))
    used = (point != origin).any(1).flatten(1)
    rise, fall = rise.masked_fill(used, -torch.inf), fall.masked_fill(used, torch.inf)
    chosen = (rise - fall).topk(min(CANDIDATES, rise.shape[1]), dim=1).indices
    both, others = (sums(value.gather(1, chosen)) for value in (rise, fall))
    allowed = (both > 0) & (others < 0) & ~torch.eye(chosen.shape[1], dtype=torch.bool, device=point.device)
    best = (-both * others).masked_fill(~allowed, -torch.inf).flatten(1).max(1)
    pair = torch.stack([best.indices // chosen.shape[1], best.indices % chosen.shape[1]], dim=1)
    moved = torch.zeros_like(used).scatter_(1, chosen.gather(1, pair), True).view(len(point), 1, *point.shape[2:])
    return torch.where(moved, end, point), best.values > -torch.inf


def unit(values: Tensor) -> Tensor:
    """Return values [n,D] over the largest size in each row, so that their products neither vanish nor overflow."""
    return values / values.abs().amax(1, keepdim=True).clamp_min(1e-37)


def sums(values: Tensor) -> Tensor:
    """Return the sum of each pair of the values [n,D] → [n,D,D]."""
    return values[:, :, None] + values[:, None, :]
