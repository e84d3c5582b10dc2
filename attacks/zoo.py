"""ZOO: Carlini and Wagner's L2 loss by Adam on a few pixel values at a time, from scores alone (Chen et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor
from torch.nn import functional as F

from manifold_bench.attacks.adam import Moments
from manifold_bench.attacks.base import Attack
from manifold_bench.attacks.batching import all_rows
from manifold_bench.attacks.gradient import nearest_so_far
from manifold_bench.attacks.losses import accepted_and_wrong, margin, reject_excess, typical_temperature
from manifold_bench.attacks.penalty import Search, Weights
from manifold_bench.attacks.target import Target
from manifold_bench.attacks.threat import Norm, flat_norm, input_seeds
from manifold_bench.attacks.view import View

POOLED = 3
"""Side of the square of pixels whose largest change makes a pixel important."""


@dataclass(frozen=True, kw_only=True)
class ZOO(Attack):
    """ZOO: minimises Carlini and Wagner's loss by slopes along single pixel values, estimated from scores.

    Some values i are chosen at random, and each takes an Adam step of its own along the slope
    2 δᵢ + c (f(x + h eᵢ) − f(x − h eᵢ)) / 2h with f = max(z_y − max_{j≠y} z_j, 0), clipped to [0,1] (ZOO-ADAM,
    algorithm 2 of the paper). c is found by binary search.

    The paper takes differences of log-probabilities, which are those of logits. Logits are in units of the
    `typical_temperature` of the clean input's logits. Its hierarchy of smaller images, for ImageNet, is left out.

    queries: largest number of forward passes for each input, for all values of c together. values: number of values
    that are chosen for a step, at two queries each; one more query tests whether the step succeeded. searches: number
    of values of c that are tried: each is ten times the last until one succeeds; then bisection follows. c: the first
    value of c. rate: Adam's learning rate; larger than the paper's 0.01, because its nine values of c take 3,000 steps
    each on MNIST. h: difference by which a value is changed to estimate a partial derivative. sampling: `uniform`, or
    `importance`: in proportion to the largest change so far of the 3 × 3 pixels around a value, plus the mean of that
    over the image, so that every value may still be chosen.

    On a defense that rejects, f becomes the reject excess where the answer is wrong (`missing`).
    """

    paper = "chen2017"
    norms: ClassVar[tuple[Norm, ...]] = ("l2",)
    knowledge = "score"
    minimal = True

    norm: Norm = "l2"
    queries: Annotated[int, Ge(1)] = 20_000
    values: Annotated[int, Ge(1)] = 128
    searches: Annotated[int, Ge(1)] = 3
    c: Annotated[float, Gt(0), Lt(math.inf)] = 0.1
    rate: Annotated[float, Gt(0), Lt(math.inf)] = 0.03
    h: Annotated[float, Gt(0), Le(1)] = 1e-4
    sampling: Literal["uniform", "importance"] = "uniform"

    def passes(self) -> tuple[int, int]:
        return self.queries, 0

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        view = target.view()
        clean = view.answer(x, all_rows(x), fresh=True)
        unit = typical_temperature(clean, view.num_classes)
        nearest, rows = nearest_so_far(view, x, y, clean)
        wrong = clean[rows, : view.num_classes].argmax(1) != y[rows]
        weights, choice = Weights.first(x, self.c), Choice(x, seed)
        for _ in range(self.searches if len(rows) else 0):
            search = Search(view, x, y, weights.now / unit, nearest)
            succeeded = self._descend(search, rows, choice, wrong)
            weights = weights.after(rows, succeeded)
        return nearest.point

    def _descend(self, search: Search, rows: Tensor, choice: Choice, wrong: Tensor) -> Tensor:
        """Run one descent of those rows, update `search.nearest`, and return which of them succeeded, [n] bool.

        wrong: whether the answer to the clean image is wrong, and therefore rejected, [n].
        """
        view, label, weight = search.view, search.y[rows], search.weight[rows, None]
        point = origin = search.x[rows]
        memory, updates = Moments.none(point.flatten(1)), torch.zeros_like(point.flatten(1))
        succeeded = torch.zeros_like(rows, dtype=torch.bool)
        count = min(self.values, point[:1].numel())
        for _ in range((self.queries - 1) // self.searches // (1 + 2 * count)):
            delta = point - origin
            chosen = choice.of(rows, importance(delta, self.sampling == "importance"), count)
            loss = partial(missing, y=label, wrong=wrong, classes=view.num_classes)
            slope = torch.stack([self._slope(view, point, at[:, None], rows, loss) for at in chosen.unbind(1)], 1)
            slope = 2 * delta.flatten(1).gather(1, chosen) + weight * slope
            updates.scatter_add_(1, chosen, torch.ones_like(slope))
            now = Moments(*(moment.gather(1, chosen) for moment in memory)).after(slope)
            memory = Moments(*(whole.scatter(1, chosen, part) for whole, part in zip(memory, now, strict=True)))
            step = now.step(self.rate, updates.gather(1, chosen), epsilon=1e-8)
            point = point.flatten(1).scatter_add(1, chosen, -step).clamp(0, 1).view_as(point)
            logits = view.answer(point, rows, fresh=True)
            wrong = logits[:, : view.num_classes].argmax(1) != label
            claimed = accepted_and_wrong(logits, label, view.num_classes)
            beaten = view.confirmed(point, label, rows, claimed)
            search.nearest.update(rows, point, -flat_norm(point - origin, "l2").masked_fill(~beaten, torch.inf))
            succeeded |= beaten
        return succeeded

    def _slope(self, view: View, point: Tensor, at: Tensor, rows: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the slope of `loss` at points [n,C,H,W] along the value with that index [n,1], [n]."""
        flat, ends, values = point.flatten(1), [], []
        for change in (self.h, -self.h):
            ends.append((flat.gather(1, at) + change).clamp(0, 1))
            values.append(loss(view.answer(flat.scatter(1, at, ends[-1]).view_as(point), rows, fresh=True)))
        return ((values[0] - values[1]) / (ends[0] - ends[1])[:, 0]).nan_to_num(0.0, 0.0, 0.0)


