"""A normalizing flow with a Gaussian mixture (FlowGMM): Izmailov, Kirichenko, Finzi and Wilson 2020, "Semi-Supervised
Learning with Normalizing Flows" (https://arxiv.org/abs/1912.13025)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn
from torch.nn import functional as F

from manifold_bench.defenses.augmentation import shifted
from manifold_bench.defenses.base import DefenseSpec, LabelledImages, Progress, deployment
from manifold_bench.defenses.calibration import selective_figures
from manifold_bench.defenses.detector import Detector
from manifold_bench.defenses.training import Training, epochs_for, in_batches, initialise, train_module

FLOOR = 0.05
"""λ: pixels are squeezed into [λ, 1 − λ] before the logit, as RealNVP does, so that black and white stay finite."""

STEEPEST = 2.0
"""Largest |log scale| of a coupling, which a tanh bounds."""


@dataclass(frozen=True, kw_only=True)
class FlowGMMSpec(DefenseSpec):
    """Parameters of `FlowGMM`.

    couplings: number of coupling layers. hidden: number of units of both hidden layers in each.

    noise: width of the uniform noise that is added to each pixel in the training (dequantization). The usual 1/255
    leaves pixels that are nearly always black a tiny variance, and the training on MNIST diverges.
    epochs, batch_size, rate: number of epochs, batch size and learning rate of the training.
    rejection_rate: share of clean validation images that may be rejected.
    """

    couplings: Annotated[int, Ge(2)] = 6
    hidden: Annotated[int, Ge(1)] = 192
    noise: Annotated[float, Gt(0), Le(1)] = 0.1
    epochs: Annotated[int, Ge(1)] = 8
    batch_size: Annotated[int, Ge(1)] = 128
    rate: Annotated[float, Gt(0)] = 5e-4
    rejection_rate: Annotated[float, Gt(0), Lt(0.5)] = deployment(0.01)


class Couplings(nn.Module):
    """An invertible network of vectors [N,D], by affine couplings (RealNVP; Dinh, Sohl-Dickstein and Bengio 2017).

    Vectors are split into their even and odd entries (a, b). Each coupling is (a, b) → (b · exp s(a) + t(a), a), where
    a dense network computes s and t.
    """

    def __init__(self, dimensions: int, couplings: int, hidden: int) -> None:
        super().__init__()
        sizes = [(dimensions + 1) // 2, dimensions // 2] * couplings
        self.networks = nn.ModuleList(
            nn.Sequential(
                nn.Linear(a, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 2 * b)
            )
            for a, b in pairwise(sizes[: couplings + 1])
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return z [N,D], and log |det dz/dx| [N]."""
        a, b = x[:, ::2], x[:, 1::2]
        log_det = x.new_zeros(len(x))
        for network in self.networks:
            scale, offset = network(a).chunk(2, dim=1)
            scale = STEEPEST * torch.tanh(scale / STEEPEST)
            a, b, log_det = b * scale.exp() + offset, a, log_det + scale.sum(1)
        return torch.cat([a, b], dim=1), log_det


class MixtureFlow(nn.Module):
    """Images [N,C,H,W] in [0,1] → log p(x|c) [N,K] in nats, exactly.

    p(x|c) = N(f(x); μ_c, I) |det df/dx|, where f is a logit of each pixel and then `Couplings`. The class means μ_c are
    drawn once from N(0, I), as in the paper, so that any two are about √(2D) apart.
    """

    means: Tensor

    def __init__(self, spec: FlowGMMSpec) -> None:
        super().__init__()
        dimensions = math.prod(spec.shape)
        self.noise = spec.noise
        self.couplings = Couplings(dimensions, spec.couplings, spec.hidden)
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("means", torch.randn(spec.num_classes, dimensions, generator=generator))

    def latents(self, x: Tensor, offset: Tensor | float = 0.5) -> tuple[Tensor, Tensor]:
        """Return z = f(x) [N,D], and log |det dz/dx| [N].

        offset: share of the noise that is added, in [0,1]; random in the training.
        """
        share = (x + self.noise * offset).flatten(1) / (1 + self.noise)
        squeezed = FLOOR + (1 - 2 * FLOOR) * share
        slope = math.log((1 - 2 * FLOOR) / (1 + self.noise)) - squeezed.log() - (1 - squeezed).log()
        z, log_det = self.couplings(squeezed.logit())
        return z, log_det + slope.sum(1)

    def forward(self, x: Tensor, offset: Tensor | float = 0.5) -> Tensor:
        z, log_det = self.latents(x, offset)
        distance = (z[:, None] - self.means).square().sum(2)
        return log_det[:, None] - 0.5 * (distance + z.shape[1] * math.log(2 * math.pi))


class FlowGMM(Detector):
    """Classifies by the largest p(x|c) of a flow with one Gaussian for each class, and rejects small p(x).

    forward: images [N,C,H,W] in [0,1] → logits log p(x|c), and a reject score that exceeds the largest one by
    (m − log p(x)) / τ − 1. p(x) = (1/K) Σ_c p(x|c) is exact: it is no bound, and there is no decoder to mislead. m is
    the median of log p(x) over clean validation images, and a share `rejection_rate` of these are more than τ below it.

    The training maximises log p(x|y) alone. Flows are known to find simpler images than those of their training
    likelier (Nalisnick et al. 2019, https://arxiv.org/abs/1810.09136), which this one then accepts.
    """

    paper = "izmailov2020"
    Spec: ClassVar = FlowGMMSpec
    family: ClassVar[str] = "generative rejection"
    detectors: ClassVar = ("likelihood",)
    spec: FlowGMMSpec
    median: Tensor

    def __init__(self, spec: FlowGMMSpec) -> None:
        super().__init__(spec, [spec.rejection_rate])
        self.classifier: MixtureFlow = MixtureFlow(spec)
        self.register_buffer("median", torch.tensor(0.0))

    def scores(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(x|c) of each class, and how far log p(x) is below the median clean image's, [N,1] in nats."""
        likely = self.classifier(x)
        return likely, (self.median - evidence(likely))[:, None]

    def fit(
        self, train: LabelledImages, validation: LabelledImages, budget: float, seed: int, progress: Progress
    ) -> dict[str, float]:
        spec, flow = self.spec, self.classifier
        initialise(flow, seed)
        most, dimensions = spec.shape[-1] // 16, math.prod(spec.shape)

        def step(images: Tensor, labels: Tensor, done: float) -> Tensor:
            images = shifted(images, most)
            likely = flow(images, torch.rand_like(images))
            return F.nll_loss(likely, labels) / dimensions

        def figures() -> dict[str, float]:
            likely = in_batches(flow, validation.images, self.median.device)
            right = likely.argmax(1) == validation.labels
            nats = evidence(likely).mean() / dimensions
            return {"validation_accuracy": float(right.float().mean()), "validation_nats_per_pixel": float(nats)}

        epochs = epochs_for(budget, spec.epochs, len(train))
        training = Training("flow", seed, epochs, spec.batch_size, spec.rate)
        train_module(flow, step, train, training, progress, figures)
        self.eval()
        scores = evidence(in_batches(flow, validation.images, self.median.device))
        self.median = scores.median().to(self.median.device)
        self.held_out.keep((scores.median() - scores)[:, None])
        answers = in_batches(self, validation.images, self.median.device)
        return figures() | selective_figures(answers, validation.labels)


def evidence(likely: Tensor) -> Tensor:
    """Return log p(x) [N], the classes being equally frequent, for log p(x|c) [N,K]."""
    return likely.logsumexp(1) - math.log(likely.shape[1])
