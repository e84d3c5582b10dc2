"""Detectors of the Adversarial Robustness Toolbox (ART) as defenses, found by the names of ART's classes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from art.defences.detector import evasion
from art.defences.detector.evasion import EvasionDetector
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from manifold_bench.attacks.adapter import seeded
from manifold_bench.attacks.gradient import FGSM
from manifold_bench.attacks.target import Target
from manifold_bench.defenses.base import Defense, DefenseSpec, LabelledImages, Progress, append_reject_score
from manifold_bench.defenses.calibration import selective_figures
from manifold_bench.defenses.networks import StridedCNN
from manifold_bench.defenses.training import epochs_for, in_batches, initialise
from manifold_bench.defenses.undefended import Undefended, UndefendedSpec


@dataclass(frozen=True, kw_only=True)
class BinaryDetectorSpec(DefenseSpec):
    """Parameters of `BinaryInputDetector` and `BinaryActivationDetector`.

    images: number of training images that the detector learns from, as they are and attacked by FGSM. eps: L∞ size
    of the attack on the classifier. epochs: number of epochs of the training by ART.
    """

    images: Annotated[int, Ge(1)] = 20_000
    eps: Annotated[float, Gt(0), Le(1)] = 0.1
    epochs: Annotated[int, Ge(1)] = 3


@dataclass(frozen=True, kw_only=True)
class SubsetScanningSpec(DefenseSpec):
    """Parameters of `SubsetScanningDetector`.

    images: number of clean training images that ART compares with. scoring_function: as in ART.
    """

    images: Annotated[int, Ge(1)] = 200
    scoring_function: Literal["BerkJones", "HigherCriticism", "KolmarovSmirnov"] = "BerkJones"


class ArtDetector(Defense):
    """The base of defenses that answer as `undefended` does, and reject what a detector of ART finds adversarial.

    That is where the detector's `excess` is above 0.
    """

    paper = "nicolae2018"
    family: ClassVar[str] = "detection"
    rejects: ClassVar[bool] = True
    parts: ClassVar = ("classifier",)

    def __init__(self, spec: DefenseSpec) -> None:
        super().__init__(spec)
        self.classifier: Undefended = Undefended(UndefendedSpec(shape=spec.shape, num_classes=spec.num_classes))

    @property
    def network(self) -> StridedCNN:
        """The classifier's network."""
        assert isinstance(self.classifier.network, StridedCNN)
        return self.classifier.network

    def forward(self, x: Tensor) -> Tensor:
        return append_reject_score(self.classifier(x), self.excess(x))

    @abstractmethod
    def excess(self, x: Tensor) -> Tensor:
        """Return by how much the score of images x [N,C,H,W] exceeds the detector's threshold, [N]."""

    @abstractmethod
    def detector_of_art(self) -> EvasionDetector:
        """Return ART's detector with what this defense has learnt."""

    def activations_of_art(self) -> PyTorchClassifier:
        """Return the classifier for ART; its layer 0 is the last hidden layer, and its layer 1 the logits."""
        model = nn.Sequential(Hidden(self.network), self.network.output)
        return as_art(model, self.spec.shape, self.num_classes)

    def figures(self, validation: LabelledImages) -> dict[str, float]:
        """Return figures of rejection for validation images."""
        device = next(self.parameters()).device
        return selective_figures(in_batches(self.eval(), validation.images, device), validation.labels)


class BinaryInputDetector(ArtDetector):
    """ART's BinaryInputDetector: a network of two outputs that learns to tell attacked images from clean ones.

    An image is rejected where the network's output for attacked images is the larger one. The gradient is exact.
    """

    Spec: ClassVar = BinaryDetectorSpec
    spec: BinaryDetectorSpec

    def __init__(self, spec: BinaryDetectorSpec) -> None:
        super().__init__(spec)
        self.detector: nn.Module = StridedCNN(spec.shape, 2, 16, 64)

    def observed(self, x: Tensor) -> Tensor:
        """Return what the detector gets of images x [N,C,H,W]: the images."""
        return x

    def excess(self, x: Tensor) -> Tensor:
        clean, attacked = self.detector(self.observed(x)).unbind(1)
        return attacked - clean

    def detector_of_art(self) -> EvasionDetector:
        return evasion.BinaryInputDetector(as_art(self.detector, self.spec.shape, 2))

    def fit(
        self, train: LabelledImages, validation: LabelledImages, budget: float, seed: int, progress: Progress
    ) -> dict[str, float]:
        spec, device = self.spec, next(self.parameters()).device
        initialise(self.detector, seed)
        self.eval()
        images, labels = (part[: spec.images] for part in (train.images, train.labels))
        parts = zip(images.split(1000), labels.split(1000), strict=True)
        found = [self.attacked(x.to(device), y.to(device)).cpu() for x, y in parts]
        x = torch.cat([images, *found]).numpy()
        y = np.repeat([0, 1], len(images))
        with seeded(seed):
            self.detector_of_art().fit(x, y, batch_size=128, nb_epochs=epochs_for(budget, spec.epochs, len(x)))
        return self.figures(validation)

    def attacked(self, x: Tensor, y: Tensor) -> Tensor:
        """Return FGSM's images for images x [N,C,H,W] with labels y [N]; it attacks the classifier alone."""
        return FGSM(part="classifier").run(Target(self, len(x)), x, y, self.spec.eps, seed=0)


