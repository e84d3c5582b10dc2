"""Analysis by synthesis (ABS): Schott, Rauber, Bethge and Brendel 2019, "Towards the First Adversarially Robust Neural
Network Model on MNIST" (https://arxiv.org/abs/1805.09190)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, cast

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from manifold_bench.defenses.base import Defense, DefenseSpec, LabelledImages, Progress, deployment
from manifold_bench.defenses.decoders import DenseDecoder
from manifold_bench.defenses.networks import StridedCNN
from manifold_bench.defenses.solvers import AdamSolver
from manifold_bench.defenses.training import Training, accuracy, device_of, epochs_for, initialise, train_module

CHECKED = 500
"""Number of validation images whose accuracy is computed after the training."""


@dataclass(frozen=True, kw_only=True)
class AnalysisBySynthesisSpec(DefenseSpec):
    """Parameters of `AnalysisBySynthesis`.

    latent: number of dimensions of each latent space. hidden: number of units of both hidden layers of each decoder.

    epochs, batch_size, rate: number of epochs, batch size and learning rate of the training of each model.
    samples: number of latents drawn from the prior among which each search starts at the best (the paper has 8,000).
    solver: settings of the search for the latent that starts there, by default the paper's.
    """

    latent: Annotated[int, Ge(1)] = 8
    hidden: Annotated[int, Ge(1)] = 128
    epochs: Annotated[int, Ge(1)] = 30
    batch_size: Annotated[int, Ge(1)] = 128
    rate: Annotated[float, Gt(0)] = 2e-3
    samples: Annotated[int, Ge(1)] = deployment(2000)
    solver: AdamSolver = field(default_factory=AdamSolver, metadata={"deployment": True})


class AnalysisBySynthesis(Defense):
    """Classifies by the class whose own variational autoencoder explains the image best (ABS).

    logit_c(x) = −min_z (‖x − G_c(z)‖² + ½ ‖z‖²), the largest log likelihood of class c up to constants. The minimum is
    sought from the best of many draws of the prior, the same for every image, by 50 steps of Adam. The paper divides by
    the number of pixels, which changes no answer.

    Gradient modes: `implicit`, by which d logit_c / dx = −2 (x − G_c(z*)), exact where the search has converged, since
    the derivative in z is zero there; and `unrolled`, through slow steps from the end of the search or, with as many as
    it has, through all of its own.
    """

    paper = "schott2019"
    Spec: ClassVar = AnalysisBySynthesisSpec
    family: ClassVar[str] = "projection"
    spec: AnalysisBySynthesisSpec
    prior: Tensor

    def __init__(self, spec: AnalysisBySynthesisSpec) -> None:
        super().__init__(spec)
        self.decoders = nn.ModuleList(
            DenseDecoder(spec.shape, spec.latent, spec.hidden) for _ in range(spec.num_classes)
        )
        prior = torch.randn(spec.samples, spec.latent, generator=torch.Generator().manual_seed(0))
        self.register_buffer("prior", prior, persistent=False)

    @property
    def gradient_modes(self) -> tuple[str, ...]:
        return ("implicit", "unrolled")

    @property
    def inference_steps(self) -> int:
        return self.spec.solver.steps  # each of them passes all decoders

    @property
    def models(self) -> Iterable[DenseDecoder]:
        """The decoders G_c of the classes, in order."""
        return cast(Iterable[DenseDecoder], self.decoders)

    def forward(self, x: Tensor) -> Tensor:
        return self.attack_forward(x, self.gradient_modes[0], None, 0)[0]

    def attack_forward(self, x: Tensor, gradient: str, start: Tensor | None, inner_steps: int) -> tuple[Tensor, Tensor]:
        """See `Defense.attack_forward`; the optima are latents [N,K,k]."""
        solver, logits, ends = self.spec.solver, [], []
        unrolled = min(inner_steps, solver.steps) if gradient == "unrolled" else 0
        whole = unrolled == solver.steps
        for place, decoder in enumerate(self.models):
            if start is None or whole:
                z, steps = self.likeliest(decoder, x), 0 if whole else solver.steps
            else:
                z, steps = start[:, place], 0 if unrolled else inner_steps
            if steps:
                z = solver.solve(decoder, x, z[:, None], steps, penalty=self.pull)[:, 0]
            if unrolled:
                slow = solver.unrolled(unrolled)
                z = slow.solve(decoder, x, z[:, None], unrolled, unroll=True, penalty=self.pull)[:, 0]
            logits.append(-self.energy(decoder, x, z))
            ends.append(z.detach())
        return torch.stack(logits, dim=1), torch.stack(ends, dim=1)

    def pull(self, z: Tensor, rows: Tensor) -> Tensor:
        """Return ½ ‖z‖² for latents z [M,k], divided by the number of pixels as the solver's error is, [M]."""
        return z.square().sum(1) / (2 * math.prod(self.spec.shape))

    def energy(self, decoder: DenseDecoder, x: Tensor, z: Tensor) -> Tensor:
        """Return ‖x − G(z)‖² + ½ ‖z‖² for images x [N,C,H,W] and latents z [N,k], [N]."""
        return (x - decoder(z)).square().flatten(1).sum(1) + z.square().sum(1) / 2

    def likeliest(self, decoder: DenseDecoder, x: Tensor) -> Tensor:
        """Return the draw of the prior with the least energy for each of the images x [N,C,H,W], [N,k]."""
        with torch.no_grad():
            images = decoder(self.prior).flatten(1)
            own = images.square().sum(1) + self.prior.square().sum(1) / 2
            return self.prior[(own - 2 * x.flatten(1) @ images.t()).argmin(1)]

    def fit(
        self, train: LabelledImages, validation: LabelledImages, budget: float, seed: int, progress: Progress
    ) -> dict[str, float]:
        for label, decoder in enumerate(self.models):
            own = train.labels == label
            self.fit_class(label, decoder, LabelledImages(train.images[own], train.labels[own]), budget, seed, progress)
        self.eval()
        few = LabelledImages(validation.images[:CHECKED], validation.labels[:CHECKED])
        return {"validation_accuracy": accuracy(self, few)}

    def fit_class(
        self, label: int, decoder: DenseDecoder, data: LabelledImages, budget: float, seed: int, progress: Progress
    ) -> None:
        """Train a class' decoder in place, by the usual bound on ‖x − G(z)‖² + ½ ‖z‖²: a VAE of pixel variance ½."""
        spec = self.spec
        posterior = StridedCNN(spec.shape, 2 * spec.latent, width=8, hidden=64).to(device_of(self))
        pair = nn.ModuleDict({"encoder": posterior, "decoder": decoder})
        initialise(pair, seed)

        def step(images: Tensor, labels: Tensor, done: float) -> Tensor:
            mean, log_variance = posterior(images).chunk(2, dim=1)
            log_variance = log_variance.clamp(-10, 10)
            z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
            divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum()
            return ((images - decoder(z)).square().sum() + divergence) / len(images)

        epochs = epochs_for(budget, spec.epochs, len(data))
        train_module(pair, step, data, Training(f"class-{label}", seed, epochs, spec.batch_size, spec.rate), progress)
