"""Evolutionary search, from scores alone, for meaningless images that a defense accepts as a class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from torch.nn import functional as F

from manifold_bench.attacks.base import Attack
from manifold_bench.attacks.batching import all_rows, blockwise
from manifold_bench.attacks.fooling import accepted_as, aimed_at
from manifold_bench.attacks.losses import margin, reject_excess
from manifold_bench.attacks.target import Target
from manifold_bench.attacks.threat import Norm, input_seeds
from manifold_bench.attacks.view import View


@dataclass(frozen=True, kw_only=True)
class Evolutionary(Attack):
    """Evolves noise into an image that is accepted as a chosen class, from scores alone.

    It mutates pixels, and selects by the score of that class.

    Each pair of input and class has its own population, which starts with the input and uniform noise. In every
    generation each member has one child, and the fittest of parents and children stay. With population = 1 this is the
    paper's one champion for each class, except that in the paper classes also inherit from each other. A pair leaves
    the batch once its fittest image is accepted as the class.

    population: number of members. generations: largest number of generations.
    rate: share of the pixels that a mutation changes (paper: 0.1). halving: number of generations after which the rate
    is halved (paper: 1000).
    strength: index of the polynomial mutation (Deb and Agrawal 1999); a larger one changes pixels less (paper: 15).
    """

    paper = "nguyen2015"
    norms: ClassVar[tuple[Norm, ...]] = ("fooling",)
    knowledge = "score"
    aims = "every"

    norm: Norm = "fooling"
    population: Annotated[int, Ge(1)] = 1
    generations: Annotated[int, Ge(1)] = 3000
    rate: Annotated[float, Gt(0), Le(1)] = 0.1
    halving: Annotated[int, Ge(1)] = 1000
    strength: Annotated[float, Gt(0)] = 15.0

    def passes(self) -> tuple[int, int]:
        return self.population * (self.generations + 1), 0

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        view = target.view()
        rows, aims = all_rows(x), aimed_at(target)
        generators = [torch.Generator().manual_seed(s) for s in input_seeds(x, seed)]

        def uniform(size: int) -> Tensor:
            """Return uniform numbers [n,size,C,H,W] in [0,1); each row comes from the generator of its input."""
            draws = [torch.rand((size, *x.shape[1:]), generator=generators[row]) for row in rows.tolist()]
            return torch.stack(draws).to(x)

        found = x.clone()
        members = torch.cat([x[:, None], uniform(self.population - 1)], dim=1) if len(x) else x[:, None]
        logits = self._scores(target, view, members, rows)
        for generation in range(self.generations + 1):
            if generation:
                rate = self.rate / 2 ** ((generation - 1) // self.halving)
                children = mutated(members, uniform(self.population), rate, self.strength)
                # Children first: the sort is stable, so that children replace parents of the same fitness
                members = torch.cat([children, members], dim=1)
                logits = torch.cat([self._scores(target, view, children, rows), logits], dim=1)
            value = fitness(logits, aims, target.num_classes)
            order = value.sort(dim=1, descending=True, stable=True).indices[:, : self.population]
            members, logits = (values[torch.arange(len(rows))[:, None], order] for values in (members, logits))
            found[rows] = members[:, 0]
            going = ~accepted_as(aims, logits[:, 0], members[:, 0], view, rows)
            rows, aims, members, logits = rows[going], aims[going], members[going], logits[going]
            if not len(rows):
                break
        return found

    def _scores(self, target: Target, view: View, members: Tensor, rows: Tensor) -> Tensor:
        """Return the logits of each row's members [n,m,C,H,W] → [n,m,K] or [n,m,K+1]; counts m forward passes a row."""
        target.count(rows, members.shape[1], 0)
        # Without rows, because an attacker with scores alone cannot choose where an inner optimisation starts
        logits = blockwise(lambda images: view.logits(images, None), members.flatten(0, 1))
        return logits.unflatten(0, members.shape[:2])


def mutated(members: Tensor, uniform: Tensor, rate: float, strength: float) -> Tensor:
    """Return members with a share `rate` of their pixels changed by polynomial mutation, clipped to [0,1].

    uniform: random numbers in [0,1), shaped like members. A chosen pixel changes by δ in [−1,1] with density
    ∝ (1 − |δ|)^strength.
    """
    u = (uniform / rate).clamp_max(1.0)  # numbers below the rate are uniform again: one draw chooses and changes
    down, up = (2 * u).clamp_max(1).pow(1 / (strength + 1)) - 1, 1 - (2 - 2 * u).clamp_max(1).pow(1 / (strength + 1))
    return torch.where(uniform < rate, (members + torch.where(u < 0.5, down, up)).clamp(0, 1), members)


def fitness(logits: Tensor, aims: Tensor, classes: int) -> Tensor:
    """Return the fitness of members with logits [n,m,K] or [n,m,K+1] for target classes aims [n] → [n,m] float64.

    It is positive exactly where a member is accepted as its target class. A member that is classified as the target
    class is always fitter than one that is not, as feasible solutions are fitter than infeasible ones in Deb (2000); a
    member of another class is compared without its reject score, which would favour that other class.
    """
    flat, wanted = logits.flatten(0, 1), aims.repeat_interleave(logits.shape[1])
    ahead = margin(flat, wanted, classes, wanted).double()
    if flat.shape[1] > classes:
        excess = reject_excess(flat, classes).double()
        ahead = torch.where(ahead > 0, F.softsign(-excess), F.softsign(ahead) - 1)
    return ahead.nan_to_num(nan=-torch.inf).view(logits.shape[:2])
