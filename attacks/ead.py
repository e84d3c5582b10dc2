"""EAD, the elastic-net attack: small perturbations in L1 by shrinking all pixels in each step (Chen et al. 2018)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple, Self

from annotated_types import Ge, Gt, Lt
from torch import Tensor

from manifold_bench.attacks.batching import remaining
from manifold_bench.attacks.penalty import PenaltyAttack
from manifold_bench.attacks.threat import Norm, flat_norm


@dataclass(frozen=True, kw_only=True)
class EAD(PenaltyAttack):
    """EAD: Carlini and Wagner's loss with an L1 term, which keeps most pixels as they are.

    min β ‖δ‖₁ + ‖δ‖² + c · max(z_y − max_{j≠y} z_j, −κ) by FISTA: x_{k+1} = S(y_k − α_k ∇), where ∇ is the gradient of
    the last two terms and S pulls each value by β towards the input's, no farther than to it; then
    y_{k+1} = x_{k+1} + k/(k+3) (x_{k+1} − x_k). Values are clipped to [0,1], and c is found by binary search.

    S pulls by β whatever the step size α_k, as in the paper, so that the L1 term weighs β/α_k. Of the successes the one
    of the smallest L1 norm is kept (the paper's L1 rule). Successes are looked for at the points y_k, whose gradients
    are taken: with x_k, too, each step would cost one more pass. Logits are in units of the `typical_temperature` of
    the clean input's logits. On a defense that rejects, the loss becomes the reject excess as soon as the answer is
    wrong (`attacks.losses.selective`).

    The defaults are those of the paper.

    rate: length α₀ of the first step; α_k falls with the root of the share of steps that are left. beta: difference by
    which each step pulls a value back towards that of the input. accelerated: whether y_k runs ahead of x_k; otherwise
    y_k = x_k, which is ISTA.
    """

    paper = "chen2018"
    version: ClassVar[int] = 2
    norms: ClassVar[tuple[Norm, ...]] = ("l1",)
    shrinking_steps = True

    norm: Norm = "l1"
    searches: Annotated[int, Ge(1)] = 9
    rate: Annotated[float, Gt(0), Lt(math.inf)] = 0.01
    c: Annotated[float, Gt(0), Lt(math.inf)] = 1e-3
    beta: Annotated[float, Ge(0), Lt(math.inf)] = 0.01
    accelerated: bool = True

    def first_state(self, x: Tensor) -> FISTAState:
        return FISTAState(x, x, x, self)

    def sizes(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        sum_of_changes = flat_norm(delta, "l1")
        return self.beta * sum_of_changes + delta.square().flatten(1).sum(1), sum_of_changes


class FISTAState(NamedTuple):
    """A descent by FISTA from images `origin` [n,C,H,W]; image: y_k, shrunk: x_k in `EAD`, both [n,C,H,W]."""

    image: Tensor
    shrunk: Tensor
    origin: Tensor
    attack: EAD

    def only(self, going: Tensor) -> Self:
        image, shrunk, origin = remaining(going, self.image, self.shrunk, self.origin)
        return self._replace(image=image, shrunk=shrunk, origin=origin)

    def after(self, gradient: Tensor, step: int) -> Self:
        delta = self.image - self.origin
        rate = self.attack.rate * math.sqrt(1 - step / self.attack.steps)
        delta = delta - rate * (2 * delta + gradient)
        shrunk = (self.origin + delta.sign() * (delta.abs() - self.attack.beta).clamp_min(0)).clamp(0, 1)
        ahead = step / (step + 3) if self.attack.accelerated else 0.0
        return self._replace(image=(shrunk + ahead * (shrunk - self.shrunk)).clamp(0, 1), shrunk=shrunk)
