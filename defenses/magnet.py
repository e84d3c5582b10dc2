"""MagNet (Meng and Chen, CCS 2017, "MagNet: a Two-Pronged Defense against Adversarial Examples")."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn
from torch.nn import functional as F

from manifold_bench.defenses.base import LabelledImages, Progress
from manifold_bench.defenses.calibration import selective_figures
from manifold_bench.defenses.classifier import ClassifierSpec, fit_classifier
from manifold_bench.defenses.convolutions import ImageConvolution
from manifold_bench.defenses.detector import Detector
from manifold_bench.defenses.networks import StridedCNN
from manifold_bench.defenses.training import Training, accuracy, epochs_for, in_batches, initialise, train_module

Rate = Annotated[float, Gt(0), Lt(1)]
"""Share of clean validation images that a detector may reject."""

TEMPERATURES = {"jsd10": 10.0, "jsd40": 40.0}
"""Temperatures of the softmaxes that the divergence detectors compare."""


@dataclass(frozen=True, kw_only=True)
class MagNetSpec(ClassifierSpec):
    """Parameters of `MagNet`.

    filters: number of channels of each hidden convolution of the autoencoders. noise: standard deviation of the
    noise that the autoencoders learn to remove.

    autoencoder_epochs: number of epochs of the autoencoders' training; the paper has 100, at a lower learning rate.
    autoencoder_rate: learning rate of the autoencoders' training. On MNIST the mean squared error of validation images
    is 0.0025 after 4 epochs and 0.0015 after 8 (0.0053 at a third of the rate).
    width: number of channels of the classifier's first convolution. hidden: number of units of the classifier's dense
    layer. epochs: number of epochs of the classifier's training. batch_size: number of images in a batch. rate:
    learning rate of the classifier's training. rate_l2: false-rejection rate of the detector by the L2 reconstruction
    error, from the paper. rate_l1: false-rejection rate of the detector by the L1 reconstruction error, from the
    paper. rate_jsd10: false-rejection rate of the detector by the Jensen–Shannon divergence at temperature 10, from the
    paper; for colour images alone. rate_jsd40: the same rate at temperature 40, from the paper.
    """

    filters: Annotated[int, Ge(1)] = 3
    noise: Annotated[float, Ge(0)] = 0.1
    autoencoder_epochs: Annotated[int, Ge(1)] = 8
    autoencoder_rate: Annotated[float, Gt(0)] = 3e-2
    width: Annotated[int, Ge(1)] = 16
    hidden: Annotated[int, Ge(1)] = 64
    epochs: Annotated[int, Ge(1)] = 12
    rate: Annotated[float, Gt(0)] = 2e-3
    rate_l2: Rate = field(default=0.001, metadata={"deployment": True})
    rate_l1: Rate = field(default=0.001, metadata={"deployment": True})
    rate_jsd10: Rate = field(default=0.005, metadata={"deployment": True})
    rate_jsd40: Rate = field(default=0.01, metadata={"deployment": True})


class Autoencoder(nn.Module):
    """An autoencoder of 3×3 convolutions with sigmoids: images [N,C,H,W] → reconstructions, same shape.

    pooled: whether it is AE-I (convolution, 2×2 average pooling, convolution, convolution, upsampling, convolution,
    output), or else AE-II (convolution, convolution, output).
    """

    def __init__(self, channels: int, filters: int, pooled: bool) -> None:
        super().__init__()
        self.pooled = pooled
        self.first = ImageConvolution(channels, filters, 3, padding=1)
        self.inner = nn.ModuleList(nn.Conv2d(filters, filters, 3, padding=1) for _ in range(2 if pooled else 0))
        self.last = nn.Conv2d(filters, filters, 3, padding=1)
        self.output = nn.Conv2d(filters, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.sigmoid(self.first(x))
        if self.pooled:
            h = F.avg_pool2d(h, 2, ceil_mode=True)
            for layer in self.inner:
                h = torch.sigmoid(layer(h))
            h = F.interpolate(h, size=x.shape[-2:])
        return torch.sigmoid(self.output(torch.sigmoid(self.last(h))))


class MagNet(Detector):
    """Classifies an autoencoder's reconstruction, and rejects what it reconstructs badly.

    The answer is f(AE-I(x)); AE-I is the reformer. An input that AE-I or AE-II reconstructs too badly is rejected, that
    is one with a score such as ‖x − AE(x)‖₂²/d above the detector's threshold.

    forward: images [N,C,H,W] in [0,1] → logits [N,K+1]. The reject score exceeds the largest logit by the largest
    ratio of a detector's score to its threshold, minus 1. The detectors are `l2` and `l1`, the mean squared error of
    AE-I and the mean absolute error of AE-II, and for colour images `jsd10` and `jsd40`, the Jensen–Shannon divergence
    between the classifier's softmax of the image and of its reconstruction at temperatures 10 and 40 (section 4.2 of
    the paper). A share of clean validation images, the detector's rate, has scores above its threshold. All of it is
    differentiable. The paper claims robustness against attackers who do not know MagNet; those who know it broke it
    (Carlini and Wagner 2017, "MagNet and 'Efficient Defenses Against Adversarial Attacks' are Not Robust to
    Adversarial Examples"). The reference code's penalty of 1e-9 on activations is left out.
    """

    paper = "meng2017"
    Spec: ClassVar = MagNetSpec
    spec: MagNetSpec

    def __init__(self, spec: MagNetSpec) -> None:
        super().__init__(spec, [getattr(spec, f"rate_{name}") for name in detectors(spec)])
        channels = spec.shape[0]
        self.classifier: StridedCNN = StridedCNN(spec.shape, spec.num_classes, spec.width, spec.hidden)
        self.reformer = Autoencoder(channels, spec.filters, pooled=True)
        self.second = Autoencoder(channels, spec.filters, pooled=False)

    @property
    def detectors(self) -> tuple[str, ...]:  # type: ignore[override]
        return detectors(self.spec)

    def scores(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits [N,K] of the reconstructions of images x [N,C,H,W], and the detectors' scores [N,D]."""
        reformed = self.reformer(x)
        logits = self.classifier(reformed)
        scores = [(x - reformed).square().flatten(1).mean(1), (x - self.second(x)).abs().flatten(1).mean(1)]
        if self.spec.shape[0] > 1:
            plain = self.classifier(x)
            scores += [jensen_shannon(plain / t, logits / t) for t in TEMPERATURES.values()]
        return logits, torch.stack(scores, dim=1)

    def perceived(self, x: Tensor) -> Tensor:
        """Return the reconstruction by AE-I, which is classified."""
        with torch.no_grad():
            return self.reformer(x)

    def fit(
        self, train: LabelledImages, validation: LabelledImages, budget: float, seed: int, progress: Progress
    ) -> dict[str, float]:
        spec = self.spec
        device = self.held_out.ordered.device
        training = Training("classifier", seed, epochs_for(budget, spec.epochs, len(train)), spec.batch_size, spec.rate)
        fit_classifier(self.classifier, train, validation, training, progress)
        for stage, autoencoder in (("reformer", self.reformer), ("second", self.second)):
            self.fit_autoencoder(autoencoder, stage, train, budget, seed, progress)
        self.eval()
        scores = in_batches(lambda x: self.scores(x)[1], validation.images, device)
        self.held_out.keep(scores)
        return {
            "validation_accuracy_of_classifier": accuracy(self.classifier, validation),
            **selective_figures(in_batches(self, validation.images, device), validation.labels),
            **{f"validation_{name}": float(mean) for name, mean in zip(self.detectors, scores.mean(0), strict=True)},
        }

    def fit_autoencoder(
        self, autoencoder: nn.Module, stage: str, data: LabelledImages, budget: float, seed: int, progress: Progress
    ) -> None:
        """Train an autoencoder in place to remove Gaussian noise, by the mean squared error to the clean image."""
        spec = self.spec
        initialise(autoencoder, seed)

        def step(images: Tensor, labels: Tensor, done: float) -> Tensor:
            noisy = (images + spec.noise * torch.randn_like(images)).clamp(0, 1)
            return F.mse_loss(autoencoder(noisy), images)

        epochs = epochs_for(budget, spec.autoencoder_epochs, len(data))
        training = Training(stage, seed, epochs, spec.batch_size, spec.autoencoder_rate)
        train_module(autoencoder, step, data, training, progress)


def jensen_shannon(first: Tensor, second: Tensor) -> Tensor:
    """Return the Jensen–Shannon divergence [N], in nats, between the softmaxes of two sets of logits [N,K]."""
    p, q = first.log_softmax(1), second.log_softmax(1)
    middle = torch.logaddexp(p, q) - math.log(2)
    return ((p.exp() * (p - middle)).sum(1) + (q.exp() * (q - middle)).sum(1)) / 2


def detectors(spec: MagNetSpec) -> tuple[str, ...]:
    """Return the names of MagNet's detectors; those by divergence are for colour images."""
    return ("l2", "l1", *(TEMPERATURES if spec.shape[0] > 1 else ()))
