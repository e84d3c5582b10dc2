"""PixelDefend: Song, Kim, Nowozin, Ermon and Kushman 2018, "PixelDefend: Leveraging Generative Models to Understand and
Defend against Adversarial Examples" (https://arxiv.org/abs/1710.10766)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Le
from torch import Tensor

from manifold_bench.defenses.base import Defense, DefenseSpec, deployment
from manifold_bench.defenses.pixel_cnn import LEVELS, PixelCNN, PixelCNNSettings, PixelCNNSpec
from manifold_bench.defenses.projection_gradients import straight_through
from manifold_bench.defenses.undefended import Undefended, UndefendedSpec


@dataclass(frozen=True, kw_only=True)
class PixelDefendSpec(DefenseSpec):
    """Parameters of `PixelDefend`.

    pixelcnn: settings of the PixelCNN and its training.

    eps_defend: ε_defend, the largest change of a sub-pixel, in levels of 8 bits (1/255).
    """

    pixelcnn: PixelCNNSettings = field(default_factory=PixelCNNSettings)
    eps_defend: Annotated[int, Ge(0), Le(LEVELS - 1)] = deployment(16)


class PixelDefend(Defense):
    """Classifies the most probable image near the input, which a PixelCNN decodes greedily.

    x is rounded to 8 bits. In raster order, each sub-pixel is set to the value within ± ε_defend of its own that the
    PixelCNN finds most probable after those that were set before; the model is evaluated again after each of them:
    x*_i = argmax over v, |v − x_i| ≤ ε_defend, of log p(v | x*_1 … x*_{i−1}). The classifier, trained without the
    defense as in the paper, answers x*.

    Gradient mode `identity` takes the decoding for the identity (BPDA), by which Athalye et al. 2018 broke it.
    """

    paper = "song2018"
    Spec: ClassVar = PixelDefendSpec
    family: ClassVar[str] = "purification"
    parts: ClassVar[tuple[str, ...]] = ("pixelcnn", "classifier")
    spec: PixelDefendSpec

    def __init__(self, spec: PixelDefendSpec) -> None:
        super().__init__(spec)
        shape, classes = spec.shape, spec.num_classes
        self.pixelcnn = PixelCNN(PixelCNNSpec(shape=shape, num_classes=classes, settings=spec.pixelcnn))
        self.classifier: Defense = Undefended(UndefendedSpec(shape=shape, num_classes=classes))

    @property
    def gradient_modes(self) -> tuple[str, ...]:
        return ("identity",)

    @property
    def inference_steps(self) -> int:
        """Number of pixels, which are decoded one after another."""
        return math.prod(self.spec.shape[1:])

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(straight_through(x, self.perceived(x)))

    def attack_forward(self, x: Tensor, gradient: str, start: Tensor | None, inner_steps: int) -> tuple[Tensor, Tensor]:
        """See `Defense.attack_forward`; nothing is handed on, as the decoding has no start."""
        return self(x), x.detach()

    def perceived(self, x: Tensor) -> Tensor:
        """Return the most probable image near each of the images x, [N,C,H,W] in [0,1]."""
        with torch.no_grad():
            return self.pixelcnn.greedy(x, self.spec.eps_defend)
