"""VFGA: one pixel after the other by the best of random steps, for small perturbations in L0 (Césaire et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor

from manifold_bench.attacks.base import ViewAttack
from manifold_bench.attacks.batching import all_rows, remaining
from manifold_bench.attacks.gradient import Best
from manifold_bench.attacks.losses import accepted_and_wrong, selective
from manifold_bench.attacks.square import score
from manifold_bench.attacks.target import Target
from manifold_bench.attacks.threat import Norm, input_seeds


@dataclass(frozen=True, kw_only=True)
class VFGA(ViewAttack):
    """VFGA, the voting folded Gaussian attack: changes the pixel whose random steps help most, and repeats.

    p⁺ = argmax Σ_c max(∂L (1 − x), 0), p⁻ = argmax Σ_c max(−∂L x, 0) over pixels that are unchanged so far; the best of
    `draws` steps x + |N(0, 1 − x)| of p⁺ and as many steps x − |N(0, x)| of p⁻, clipped to [0,1], is kept.

    A step changes those channels of a pixel for which the slope ∂L points in its direction; in grey images that is the
    paper's choice of single values. L is the margin where the paper takes the probability of the label, whose slope
    vanishes where it rounds to 1.

    steps: largest number of pixels. draws: number of random steps of each of the two pixels; a step of the attack costs
    a forward and a backward pass, and 2 `draws` forward passes.

    On a defense that rejects, L becomes minus the reject excess as soon as the answer is wrong
    (`attacks.losses.selective`). An input leaves the batch as soon as the attack succeeds on it.
    """

    paper = "cesaire2021"
    norms: ClassVar[tuple[Norm, ...]] = ("l0",)
    minimal = True

    norm: Norm = "l0"
    steps: Annotated[int, Ge(1)] = 100
    draws: Annotated[int, Ge(1)] = 10

    def passes(self) -> tuple[int, int]:
        return self.steps * (1 + 2 * self.draws), self.steps

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        view, rows, found, point, origin, label = self.view(target), all_rows(x), x.clone(), x, x, y
        generators = [torch.Generator().manual_seed(s) for s in input_seeds(x, seed)]
        for step in range(self.steps):
            if not len(rows):
                break
            loss = partial(selective, y=label, classes=view.num_classes)
            logits, _, slope = view.ascent(point, loss, rows)
            if not step:
                right = ~view.confirmed(x, y, rows, accepted_and_wrong(logits, y, view.num_classes))
                rows, label, point, origin, slope = remaining(right, rows, label, point, origin, slope)
            best = Best(point.clone(), torch.full((len(rows),), -torch.inf, dtype=torch.float64, device=x.device))
            beaten = torch.zeros_like(rows, dtype=torch.bool)
            for candidate in self._candidates(point, origin, slope, [generators[row] for row in rows.tolist()]):
                value, won = score(view, candidate, label, rows)
                best.update(all_rows(point), candidate, value.masked_fill(won, torch.inf))
                beaten |= won
            found[rows[beaten]] = best.point[beaten]
            going = ~beaten & (best.point != point).flatten(1).any(1)
            rows, label, point, origin = remaining(going, rows, label, best.point, origin)
        return found

    def _candidates(
        self, point: Tensor, origin: Tensor, slope: Tensor, generators: list[torch.Generator]
    ) -> Iterator[Tensor]:
        """Yield points [n,C,H,W] with random steps of their best unchanged pixel upwards, and then downwards."""
        channels, fresh = point.shape[1], (point == origin).all(1, keepdim=True)
        drawn = [torch.randn(2, self.draws, channels, 1, 1, generator=one).abs() for one in generators]
        lengths = torch.stack(drawn).to(point) if drawn else point.new_empty(0, 2, self.draws, channels, 1, 1)
        for way, side in enumerate((1, -1)):
            room = 1 - point if side > 0 else point
            gain = (side * slope * room).clamp_min(0)
            total = gain.sum(1, keepdim=True).masked_fill(~fresh, 0.0).flatten(1)
            chosen = torch.zeros_like(total).scatter(1, total.argmax(1, keepdim=True), 1.0)
            moves = (chosen.view_as(fresh) * (gain > 0) * fresh).bool()
            for length in lengths[:, way].unbind(1):
                yield torch.where(moves, (point + side * room.sqrt() * length).clamp(0, 1), point)
