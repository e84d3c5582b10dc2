"""Evolutionary search for images of nothing that a defense takes for something, from its scores alone."""

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

    Mutation and selection on the score of that class, pixels encoded directly.

    Each input and class has a population of its own: the input and fresh uniform noise. In every generation each
    member has one child and the fittest of both stay; with population = 1 that is the one champion per class of
    the paper, whose classes however also inherit from each other. An input leaves once its fittest image is accepted.

    population: number of members. generations: largest number of generations.
    rate, halving: a mutation changes this share of the pixels; it halves every `halving` generations (paper: 0.1,
    1000).
    strength: index of the polynomial mutation that changes them (Deb and Agrawal 1999); larger is gentler (paper: 15).
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
            """[n,size,C,H,W] in [0,1), each row from the generator of its own input."""
            draws = [torch.rand((size, *x.shape[1:]), generator=generators[row]) for row in rows.tolist()]
            return torch.stack(draws).to(x)

        found = x.clone()
        members = torch.cat([x[:, None], uniform(self.population - 1)], dim=1) if len(x) else x[:, None]
        logits = self._scores(target, view, members, rows)
        for generation in range(self.generations + 1):
            if generation:
                rate = self.rate / 2 ** ((generation - 1) // self.halving)
                children = mutated(members, uniform(self.population), rate, self.strength)
                # Children first: the sort is stable, so that where nothing changes the population still moves
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
        """The logits of each row's members: [n,m,C,H,W] → [n,m,K] or [n,m,K+1]; m forward passes for each row."""
        target.count(rows, members.shape[1], 0)
        # Rows unnamed: whoever has only scores can't hand in where an optimisation inside the defense shall start
        logits = blockwise(lambda images: view.logits(images, None), members.flatten(0, 1))
        return logits.unflatten(0, members.shape[:2])


def mutated(members: Tensor, uniform: Tensor, rate: float, strength: float) -> Tensor:
    """Polynomial mutation of a share `rate` of the pixels, in [0,1]. members, uniform: same shape, uniform in [0,1).

    A chosen pixel moves by δ in [−1,1] of density ∝ (1 − |δ|)^strength, and stops at the edge of the box.
    """
    u = (uniform / rate).clamp_max(1.0)  # below the rate it is uniform again: one draw chooses and moves
    down, up = (2 * u).clamp_max(1).pow(1 / (strength + 1)) - 1, 1 - (2 - 2 * u).clamp_max(1).pow(1 / (strength + 1))
    return torch.where(uniform < rate, (members + torch.where(u < 0.5, down, up)).clamp(0, 1), members)


def fitness(logits: Tensor, aims: Tensor, classes: int) -> Tensor:
    """What selection goes by: logits [n,m,K] or [n,m,K+1], aims [n] → [n,m] float64, positive where accepted as aim.

    First the class, then acceptance: whatever is taken for the class beats whatever isn't, as the feasible beats the
    infeasible in Deb (2000). The reject score of another class would lead to that one.
    """
    flat, wanted = logits.flatten(0, 1), aims.repeat_interleave(logits.shape[1])
    ahead = margin(flat, wanted, classes, wanted).double()
    if flat.shape[1] > classes:
        excess = reject_excess(flat, classes).double()
        ahead = torch.where(ahead > 0, F.softsign(-excess), F.softsign(ahead) - 1)
    return ahead.nan_to_num(nan=-torch.inf).view(logits.shape[:2])
