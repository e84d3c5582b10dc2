"""Enhanced invert and classify: Ilyas et al. 2017, "The Robust Manifold Defense", and its robust training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt
from torch import Tensor
from torch.nn import functional as F

from manifold_bench.attacks.lagrangian import Descent, overpowered_pairs
from manifold_bench.defenses.base import Defense, DefenseSpec, LabelledImages, Progress, Settings
from manifold_bench.defenses.invert_and_classify import InvertAndClassify, InvertAndClassifySpec
from manifold_bench.defenses.networks import StridedCNN
from manifold_bench.defenses.pgd_training import PGDTraining, PGDTrainingSpec
from manifold_bench.defenses.project_and_classify import GeneratorSettings, generative_model
from manifold_bench.defenses.training import Training, accuracy, batches_of, device_of, epochs_for, train_module
from manifold_bench.defenses.variational_autoencoder import VariationalAutoencoderSettings


@dataclass(frozen=True, kw_only=True)
class RobustManifoldSettings(Settings):
    """eta: L2 distance within which images of the range are to be classified alike. weight: w, of that in the loss.

    pairs: how many pairs of latents are attacked at a time; every: steps of the training from one such attack to the
    next; attack_steps, attack_rate, confidence: see `overpowered_pairs`. The reference code has 500 steps every 20
    steps of the training and w = 2 on CelebA, w = .01 every 5 epochs on MNIST.
    start_*: the L2 PGD training that it begins with, in steps of 2 eps / steps (the paper: 1.5 and 40). width, hidden:
    size of the network. epochs, batch_size, rate: of the training (Adam, one cycle).
    """

    eta: Annotated[float, Gt(0)] = 1.5
    weight: Annotated[float, Ge(0)] = 0.1
    pairs: Annotated[int, Ge(1)] = 64
    every: Annotated[int, Ge(1)] = 20
    attack_steps: Annotated[int, Ge(1)] = 60
    attack_rate: Annotated[float, Gt(0)] = 0.1
    confidence: Annotated[float, Ge(0)] = 4.0
    start_eps: Annotated[float, Gt(0)] = 1.5
    start_steps: Annotated[int, Ge(1)] = 10
    start_epochs: Annotated[int, Ge(1)] = 3
    width: Annotated[int, Ge(1)] = 32
    hidden: Annotated[int, Ge(1)] = 256
    epochs: Annotated[int, Ge(1)] = 2
    batch_size: Annotated[int, Ge(1)] = 128
    rate: Annotated[float, Gt(0)] = 3e-4


@dataclass(frozen=True, kw_only=True)
class RobustManifoldSpec(DefenseSpec):
    """generator: whose range the pairs come from. settings: of the training."""

    generator: GeneratorSettings
    settings: RobustManifoldSettings


class RobustManifoldTraining(Defense):
    """The classifier of Enhanced INC (their section 6).

    min_C E CE(C(x), y) + w · sup over z, z′ with ‖G(z) − G(z′)‖₂ ≤ η of CE(C(G z), C(G z′)) + CE(C(G z′), C(G z)),
    from a classifier that L2 PGD training made. The supremum is the overpowered attack on pairs from the prior. What it
    finds counts until the next attack, and only where the pair is within η and, at that moment, classified differently
    (the reference code lets others in).
    """

    Spec: ClassVar = RobustManifoldSpec
    family: ClassVar[str] = "adversarial training"
    parts: ClassVar = ("generator", "start")
    spec: RobustManifoldSpec

    def __init__(self, spec: RobustManifoldSpec) -> None:
        super().__init__(spec)
        settings = spec.settings
        self.generator = generative_model(spec, spec.generator)
        self.start = l2_trained(spec, settings)
        self.network = StridedCNN(spec.shape, spec.num_classes, settings.width, settings.hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def fit(
        self, train: LabelledImages, validation: LabelledImages, budget: float, seed: int, progress: Progress
    ) -> dict[str, float]:
        settings = self.spec.settings
        self.network.load_state_dict(self.start.network.state_dict())
        epochs, batches = epochs_for(budget, settings.epochs, len(train)), batches_of(len(train), settings.batch_size)
        found = (train.images[:0], train.images[:0])

        def step(images: Tensor, labels: Tensor, done: float) -> Tensor:
            nonlocal found
            if round(done * epochs * batches) % batches % settings.every == 0:  # also at the beginning of each epoch
                found = self.found_pairs(settings.pairs)
            return F.cross_entropy(self.network(images), labels) + settings.weight * self.disagreement(*found)

        def figures() -> dict[str, float]:
            return {"pairs": len(found[0]), "validation_accuracy": accuracy(self.network, validation)}

        stage = "robust-manifold-training"
        training = Training(stage, seed, epochs, settings.batch_size, settings.rate, mixed_precision=True)
        train_module(self.network, step, train, training, progress, figures)
        self.eval()
        return {
            "validation_accuracy": accuracy(self.network, validation),
            "validation_accuracy_before": accuracy(self.start, validation),
        }

    def found_pairs(self, n: int) -> tuple[Tensor, Tensor]:
        """Images [M,C,H,W] and as many others that the overpowered attack finds from n random pairs of latents."""
        settings = self.spec.settings
        device = device_of(self)
        z, other = torch.randn(2, n, self.generator.latent).to(device)
        self.network.eval().requires_grad_(False)
        with torch.autocast(device.type, enabled=False):  # η and classes are as the deployed classifier sees them
            descent, confidence = Descent(settings.attack_steps, settings.attack_rate), settings.confidence
            pairs = overpowered_pairs(self.generator, self.network, (z, other), settings.eta, descent, confidence)
            with torch.no_grad():
                images, others = self.generator(pairs.z[pairs.found]), self.generator(pairs.other[pairs.found])
        self.network.train().requires_grad_(True)
        return images, others

    def disagreement(self, images: Tensor, others: Tensor) -> Tensor:
        """Mean symmetric cross-entropy between the answers to images and others, of those answered differently; 0
        where all are answered alike."""
        if not len(images):
            return images.new_zeros(())
        first, second = self.network(torch.cat([images, others])).float().log_softmax(1).chunk(2)
        differ = first.argmax(1) != second.argmax(1)
        symmetric = -(first.exp() * second + second.exp() * first).sum(1)
        return symmetric[differ].sum() / max(1, int(differ.sum()))


def l2_trained(spec: DefenseSpec, settings: RobustManifoldSettings) -> PGDTraining:
    """What the robust manifold training begins with, with initial weights."""
    return PGDTraining(
        PGDTrainingSpec(
            shape=spec.shape,
            num_classes=spec.num_classes,
            width=settings.width,
            hidden=settings.hidden,
            norm="l2",
            eps=settings.start_eps,
            steps=settings.start_steps,
            step_size=2 * settings.start_eps / settings.start_steps,
            epochs=settings.start_epochs,
            mixed_precision=True,
        )
    )


@dataclass(frozen=True, kw_only=True)
class EnhancedInvertAndClassifySpec(InvertAndClassifySpec):
    """training: the classifier's training. retrained: whether it had the robust manifold training, or only the L2 PGD
    training that this begins with.

    project: whether inputs are projected; without it the classifier answers alone, and nothing is rejected."""

    generator: GeneratorSettings = field(default=VariationalAutoencoderSettings(decoder="dense", latent=20))
    training: RobustManifoldSettings = field(default_factory=RobustManifoldSettings)
    retrained: bool = True
    project: bool = True


class EnhancedInvertAndClassify(InvertAndClassify):
    """INC with a classifier that was trained to be robust on the generator's range.

    Images of the range within η of each other that are classified differently are what is left to attack INC with.
    """

    paper = "ilyas2017"
    Spec: ClassVar = EnhancedInvertAndClassifySpec
    spec: EnhancedInvertAndClassifySpec

    def own_classifier(self) -> Defense:
        spec = self.spec
        if not spec.retrained:
            return l2_trained(spec, spec.training)
        return RobustManifoldTraining(
            RobustManifoldSpec(
                shape=spec.shape, num_classes=spec.num_classes, generator=spec.generator, settings=spec.training
            )
        )

    @property
    def rejects(self) -> bool:
        return self.spec.project and super().rejects

    @property
    def gradient_modes(self) -> tuple[str, ...]:
        return super().gradient_modes if self.spec.project else ("default",)

    @property
    def inference_steps(self) -> int:
        return super().inference_steps if self.spec.project else 0

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.spec.project else self.classifier(x)

    def perceived(self, x: Tensor) -> Tensor:
        return super().perceived(x) if self.spec.project else x
