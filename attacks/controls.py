"""Attacks that must not work: what a real attack has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor

from attacks.base import Attack, Knowledge
from attacks.target import Target
from attacks.threat import NORMS, Norm, random_in_ball


@dataclass(frozen=True, kw_only=True)
class RandomNoise(Attack):
    """Random points of the ε-ball, `draws` of them for each input; the first that is accepted and wrong counts.

    The last draw comes back unasked: what it is worth is the judge's to say.
    """

    norms: ClassVar[tuple[Norm, ...]] = NORMS

    draws: Annotated[int, Ge(1)] = 10

    @property
    def knowledge(self) -> Knowledge:
        return "decision"

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        best = random_in_ball(x, self.norm, eps, seed)
        rows = torch.arange(len(x), device=x.device)
        for draw in range(self.draws):
            candidate = random_in_ball(x[rows], self.norm, eps, seed + draw)
            best[rows] = candidate
            if draw == self.draws - 1:
                break  # the judge asks anyway
            rows = rows[~target.verdict(candidate, rows).wrong(y[rows])]
            if not len(rows):
                break
        return best

    def passes(self) -> tuple[int, int]:
        return self.draws - 1, 0