class BinaryActivationDetector(BinaryInputDetector):
    """ART's BinaryActivationDetector: like its BinaryInputDetector, for the activations of the last hidden layer."""

    def __init__(self, spec: BinaryDetectorSpec) -> None:
        super().__init__(spec)
        width = self.network.output.in_features
        self.detector = nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, 2))

    def observed(self, x: Tensor) -> Tensor:
        """Return the activations of the classifier's last hidden layer for images x [N,C,H,W]."""
        return Hidden(self.network)(x)

    def detector_of_art(self) -> EvasionDetector:
        width = self.network.output.in_features
        return evasion.BinaryActivationDetector(self.activations_of_art(), as_art(self.detector, (width,), 2), 0)


class SubsetScanningDetector(ArtDetector):
    """ART's SubsetScanningDetector: scans the last hidden layer for a set of units with unusual activations.

    An image is rejected where the score of its most unusual set exceeds those of all clean training images that ART
    compares with. No gradient passes through the score, which depends on ranks alone: attacks by gradients see the
    classifier's, and what they leave is no evidence that the detector is hard to get past.
    """

    Spec: ClassVar = SubsetScanningSpec
    spec: SubsetScanningSpec
    background: Tensor

    def __init__(self, spec: SubsetScanningSpec) -> None:
        super().__init__(spec)
        self.register_buffer("background", torch.zeros(spec.images, *spec.shape))
        self.made: tuple[Tensor, EvasionDetector] | None = None
        """ART's detector, whose construction takes long, and the background that it was made for."""

    def excess(self, x: Tensor) -> Tensor:
        detector = self.detector_of_art()
        report, _ = detector.detect(x.detach().cpu().numpy())
        return torch.as_tensor(report["scores"] - detector.bgd_scores.max()).to(x)

    def detector_of_art(self) -> EvasionDetector:
        background = self.background.cpu()
        if self.made is None or not torch.equal(self.made[0], background):
            detector = evasion.SubsetScanningDetector(
                self.activations_of_art(), background.numpy(), 0, self.spec.scoring_function, verbose=False
            )
            self.made = background.clone(), detector
        return self.made[1]

    def fit(
        self, train: LabelledImages, validation: LabelledImages, budget: float, seed: int, progress: Progress
    ) -> dict[str, float]:
        if len(train) < self.spec.images:
            raise ValueError(f"images: {self.spec.images} is not allowed; there are {len(train)} training images")
        self.background = train.images[: self.spec.images].to(self.background)
        return self.figures(validation)


DETECTORS: Mapping[str, type[ArtDetector]] = {
    cls.__name__: cls for cls in (BinaryInputDetector, BinaryActivationDetector, SubsetScanningDetector)
}
"""Defenses by the names of ART's classes."""


class Hidden(nn.Module):
    """The activations of a network's last hidden layer, [N,F], which enter its layer `output`."""

    def __init__(self, network: StridedCNN) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        entering: list[Tensor] = []
        hook = self.network.output.register_forward_pre_hook(lambda layer, given: entering.append(given[0]))
        self.network(x)
        hook.remove()
        return entering[0]


def as_art(model: nn.Module, shape: tuple[int, ...], classes: int) -> PyTorchClassifier:
    """Return a network as a classifier of ART with an optimizer; it stays in the mode that it is in."""
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return PyTorchClassifier(model, nn.CrossEntropyLoss(), shape, classes, optimizer, device_type="cpu")
