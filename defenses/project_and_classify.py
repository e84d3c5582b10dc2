"""The base of INC and Defense-GAN: project an input on the range of a generator, then classify the projection."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from manifold_bench.defenses.base import Defense, DefenseSpec
from manifold_bench.defenses.generative_model import GenerativeModel
from manifold_bench.defenses.projection_gradients import BackwardImplicit, LinearSolve, straight_through
from manifold_bench.defenses.solvers import AdamSolver, MomentumSolver, QuasiNewtonSolver, best_start
from manifold_bench.defenses.undefended import Undefended, UndefendedSpec
from manifold_bench.defenses.variational_autoencoder import (
    VariationalAutoencoder,
    VariationalAutoencoderSettings,
    VariationalAutoencoderSpec,
)
from manifold_bench.defenses.wasserstein_gan import WassersteinGAN, WassersteinGANSettings, WassersteinGANSpec


def with_default_tag(**named: str) -> BeforeValidator:
    """Return a validator that adds this key and value to a table of a matrix file that leaves the key out."""
    return BeforeValidator(lambda value: named | value if isinstance(value, dict) else value)


AnyGenerator = Annotated[VariationalAutoencoderSettings | WassersteinGANSettings, Field(discriminator="model")]
GeneratorSettings = Annotated[AnyGenerator, with_default_tag(model="vae")]
AnySolver = Annotated[
    MomentumSolver | AdamSolver | QuasiNewtonSolver, Field(discriminator="method"), with_default_tag(method="momentum")
]


def generative_model(spec: DefenseSpec, settings: GeneratorSettings) -> GenerativeModel:
    """Return the generative model with these settings for the images of a defense, with initial weights."""
    shape, classes = spec.shape, spec.num_classes
    if isinstance(settings, WassersteinGANSettings):
        return WassersteinGAN(WassersteinGANSpec(shape=shape, num_classes=classes, settings=settings))
    return VariationalAutoencoder(VariationalAutoencoderSpec(shape=shape, num_classes=classes, settings=settings))


@dataclass(frozen=True, kw_only=True)
class ProjectAndClassifySpec(DefenseSpec):
    """Parameters of `ProjectAndClassify`.

    generator: generative model on whose range inputs are projected (`model = "vae"` or "wgan-gp", and its settings).

    solver: search for the latent (`method = "momentum"`, the default, "adam" or "l-bfgs", and its settings). seed: seed
    of the starts, which are the same for every input.
    """

    generator: GeneratorSettings = field(default_factory=VariationalAutoencoderSettings)
    solver: AnySolver = field(default_factory=MomentumSolver)
    seed: int = 0


class ProjectAndClassify(Defense):
    """The base of defenses that answer C(G(z*(x))), z*(x) = argmin_z ‖G(z) − x‖².

    Gradient modes of the projection are `identity` (BPDA), `unrolled` through the last solver steps, and `gauss-newton`
    and `implicit` by the implicit function theorem (`defenses.projection_gradients.BackwardImplicit`).
    """

    family: ClassVar[str] = "projection"
    parts: ClassVar[tuple[str, ...]] = ("generator", "classifier")
    spec: ProjectAndClassifySpec

    def __init__(self, spec: ProjectAndClassifySpec) -> None:
        super().__init__(spec)
        self.generator = generative_model(spec, spec.generator)
        self.classifier: Defense = self.own_classifier()

    def own_classifier(self) -> Defense:
        """Return the classifier C of this defense, with initial weights."""
        return Undefended(UndefendedSpec(shape=self.spec.shape, num_classes=self.spec.num_classes))

    @property
    def gradient_modes(self) -> tuple[str, ...]:
        return ("identity", "unrolled", "gauss-newton", "implicit")

    @property
    def eta(self) -> Tensor:
        """The largest accepted L2 distance between an image and its projection: infinite, nothing is rejected."""
        return torch.tensor(torch.inf)

    @property
    def inference_steps(self) -> int:
        return self.spec.solver.passes

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of images x [N,C,H,W] by the full inversion, with the identity as its gradient."""
        return self.answer(x, self.projected(x, self.gradient_modes[0], self.invert(x))[0])

    def answer(self, x: Tensor, projected: Tensor) -> Tensor:
        """Return logits for images x with these projections, both [N,C,H,W]."""
        return self.classifier(projected)

    def starts(self, x: Tensor) -> Tensor:
        """Return the R starts of the search for each of the images x [N,C,H,W], [N,R,k]."""
        return self.from_encoder(x, self.spec.solver.start(len(x), self.generator.latent, self.spec.seed, x))

    def from_encoder(self, x: Tensor, starts: Tensor) -> Tensor:
        """Return starts [N,R,k] of the search for images x [N,C,H,W].

        The encoder's latent of x replaces the first start of each, unless `solver.origin` is `prior`.
        """
        if self.spec.solver.origin == "prior":
            return starts
        with torch.no_grad():
            return torch.cat([self.generator.encode(x)[:, None], starts[:, 1:]], dim=1)

    def invert(self, x: Tensor, start: Tensor | None = None, steps: int | None = None) -> Tensor:
        """Return the latents [N,R,k] that the solver reaches, by default with all steps and from its own starts."""
        solver = self.spec.solver
        start = self.starts(x) if start is None else start
        return solver.solve(self.generator, x, start, solver.steps if steps is None else steps)

    def inverter(self, x: Tensor) -> Tensor:
        """Return z*(x): images [N,C,H,W] → latents [N,k]."""
        with torch.no_grad():
            return best_start(self.generator, x, self.invert(x))[0]

    def attack_forward(self, x: Tensor, gradient: str, start: Tensor | None, inner_steps: int) -> tuple[Tensor, Tensor]:
        """See `Defense.attack_forward`; `unrolled` differentiates the last `inner_steps` solver steps.

        A whole search that is unrolled (`Solver.unrolls_whole`) begins at its own starts, whatever `start` is.
        """
        if gradient == "unrolled" and self.spec.solver.unrolls_whole(inner_steps):
            latents = self.attacked_starts(x)
        elif start is None:
            latents = self.invert(x, self.attacked_starts(x))
        else:
            latents = start if gradient == "unrolled" else self.invert(x, start, inner_steps)
        projected, z = self.projected(x, gradient, latents, inner_steps)
        return self.answer(x, projected), z[:, None]

    def projected(self, x: Tensor, gradient: str, latents: Tensor, steps: int = 0) -> tuple[Tensor, Tensor]:
        """Return G(z*) [N,C,H,W], differentiable by that mode, and z* [N,k], the best of latents [N,R,k].

        steps: number of solver steps that `unrolled` takes from these latents and differentiates.
        """
        if gradient == "unrolled":
            solver = self.spec.solver.unrolled(steps)
            reached = solver.solve(self.generator, x, latents, steps, unroll=True)
            with torch.enable_grad():
                z, nearest = best_start(self.generator, x, reached)
            return nearest, z.detach()
        with torch.no_grad():
            z, nearest = best_start(self.generator, x, latents)
        if gradient == "identity":
            return straight_through(x, nearest), z
        return BackwardImplicit.apply(x, nearest, self.generator, z, LinearSolve(curvature=gradient == "implicit")), z

    def attacked_starts(self, x: Tensor) -> Tensor:
        """Return the starts of searches in an attack, [N,R,k]: those of the deployed search."""
        return self.starts(x)

    def perceived(self, x: Tensor) -> Tensor:
        """Return G(z*(x)), [N,C,H,W]."""
        with torch.no_grad():
            return best_start(self.generator, x, self.invert(x))[1]