def missing(logits: Tensor, y: Tensor, wrong: Tensor, classes: int) -> Tensor:
    """Return f for logits near a point: the missing margin, or the reject excess where the point's answer is `wrong`.

    The point's own answer decides, because a difference across the step from one to the other would be no slope.
    """
    lead = -margin(logits, y, classes)
    return F.relu(lead if logits.shape[1] == classes else torch.where(wrong, reject_excess(logits, classes), lead))


class Choice:
    """Chooses the pixel values whose partial derivatives ZOO estimates next, for images x [N,C,H,W].

    The choice is random, and every input has its own generator, so that it does not depend on the batch.
    """

    def __init__(self, x: Tensor, seed: int) -> None:
        self.generators = [torch.Generator().manual_seed(s) for s in input_seeds(x, seed)]

    def of(self, rows: Tensor, importance: Tensor, count: int) -> Tensor:
        """Return `count` different indices for each of those rows, [n,count], in proportion to `importance` [n,D]."""
        drawn = torch.stack([torch.rand(importance.shape[1], generator=self.generators[row]) for row in rows.tolist()])
        # The smallest of exponential numbers with these rates are a choice without replacement (Efraimidis & Spirakis)
        return (-drawn.to(importance).log() / importance).topk(count, dim=1, largest=False).indices


def importance(delta: Tensor, uneven: bool) -> Tensor:
    """Return the weights [n,D], D = C·H·W, with which the next values of perturbations [n,C,H,W] are chosen.

    uneven: whether values near large perturbations are chosen more often; else all weights are 1.
    """
    if not uneven:
        return torch.ones_like(delta.flatten(1))
    near = F.max_pool2d(delta.abs(), POOLED, stride=1, padding=POOLED // 2).flatten(1)
    return (near + near.mean(1, keepdim=True)).clamp_min(1e-12)
