"""Simple black-box attack: one random pixel at a time, kept where the scores get worse (Guo et al. 2019)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from manifold_bench.attacks.base import Attack
from manifold_bench.attacks.batching import all_rows
from manifold_bench.attacks.square import score
from manifold_bench.attacks.target import Target
from manifold_bench.attacks.threat import Norm, input_seeds, project


@dataclass(frozen=True, kw_only=True)
class SimBA(Attack):
    """SimBA: adds a step to one random pixel at a time, or subtracts it, from scores alone.

    Algorithm 1 of the paper in the basis of pixels: the values of all pixels and channels come in random order; a
    change of ± `size` is kept where it lowers the margin f_y(x) − max_{k≠y} f_k(x). After the last one the next order
    begins.

    The paper bounds the norm by the number of changes; here each changed image is projected on the ε-ball, so that the
    search goes on along its surface.

    trials: number of values that are tried, each costs one or two queries. size: length by which a value is changed.

    On a defense that rejects, the search looks for a wrong answer first, and then for one that is accepted
    (`attacks.losses.wrong_first` of the margin). An input leaves the batch as soon as the attack succeeds on it.
    """

    paper = "guo2019"
    norms: ClassVar[tuple[Norm, ...]] = ("l2",)
    knowledge = "score"

    norm: Norm = "l2"
    trials: Annotated[int, Ge(1)] = 2500
    size: Annotated[float, Gt(0), Lt(math.inf)] = 0.2

    def passes(self) -> tuple[int, int]:
        return 1 + 2 * self.trials, 0

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        view, found, values = target.view(), x.clone(), x[:1].numel()
        generators = [torch.Generator().manual_seed(s) for s in input_seeds(x, seed)]
        order = torch.zeros(len(x), values, dtype=torch.long, device=x.device)
        best, beaten = score(view, x, y, all_rows(x))
        rows = (~beaten).nonzero()[:, 0]
        for trial in range(self.trials):
            if not len(rows):
                break
            if trial % values == 0:
                fresh = [torch.randperm(values, generator=generators[row]) for row in rows.tolist()]
                order[rows] = torch.stack(fresh).to(order)
            untried = rows
            for size in (self.size, -self.size):
                chosen = order[untried, trial % values, None]
                flat = found[untried].flatten(1)
                changed = flat.scatter_add(1, chosen, torch.full_like(flat[:, :1], size)).view(-1, *x.shape[1:])
                candidate = project(changed, x[untried], self.norm, eps)
                value, won = score(view, candidate, y[untried], untried)
                better = (value > best[untried]) | won
                found[untried[better]], best[untried[better]] = candidate[better], value[better]
                beaten[untried] |= won
                untried = untried[~better]
                if not len(untried):
                    break
            rows = rows[~beaten[rows]]
        return found
