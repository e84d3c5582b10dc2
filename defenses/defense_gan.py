"""Defense-GAN (Samangouei, Kabkab and Chellappa 2018, "Protecting Classifiers … Using Generative Models")."""

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
    with_default_tag,
)
from manifold_bench.defenses.solvers import MomentumSolver
from manifold_bench.defenses.undefended import Undefended, UndefendedSpec
from manifold_bench.defenses.wasserstein_gan import WassersteinGANSettings

PAPER = MomentumSolver(steps=200, rate=10.0, momentum=0.7, drop=0.8, starts=10, spread=128**-0.5)
"""The paper's search: L = 200 steps at rate 10, and rate 1 after 0.8 L, from R = 10 starts z ~ N(0, I/128)."""


@dataclass(frozen=True, kw_only=True)
class DefenseGANSpec(ProjectAndClassifySpec):
    """Parameters of `DefenseGAN`.

    generator: generative model and its settings; by default the paper's WGAN-GP. solver: search for the latent and
    its settings; by default the paper's, R starts of L steps. network: the classifier, `strided` or
    the letter of one of the paper's.
    """

    generator: Annotated[AnyGenerator, with_default_tag(model="wgan-gp")] = field(
        default_factory=WassersteinGANSettings
    )
    solver: AnySolver = PAPER
    network: Literal["strided"] | Letter = "A"


class DefenseGAN(ProjectAndClassify):
    """Classifies the best of several projections on a GAN's range, from random starts.

    It answers C(G(z*)), where z* = argmin over z of ‖G(z) − x‖₂²/d is searched by R descents of L steps from random
    starts z ~ N(0, I), which are new for every answer; the best of the R ends counts (d: number of values of an image).

    The random numbers of an input are seeded by one draw and by its pixels, so that they do not depend on its batch.
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
        """Return the labels of `forward`, with ‖G(z*) − x‖₂ as score, by which section 4.3 detects attacks."""
        projected = self.perceived(x)
        labels = self.answer(x, projected).argmax(1)
        return Verdict(labels, torch.zeros_like(labels, dtype=torch.bool), (x - projected).flatten(1).norm(dim=1))

    @property
    def attacked_steps(self) -> int:
        return self.spec.solver.steps

    def attacked_starts(self, x: Tensor) -> Tensor:
        """Return one random start [N,1,k] in place of R: attackers average over searches, each from another start."""
        return self.starts(x)[:, :1]
