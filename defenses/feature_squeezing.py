"""Feature squeezing as a detector: Xu, Evans and Qi 2018, "Feature Squeezing: Detecting Adversarial Examples in Deep
Neural Networks" (https://arxiv.org/abs/1704.01155)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor
from torch.nn import functional as F

from manifold_bench.defenses.base import DefenseSpec, LabelledImages, Progress, deployment
from manifold_bench.defenses.bpda import bpda
from manifold_bench.defenses.calibration import selective_figures
from manifold_bench.defenses.detector import Detector
from manifold_bench.defenses.projection_gradients import straight_through
from manifold_bench.defenses.training import in_batches
from manifold_bench.defenses.undefended import Undefended, UndefendedSpec

STEEPNESS = 10.0
"""Steepness of the sigmoid that approximates a rounding step, for values one step apart."""


@dataclass(frozen=True, kw_only=True)
class FeatureSqueezingSpec(DefenseSpec):
    """Parameters of `FeatureSqueezing`.

    bits: number of bits of each value in the first squeezed copy (paper: 1 on MNIST). window: width in pixels of the
    median filter that makes the second squeezed copy (paper: 2).

    rejection_rate: share of clean validation images that may be rejected (paper: 0.05).
    """

    bits: Annotated[int, Ge(1), Le(8)] = 1
    window: Literal[2, 3] = 2
    rejection_rate: Annotated[float, Gt(0), Lt(0.5)] = deployment(0.05)


class FeatureSqueezing(Detector):
    """Rejects images whose predicted probabilities change much when they are squeezed to fewer values.

    The score is max over s of ‖softmax f(x) − softmax f(s(x))‖₁, in [0, 2], for the classifier f of `undefended` and
    two squeezers s: fewer bits, and a median filter. An image is rejected where its score exceeds a threshold, which a
    share `rejection_rate` of clean validation images exceed. An accepted image gets the answer to x itself.

    All gradients are made for an attacker who knows the defense. The median passes them to the pixel that it chooses,
    and the rounding passes them by a sigmoid at each of its steps: by the identity (BPDA) an L2 attack would move all
    pixels a little, and few of them across a step. The distance has the gradient of the Kullback-Leibler divergence
    from the answer to x, which is held, because softmaxes that round to 0 and 1 have none. He et al. 2017 ("Adversarial
    Example Defenses: Ensembles of Weak Defenses are not Strong", https://arxiv.org/abs/1706.04701) broke it first.
    """

    paper = "xu2018"
    Spec: ClassVar = FeatureSqueezingSpec
    detectors: ClassVar = ("bits", "median")
    parts: ClassVar = ("classifier",)
    spec: FeatureSqueezingSpec

    def __init__(self, spec: FeatureSqueezingSpec) -> None:
        super().__init__(spec, [spec.rejection_rate] * 2)
        self.classifier: Undefended = Undefended(UndefendedSpec(shape=spec.shape, num_classes=spec.num_classes))

    def scores(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits [N,K] of images x [N,C,H,W], and the distances [N,2] to the answers to both copies."""
        logits = self.classifier(torch.cat([x, *self.squeezed(x)]))
        plain, *others = logits.log_softmax(1).split(len(x))
        distances = [straight_through(divergence(plain.detach(), other), l1_distance(plain, other)) for other in others]
        return logits[: len(x)], torch.stack(distances, dim=1) + 1e-6  # so that no threshold is 0

    def squeezed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return images x [N,C,H,W] with fewer bits and after the median filter, differentiable in x."""
        bits, window = self.spec.bits, self.spec.window
        return bpda(lambda image: fewer_bits(image, bits), lambda image: smooth_bits(image, bits))(x), median(x, window)

    def fit(
        self, train: LabelledImages, validation: LabelledImages, budget: float, seed: int, progress: Progress
    ) -> dict[str, float]:
        self.eval()
        device = self.held_out.ordered.device
        largest = in_batches(lambda x: self.scores(x)[1].amax(1, keepdim=True), validation.images, device)
        self.held_out.keep(largest.expand(-1, 2))  # the paper has one threshold, for the largest distance
        return selective_figures(in_batches(self, validation.images, device), validation.labels)


def fewer_bits(x: Tensor, bits: int) -> Tensor:
    """Return images in [0,1] rounded to the nearest of 2^bits values, 0 and 1 among them."""
    most = 2**bits - 1
    return (x * most).round() / most


def smooth_bits(x: Tensor, bits: int) -> Tensor:
    """Return `fewer_bits` with a sigmoid at each step; it is smooth except at the values between steps."""
    most = 2**bits - 1
    below = (x * most).floor()
    return (below + torch.sigmoid(STEEPNESS * (x * most - below - 0.5))) / most


def l1_distance(plain: Tensor, other: Tensor) -> Tensor:
    """Return ‖p − q‖₁ of distributions whose logarithms are [N,K] → [N]."""
    return (plain.exp() - other.exp()).abs().sum(1)


def divergence(plain: Tensor, other: Tensor) -> Tensor:
    """Return KL(p‖q) of distributions whose logarithms are [N,K] → [N]."""
    return (plain.exp() * (plain - other)).sum(1)


def median(x: Tensor, window: int) -> Tensor:
    """Return images x [N,C,H,W] after a median filter; window: its width in pixels, 2 or 3.

    As in SciPy's `median_filter` with mode "reflect": an even window reaches further up and left, and of its four
    values the third smallest is taken.
    """
    before = window // 2
    padded = F.pad(x, (before, window - 1 - before, before, window - 1 - before), mode="replicate")
    values = padded.unfold(2, window, 1).unfold(3, window, 1).flatten(4)
    return values.sort(dim=4).values[..., window**2 // 2]
