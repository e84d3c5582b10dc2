"""Enhanced invert and classify, and its robust training (Ilyas et al. 2017, "The Robust Manifold Defense")."""

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
    """Settings of `RobustManifoldTraining` and of its training.

    eta: L2 distance within which two images of the range should get the same answer. weight: weight w of that term.

    pairs: number of pairs of latents that are attacked at a time. every: number of training steps between two such
    attacks. attack_steps, attack_rate, confidence: parameters of `overpowered_pairs`. The reference code has 500 attack
    steps every 20 training steps and w = 2 on CelebA, and w = 0.01 every 5 epochs on MNIST.
    start_eps, start_steps, start_epochs: the L2 PGD training at the beginning, in steps of 2 eps / steps (the paper has
    eps 1.5 and 40 steps). width, hidden: size of the network. epochs, batch_size, rate: number of epochs, batch size
    and learning rate of the training (Adam, one cycle).
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
    """Parameters of `RobustManifoldTraining`.

    generator: settings of the generative model from whose range the pairs come. settings: of the training.
    """

    generator: GeneratorSettings
    settings: RobustManifoldSettings


class RobustManifoldTraining(Defense):
    """The classifier of Enhanced INC (section 6 of the paper).

    It minimises E CE(C(x), y) + w · sup over z, z′ with ‖G(z) − G(z′)‖₂ ≤ η of [CE(C(G z), C(G z′)) + CE(C(G z′),
    C(G z))], starting from a classifier that was trained by L2 PGD. The overpowered attack on pairs of latents from the
    prior finds the supremum. Its pairs are used until the next attack, and only those within η that the classifier
    currently classifies differently (the reference code uses others too).
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
        """Return the pairs of images, both [M,C,H,W], that the overpowered attack finds from n random pairs."""
        settings = self.spec.settings
        device = device_of(self)
        z, other = torch.randn(2, n, self.generator.latent).to(device)
        self.network.eval().requires_grad_(False)
        with torch.autocast(device.type, enabled=False):  # distances and classes as for the deployed classifier
            descent, confidence = Descent(settings.attack_steps, settings.attack_rate), settings.confidence
            pairs = overpowered_pairs(self.generator, self.network, (z, other), settings.eta, descent, confidence)
            with torch.no_grad():
                images, others = self.generator(pairs.z[pairs.found]), self.generator(pairs.other[pairs.found])
        self.network.train().requires_grad_(True)
        return images, others

    def disagreement(self, images: Tensor, others: Tensor) -> Tensor:
        """Return the mean symmetric cross-entropy of the answers to images and others, both [M,C,H,W].

        Only pairs with different answers count; without any it is 0.
        """
        if not len(images):
            return images.new_zeros(())
        first, second = self.network(torch.cat([images, others])).float().log_softmax(1).chunk(2)
        differ = first.argmax(1) != second.argmax(1)
        symmetric = -(first.exp() * second + second.exp() * first).sum(1)
        return symmetric[differ].sum() / max(1, int(differ.sum()))


def l2_trained(spec: DefenseSpec, settings: RobustManifoldSettings) -> PGDTraining:
    """Return the classifier that the robust manifold training starts from, with initial weights."""
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
    """Parameters of `EnhancedInvertAndClassify`.

    training: settings of the classifier's training. retrained: whether the classifier has the robust manifold
    training, or only the L2 PGD training at its beginning.

    project: whether inputs are projected; otherwise the classifier answers alone, and nothing is rejected.
    """

    generator: GeneratorSettings = field(default=VariationalAutoencoderSettings(decoder="dense", latent=20))
    training: RobustManifoldSettings = field(default_factory=RobustManifoldSettings)
    retrained: bool = True
    project: bool = True


class EnhancedInvertAndClassify(InvertAndClassify):
    """INC with a classifier that was trained to be robust on the generator's range.

    Pairs of images of the range within η that get different answers are the weakness of INC that this training removes:
    C minimises E CE(C(x), y) + w · sup over ‖G(z) − G(z′)‖₂ ≤ η of [CE(C(G z), C(G z′)) + CE(C(G z′), C(G z))], see
    `RobustManifoldTraining`.
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
