"""Invert and classify: Ilyas et al. 2017, "The Robust Manifold Defense"."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor
from torch.nn import functional as F

from defenses.base import Defense, DefenseSpec, LabelledImages, Progress, append_reject_score
from defenses.calibration import HeldOutScores
from defenses.generators import DeconvolutionalGenerator
from defenses.networks import StridedCNN
from defenses.projection import BackwardIdentity, MomentumSolver, best_start
from defenses.training import accuracy, epochs_for, initialise, train_module
from defenses.undefended import fit_classifier


@dataclass(frozen=True, kw_only=True)
class InvertAndClassifySpec(DefenseSpec):
    """latent, generator_width: of the generator. solver: how it is inverted.

    rejection_rate: η is such that this share of clean validation images lies further from their projections; without
    one η is infinite and nothing is rejected. seed: of the starting points. generator_*, epochs, …: the trainings of
    the generator and of the classifier.
    """

    latent: Annotated[int, Ge(1)] = 32
    generator_width: Annotated[int, Ge(1)] = 8
    solver: MomentumSolver = field(default_factory=MomentumSolver)
    rejection_rate: Annotated[float, Gt(0), Lt(1)] | None = field(default=0.01, metadata={"deployment": True})
    seed: int = 0
    generator_epochs: Annotated[int, Ge(1)] = 40
    generator_rate: Annotated[float, Gt(0)] = 2e-3
    pixel_variance: Annotated[float, Gt(0)] = 0.05
    width: Annotated[int, Ge(1)] = 32
    hidden: Annotated[int, Ge(1)] = 256
    epochs: Annotated[int, Ge(1)] = 12
    batch_size: Annotated[int, Ge(1)] = 128
    rate: Annotated[float, Gt(0)] = 2e-3
    calibration_images: Annotated[int, Ge(1)] = 1000


class InvertAndClassify(Defense):
    """z*(x) = argmin_z ‖G(z) − x‖²; rejects where ‖G(z*) − x‖₂ > η, else answers C(G(z*)) (their algorithm 1).

    The classifier is trained on natural images, as `undefended` is. The generator is the decoder of a variational
    autoencoder with that architecture. Backward modes: `identity` through the projection (BPDA), or `unrolled`
    through the last solver steps. The distance has its exact gradient in both: at the optimum the derivative of
    min_z ‖G(z) − x‖ is (x − G(z*)) / ‖x − G(z*)‖, z* held fixed (envelope theorem).
    """

    Spec: ClassVar = InvertAndClassifySpec
    family: ClassVar[str] = "projection"
    spec: InvertAndClassifySpec
    version: ClassVar[int] = 2

    def __init__(self, spec: InvertAndClassifySpec) -> None:
        super().__init__(spec)
        self.classifier: StridedCNN = StridedCNN(spec.shape, spec.num_classes, spec.width, spec.hidden)
        self.generator = DeconvolutionalGenerator(spec.shape, spec.latent, spec.generator_width)
        self.held_out = HeldOutScores(1)

    @property
    def rejects(self) -> bool:
        return self.spec.rejection_rate is not None

    @property
    def eta(self) -> Tensor:
        """η: the largest L2 distance to its projection that an image may have; infinite where nothing is rejected."""
        return (
            self.held_out.thresholds([self.spec.rejection_rate or 0.0])[0] if self.rejects else torch.tensor(torch.inf)
        )

    @property
    def gradient_modes(self) -> tuple[str, ...]:
        return ("identity", "unrolled")

    @property
    def inference_steps(self) -> int:
        return self.spec.solver.steps

    def forward(self, x: Tensor) -> Tensor:
        return self.attack_forward(x, self.gradient_modes[0], None, 0)[0]

    def invert(self, x: Tensor, start: Tensor | None = None, steps: int | None = None) -> Tensor:
        """Latents [N,R,k] of every start, by the full solver from its own starts where none are given."""
        solver = self.spec.solver
        if start is None:
            start = solver.start(len(x), self.spec.latent, self.spec.seed, x)
        return solver.solve(self.generator, x, start, solver.steps if steps is None else steps)

    def attack_forward(self, x: Tensor, gradient: str, start: Tensor | None, inner_steps: int) -> tuple[Tensor, Tensor]:
        """See `Defense.attack_forward`. `unrolled` goes through `inner_steps` solver steps."""
        if gradient == "unrolled":
            latents = start if start is not None else self.invert(x)
            reached = self.spec.solver.solve(self.generator, x, latents, inner_steps, unroll=True)
            with torch.enable_grad():
                _, projected = best_start(self.generator, x, reached)
            latents = reached.detach()
        else:
            latents = self.invert(x, start, None if start is None else inner_steps)
            with torch.no_grad():
                _, nearest = best_start(self.generator, x, latents)
            projected = BackwardIdentity.apply(x, nearest)
        logits = self.classifier(projected)
        if self.rejects:
            distance = (x - projected.detach()).flatten(1).norm(dim=1)
            logits = append_reject_score(logits, distance / self.eta - 1)
        return logits, latents

    def perceived(self, x: Tensor) -> Tensor:
        """G(z*(x))."""
        with torch.no_grad():
            return best_start(self.generator, x, self.invert(x))[1]

    def fit(
        self, train: LabelledImages, validation: LabelledImages, budget: float, seed: int, progress: Progress
    ) -> dict[str, float]:
        spec = self.spec
        fit_classifier(
            self.classifier, train, validation, seed=seed, progress=progress,
            epochs=epochs_for(budget, spec.epochs, len(train)), batch_size=spec.batch_size, rate=spec.rate,
        )  # fmt: skip
        self.fit_generator(train, budget, seed, progress)
        some = validation.images[: spec.calibration_images].to(self.held_out.ordered.device)
        distances = torch.cat([(self.perceived(x) - x).flatten(1).norm(dim=1) for x in some.split(256)])
        self.held_out.keep(distances[:, None])
        judged = LabelledImages(validation.images[:500], validation.labels[:500])
        return {
            "validation_accuracy_of_classifier": accuracy(self.classifier, validation),
            "validation_accuracy_500_images": accuracy(self, judged),
            "validation_median_distance_to_range": float(distances.median()),
            "eta": float(self.eta),
        }

    def fit_generator(self, data: LabelledImages, budget: float, seed: int, progress: Progress) -> None:
        """Trains the generator as the decoder of a Gaussian VAE; its encoder is not kept."""
        spec = self.spec
        device = self.held_out.ordered.device
        encoder = StridedCNN(spec.shape, 2 * spec.latent, spec.width, spec.hidden).to(device)
        pair = torch.nn.ModuleDict({"encoder": encoder, "decoder": self.generator})
        initialise(pair, seed)

        def step(images: Tensor, labels: Tensor, done: float) -> Tensor:
            mean, log_variance = encoder(images).chunk(2, dim=1)
            log_variance = log_variance.clamp(-10, 10)
            z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
            error = F.mse_loss(self.generator(z), images, reduction="sum") / (2 * spec.pixel_variance)
            divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum()
            return (error + divergence) / len(images)

        train_module(
            pair, step, data, stage="generator", epochs=epochs_for(budget, spec.generator_epochs, len(data)),
            batch_size=spec.batch_size, rate=spec.generator_rate, seed=seed, progress=progress,
        )  # fmt: skip
