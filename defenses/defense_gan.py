"""Defense-GAN: Samangouei, Kabkab and Chellappa 2018, "Protecting Classifiers against Adversarial Attacks Using
Generative Models"."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from manifold_bench.attacks.contract import Verdict
from manifold_bench.defenses.networks import Letter
from manifold_bench.defenses.project_and_classify import (
    AnyGenerator,
    AnySolver,
    ProjectAndClassify,
    ProjectAndClassifySpec,
    usually,
)
from manifold_bench.defenses.solvers import MomentumSolver
from manifold_bench.defenses.undefended import Undefended, UndefendedSpec
from manifold_bench.defenses.wasserstein_gan import WassersteinGANSettings

PAPER = MomentumSolver(steps=200, rate=10.0, momentum=0.7, drop=0.8, starts=10, spread=128**-0.5)
"""L = 200 steps at rate 10, a tenth of it from 0.8 L on, from R = 10 starts z ~ N(0, I/128)."""


@dataclass(frozen=True, kw_only=True)
class DefenseGANSpec(ProjectAndClassifySpec):
    """generator: the paper's WGAN-GP. solver: the paper's search, R starts of L steps. network: the classifier, of
    which the paper's have letters."""

    generator: Annotated[AnyGenerator, usually(model="wgan-gp")] = field(default_factory=WassersteinGANSettings)
    solver: AnySolver = PAPER
    network: Literal["strided"] | Letter = "A"


class DefenseGAN(ProjectAndClassify):
    """Classifies the best of several projections on a GAN's range, from random starts.

    C(G(z*)), z* the best of R descents; the starts are drawn anew for every answer.

    Each input's come from a generator seeded by that draw and its own pixels: they don't depend on its batch.
    """

    paper = "samangouei2018"
    Spec: ClassVar = DefenseGANSpec
    spec: DefenseGANSpec
    version: ClassVar[int] = 4
    randomized: ClassVar[bool] = True

    def own_classifier(self) -> Undefended:
        spec = self.spec
        return Undefended(UndefendedSpec(shape=spec.shape, num_classes=spec.num_classes, network=spec.network))

    def starts(self, x: Tensor) -> Tensor:
        seed = int(torch.randint(2**31, ()))
        return self.from_encoder(x, self.spec.solver.start_per_input(x, self.generator.latent, seed))

    def verdict(self, x: Tensor) -> Verdict:
        """Labels as `forward` has them; the score is the distance ‖G(z*) − x‖₂, by which attacks are to be detected
        (their section 4.3)."""
        projected = self.perceived(x)
        labels = self.answer(x, projected).argmax(1)
        return Verdict(labels, torch.zeros_like(labels, dtype=torch.bool), (x - projected).flatten(1).norm(dim=1))

    @property
    def attacked_steps(self) -> int:
        return self.spec.solver.steps

    def attacked_starts(self, x: Tensor) -> Tensor:
        """One random start instead of R: an attacker needs the mean over searches, and the judge asks the best one."""
        return self.starts(x)[:, :1]
