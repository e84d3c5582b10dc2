"""A classifier with a second network that detects adversarial images.

From Gong et al. 2017, "Adversarial and Clean Data Are Not Twins", after Metzen et al. 2017, "On Detecting Adversarial
Perturbations". Both were broken by Carlini and Wagner 2017, "Adversarial Examples Are Not Easily Detected".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Le, Lt, MinLen
from torch import Tensor
from torch.nn import functional as F

from manifold_bench.attacks.base import Attack
from manifold_bench.attacks.gradient import FGSM, PGD
from manifold_bench.attacks.target import Target
from manifold_bench.defenses.augmentation import shifted
from manifold_bench.defenses.base import LabelledImages, Progress, deployment
from manifold_bench.defenses.calibration import selective_figures
from manifold_bench.defenses.classifier import ClassifierSpec, fit_classifier
from manifold_bench.defenses.detector import Detector
from manifold_bench.defenses.networks import StridedCNN
from manifold_bench.defenses.training import Training, epochs_for, in_batches, initialise, train_module


@dataclass(frozen=True, kw_only=True)
class AuxiliaryDetectorSpec(ClassifierSpec):
    """Parameters of `AuxiliaryDetector`.

    eps: L∞ sizes of the adversarial images that the detector learns from. steps: number of PGD steps by which these are
    made.

    rejection_rate: share of clean validation images that the detector may reject. detector_epochs: number of epochs of
    the detector's training. epochs: number of epochs of the classifier's training. width: number of channels of the
    first convolution of both networks. hidden: number of units of their dense layer. batch_size: number of images in a
    batch of both trainings. rate: learning rate of both trainings.
    """

    eps: Annotated[tuple[Annotated[float, Gt(0), Le(1)], ...], MinLen(1)] = (0.05, 0.1, 0.2, 0.3)
    steps: Annotated[int, Ge(1)] = 10
    detector_epochs: Annotated[int, Ge(1)] = 4
    rejection_rate: Annotated[float, Gt(0), Lt(0.5)] = deployment(0.01)
    width: Annotated[int, Ge(1)] = 16
    hidden: Annotated[int, Ge(1)] = 64
    epochs: Annotated[int, Ge(1)] = 12
    rate: Annotated[float, Gt(0)] = 2e-3


class AuxiliaryDetector(Detector):
    """A plain classifier, with a second network that rejects what looks adversarial to it.

    forward: images [N,C,H,W] in [0,1] → logits [N,K+1], with rejection as one more class (Carlini and Wagner 2017,
    section 3.1). The reject score exceeds the largest logit by score/τ − 1. The score is the detector's logit minus its
    median over clean validation images, and a share `rejection_rate` of these have a score above τ. So τ is a threshold
    on the detector's probability, but without the sigmoid, whose gradient would vanish.

    The detector learns from clean images and as many adversarial ones. FGSM and PGD make these against the classifier
    alone, each batch at one of the sizes `eps`.
    """

    paper = "gong2017"
    Spec: ClassVar = AuxiliaryDetectorSpec
    detectors: ClassVar = ("adversarial",)
    spec: AuxiliaryDetectorSpec
    median: Tensor

    def __init__(self, spec: AuxiliaryDetectorSpec) -> None:
        super().__init__(spec, [spec.rejection_rate])
        self.classifier: StridedCNN = StridedCNN(spec.shape, spec.num_classes, spec.width, spec.hidden)
        self.detector = StridedCNN(spec.shape, 1, spec.width, spec.hidden)
        self.register_buffer("median", torch.tensor(0.0))

    def scores(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the classifier's logits, and the detector's logit minus that of the median clean image, [N,1]."""
        return self.classifier(x), self.detector(x) - self.median

    def fit(
        self, train: LabelledImages, validation: LabelledImages, budget: float, seed: int, progress: Progress
    ) -> dict[str, float]:
        spec = self.spec
        device = self.median.device
        training = Training("classifier", seed, epochs_for(budget, spec.epochs, len(train)), spec.batch_size, spec.rate)
        fit_classifier(self.classifier, train, validation, training, progress)
        self.fit_detector(train, budget, seed, progress)
        self.eval()
        logits = in_batches(self.detector, validation.images, device)
        self.median = logits.median().to(device)
        self.held_out.keep(logits - logits.median())
        answers = in_batches(self, validation.images, device)
        return selective_figures(answers, validation.labels) | self.detection_figures(validation)

    def fit_detector(self, data: LabelledImages, budget: float, seed: int, progress: Progress) -> None:
        """Train the detector in place by binary cross-entropy on clean and adversarial images, randomly shifted."""
        spec = self.spec
        initialise(self.detector, seed)
        most = spec.shape[-1] // 16
        attacks = self.training_attacks()

        def step(images: Tensor, labels: Tensor, done: float) -> Tensor:
            images = shifted(images, most)
            attack = attacks[int(torch.randint(len(attacks), ()))]
            eps = spec.eps[int(torch.randint(len(spec.eps), ()))]
            seed = int(torch.randint(2**31, ()))
            adversarial = attack.run(Target(self, len(images)), images, labels, eps, seed)
            found = self.detector(torch.cat([images, adversarial]))[:, 0]
            truth = torch.cat([torch.zeros_like(found[: len(images)]), torch.ones_like(found[len(images) :])])
            return F.binary_cross_entropy_with_logits(found, truth)

        self.classifier.requires_grad_(False)  # the attacks need gradients for the images alone
        epochs = epochs_for(budget, spec.detector_epochs, len(data))
        training = Training("detector", seed, epochs, spec.batch_size, spec.rate)
        train_module(self.detector, step, data, training, progress)
        self.classifier.requires_grad_(True)

    def training_attacks(self) -> tuple[Attack, ...]:
        """Return the attacks of the training; both attack the classifier alone, with all of their steps."""
        return FGSM(part="classifier"), PGD(part="classifier", steps=self.spec.steps)

    def detection_figures(self, validation: LabelledImages) -> dict[str, float]:
        """Return the share of adversarial images that are rejected, by attack and size, for 1,000 validation images."""
        device = self.median.device
        images, labels = validation.images[:1000].to(device), validation.labels[:1000].to(device)
        figures = {}
        for name, attack in zip(("fgsm", "pgd"), self.training_attacks(), strict=True):
            for eps in self.spec.eps:
                adversarial = attack.run(Target(self, len(images)), images, labels, eps, seed=0)
                rejected = in_batches(self, adversarial, device).argmax(1) == self.num_classes
                figures[f"validation_rejection_{name}_linf_{eps:g}"] = float(rejected.float().mean())
        return figures
