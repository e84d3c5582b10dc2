"""The L2 attack of Carlini & Wagner 2017, "Towards Evaluating the Robustness of Neural Networks"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

from torch import Tensor

from manifold_bench.attacks.adam import Moments
from manifold_bench.attacks.batching import remaining
from manifold_bench.attacks.penalty import PenaltyAttack
from manifold_bench.attacks.threat import Norm


@dataclass(frozen=True, kw_only=True)
class CarliniWagner(PenaltyAttack):
    """Carlini and Wagner's L2 attack: the smallest perturbation with a large enough margin, by Adam.

    min ‖δ‖² + c · max(z_y − max_{j≠y} z_j, −κ) over δ, with x + δ clipped to [0,1] after each step; c is found by
    binary search.

    Clipping is one of the three ways in section 5 of the paper. Its final one, x + δ = (tanh w + 1)/2, cannot move
    pixels that are exactly 0 or 1, where tanh is saturated. Logits are in units of the `typical_temperature` of the
    clean input's logits, so that c means the same for logits of any scale. On a defense that rejects, the loss becomes
    the reject excess as soon as the answer is wrong (`attacks.losses.selective`).

    The defaults are those of CleverHans; Defense-GAN's paper uses searches = 1, steps = 100, rate = 10, c = 100.
    """

    paper = "carlini2017"
    version: ClassVar[int] = 2
    norms: ClassVar[tuple[Norm, ...]] = ("l2",)

    norm: Norm = "l2"

    def first_state(self, x: Tensor) -> AdamState:
        return AdamState(x, x, Moments.none(x), self.rate)

    def sizes(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        square = delta.square().flatten(1).sum(1)
        return square, square.sqrt()


class AdamState(NamedTuple):
    """A descent of ‖δ‖² + c · (missing margin) by Adam, from images `origin` [n,C,H,W]."""

    image: Tensor
    origin: Tensor
    memory: Moments
    rate: float

    def only(self, going: Tensor) -> Self:
        image, origin = remaining(going, self.image, self.origin)
        return self._replace(image=image, origin=origin, memory=self.memory.only(going))

    def after(self, gradient: Tensor, step: int) -> Self:
        memory = self.memory.after(2 * (self.image - self.origin) + gradient)
        image = (self.image - memory.step(self.rate, step + 1, epsilon=1e-8)).clamp(0, 1)
        return self._replace(image=image, memory=memory)
