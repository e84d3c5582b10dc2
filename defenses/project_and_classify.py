"""Project an input on the range of a generator, then classify: what INC and Defense-GAN have in common."""

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


def usually(**named: str) -> BeforeValidator:
    """A table of a matrix file that leaves this key out means this value."""
    return BeforeValidator(lambda value: named | value if isinstance(value, dict) else value)


AnyGenerator = Annotated[VariationalAutoencoderSettings | WassersteinGANSettings, Field(discriminator="model")]
GeneratorSettings = Annotated[AnyGenerator, usually(model="vae")]
AnySolver = Annotated[
    MomentumSolver | AdamSolver | QuasiNewtonSolver, Field(discriminator="method"), usually(method="momentum")
]


def generative_model(spec: DefenseSpec, settings: GeneratorSettings) -> GenerativeModel:
    """The model of those settings, for the same images as the defense's, with initial weights."""
    shape, classes = spec.shape, spec.num_classes
    if isinstance(settings, WassersteinGANSettings):
        return WassersteinGAN(WassersteinGANSpec(shape=shape, num_classes=classes, settings=settings))
    return VariationalAutoencoder(VariationalAutoencoderSpec(shape=shape, num_classes=classes, settings=settings))


@dataclass(frozen=True, kw_only=True)
class ProjectAndClassifySpec(DefenseSpec):
    """generator: the model on whose range is projected (`model = "vae"` or "wgan-gp", and its settings).

    solver: the search for the latent (`method = "momentum"`, "adam" or "l-bfgs", and its settings; momentum where none
    is named). seed: seed of starts that are the same for every input.
    """

    generator: GeneratorSettings = field(default_factory=VariationalAutoencoderSettings)
    solver: AnySolver = field(default_factory=MomentumSolver)
    seed: int = 0


class ProjectAndClassify(Defense):
    """C(G(z*(x))), z*(x) = argmin_z ‖G(z) − x‖².

    Backward modes through the projection: `identity` (BPDA), `unrolled` through the last solver steps, `gauss-newton`
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
        """The classifier of this defense, with initial weights."""
        return Undefended(UndefendedSpec(shape=self.spec.shape, num_classes=self.spec.num_classes))

    @property
    def gradient_modes(self) -> tuple[str, ...]:
        return ("identity", "unrolled", "gauss-newton", "implicit")

    @property
    def eta(self) -> Tensor:
        """The largest L2 distance to its projection that an image may have: infinite, nothing is rejected."""
        return torch.tensor(torch.inf)

    @property
    def inference_steps(self) -> int:
        return self.spec.solver.passes

    def forward(self, x: Tensor) -> Tensor:
        """The full inversion, with the identity behind it as gradient."""
        return self.answer(x, self.projected(x, self.gradient_modes[0], self.invert(x))[0])

    def answer(self, x: Tensor, projected: Tensor) -> Tensor:
        """Logits for images [N,C,H,W] with these projections."""
        return self.classifier(projected)

    def starts(self, x: Tensor) -> Tensor:
        """Where the search for images x [N,C,H,W] begins, [N,R,k]."""
        return self.from_encoder(x, self.spec.solver.start(len(x), self.generator.latent, self.spec.seed, x))

    def from_encoder(self, x: Tensor, starts: Tensor) -> Tensor:
        """The same starts [N,R,k], the first in its place by the encoder where the solver says so."""
        if self.spec.solver.origin == "prior":
            return starts
        with torch.no_grad():
            return torch.cat([self.generator.encode(x)[:, None], starts[:, 1:]], dim=1)

    def invert(self, x: Tensor, start: Tensor | None = None, steps: int | None = None) -> Tensor:
        """Latents [N,R,k] of every start that went to the end, by the full solver from its own starts by default."""
        solver = self.spec.solver
        start = self.starts(x) if start is None else start
        return solver.solve(self.generator, x, start, solver.steps if steps is None else steps)

    def inverter(self, x: Tensor) -> Tensor:
        """z*(x): images [N,C,H,W] → latents [N,k]."""
        with torch.no_grad():
            return best_start(self.generator, x, self.invert(x))[0]

    def attack_forward(self, x: Tensor, gradient: str, start: Tensor | None, inner_steps: int) -> tuple[Tensor, Tensor]:
        """See `Defense.attack_forward`. `unrolled` differentiates `inner_steps` solver steps; the best start counts.

        A whole search (`Solver.unrolls_whole`) begins at its own starts, whatever `start` is.
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
        """G(z*) [N,C,H,W], differentiable by that mode, and z* [N,k], the best of latents [N,R,k].

        steps: that `unrolled` goes through, from there on.
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
        """Where a search that an attack sees begins, [N,R,k]: where the deployed one does."""
        return self.starts(x)

    def perceived(self, x: Tensor) -> Tensor:
        """G(z*(x))."""
        with torch.no_grad():
            return best_start(self.generator, x, self.invert(x))[1]
