"""Diffusion purification: Nie, Guo, Huang, Xiao, Vahdat and Anandkumar 2022, "Diffusion Models for Adversarial
Purification" (https://arxiv.org/abs/2205.07460)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Le
from torch import Tensor

from manifold_bench.defenses.base import Defense, DefenseSpec, deployment
from manifold_bench.defenses.diffusion import STEPS, Diffusion, DiffusionSettings, DiffusionSpec
from manifold_bench.defenses.projection_gradients import straight_through
from manifold_bench.defenses.undefended import Undefended, UndefendedSpec


@dataclass(frozen=True, kw_only=True)
class PurifierSpec(DefenseSpec):
    """Parameters of `Purifier`.

    diffusion: settings of the diffusion model and its training.

    time: time t* up to which an image is noised, of 1,000. steps: number of steps of the reverse process, at most
    `time`.
    """

    diffusion: DiffusionSettings = field(default_factory=DiffusionSettings)
    time: Annotated[int, Ge(1), Le(STEPS)] = deployment(200)
    steps: Annotated[int, Ge(1)] = deployment(5)

    def __post_init__(self) -> None:
        if self.time > self.diffusion.latest:
            raise ValueError(f"time: {self.time} was not trained; give at most {self.diffusion.latest}")
        if self.steps > self.time:
            raise ValueError(f"steps: {self.steps} steps do not fit into time {self.time}; give at most {self.time}")


class Purifier(Defense):
    """Classifies what a diffusion model makes of an image that is noised to time t* and denoised again (DiffPure).

    x_t* = √ᾱ_t* x + √(1 − ᾱ_t*) ε, then x_t → x_s down to time 0 by the posterior at the estimated clean image, and
    C(x_0). Noise is drawn anew for every answer. The steps are evenly spaced in t, as in Nichol and Dhariwal 2021.

    Gradient modes: `unrolled` passes exactly through a reverse process of `inner_steps` steps. With at least as many as
    are deployed it is the deployed one; with fewer it is a cheaper surrogate (Lee and Kim 2023). `identity` takes the
    deployed process for the identity (BPDA). An attack's warm start keeps the noise that its first answer drew (fixed
    randomness); averages over several answers then have as many fixed draws.
    """

    paper = "nie2022"
    Spec: ClassVar = PurifierSpec
    family: ClassVar[str] = "purification"
    randomized: ClassVar[bool] = True
    parts: ClassVar[tuple[str, ...]] = ("diffusion", "classifier")
    spec: PurifierSpec

    def __init__(self, spec: PurifierSpec) -> None:
        super().__init__(spec)
        shape, classes = spec.shape, spec.num_classes
        self.diffusion = Diffusion(DiffusionSpec(shape=shape, num_classes=classes, settings=spec.diffusion))
        self.classifier: Defense = Undefended(UndefendedSpec(shape=shape, num_classes=classes))

    @property
    def gradient_modes(self) -> tuple[str, ...]:
        return ("unrolled", "identity")

    @property
    def inference_steps(self) -> int:
        return self.spec.steps

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.purified(x, self.noise(x, self.spec.steps)))

    def noise(self, x: Tensor, steps: int) -> Tensor:
        """Return new standard normal noise for images x [N,C,H,W], for time t* and each of S steps: [N,S+1,C,H,W]."""
        return torch.randn(len(x), steps + 1, *x.shape[1:], dtype=x.dtype, device=x.device)

    def purified(self, x: Tensor, noise: Tensor) -> Tensor:
        """Return x_0 for images x [N,C,H,W], by as many reverse steps as noise [N,S+1,C,H,W] has for them."""
        steps, end = noise.shape[1] - 1, self.spec.time
        times = [round(end * (steps - step) / steps) for step in range(steps + 1)]
        noisy = self.diffusion.noised(2 * x - 1, end, noise[:, 0])
        return (self.diffusion.reversed(noisy, times, noise[:, 1:]) + 1) / 2

    def attack_forward(self, x: Tensor, gradient: str, start: Tensor | None, inner_steps: int) -> tuple[Tensor, Tensor]:
        """See `Defense.attack_forward`; what an inner optimisation hands on here is its noise."""
        steps = min(inner_steps, self.spec.steps) if gradient == "unrolled" else self.spec.steps
        noise = self.noise(x, steps) if start is None else start
        if gradient == "unrolled":
            return self.classifier(self.purified(x, noise)), noise
        with torch.no_grad():
            purified = self.purified(x, noise)
        return self.classifier(straight_through(x, purified)), noise

    def perceived(self, x: Tensor) -> Tensor:
        """Return the purified images x_0 [N,C,H,W], clipped to [0,1]."""
        with torch.no_grad():
            return self.purified(x, self.noise(x, self.spec.steps)).clamp(0, 1)
