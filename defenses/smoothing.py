"""Randomized smoothing: Cohen, Rosenfeld and Kolter 2019, "Certified Adversarial Robustness via Randomized Smoothing"
(https://arxiv.org/abs/1902.02918)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Lt
from statsmodels.stats.proportion import proportion_confint
from torch import Tensor
from torch.nn import functional as F

from manifold_bench.attacks.contract import Verdict
from manifold_bench.defenses.augmentation import shifted
from manifold_bench.defenses.base import Certificate, LabelledImages, Progress, deployment
from manifold_bench.defenses.training import Training, accuracy, epochs_for, initialise, train_module
from manifold_bench.defenses.undefended import Undefended, UndefendedSpec

SELECTION = 100
"""Noisy copies that choose the class a certificate is sought for (their n₀)."""


@dataclass(frozen=True, kw_only=True)
class SmoothingSpec(UndefendedSpec):
    """Parameters of `RandomizedSmoothing`.

    sigma: standard deviation of the noise, in training and in answers. mixed_precision: whether the
    training computes in 16 bits, see `Training`.

    copies: number of noisy copies that vote on an answer. attacked_copies: number of noisy copies in the mean that an
    attacker differentiates. certificate_copies: number of noisy copies from which a certificate is estimated (n in the
    paper). alpha: probability that a certificate is wrong.

    Other fields are as for `undefended`.
    """

    sigma: Annotated[float, Gt(0)] = 0.25
    epochs: Annotated[int, Ge(1)] = 3
    rate: Annotated[float, Gt(0)] = 2e-3
    mixed_precision: bool = True
    copies: Annotated[int, Ge(1)] = deployment(100)
    attacked_copies: Annotated[int, Ge(1)] = deployment(8)
    certificate_copies: Annotated[int, Ge(1)] = deployment(10_000)
    alpha: Annotated[float, Gt(0), Lt(1)] = deployment(0.001)


class RandomizedSmoothing(Undefended):
    """Randomized smoothing: the classifier's majority vote over noisy copies of the input.

    g(x) = argmax_c P(f(x + δ) = c), δ ~ N(0, σ² I), with the network f of `undefended` trained on such noise.

    The answer is the class that most of n noisy copies are taken for. Theirs abstains where the vote is close; this one
    never does, so that no attack is repelled by a close vote alone. Certificates do abstain: `certified`.

    `forward` is what an attacker differentiates: log (1/m) Σ softmax f(x + δᵢ) (Salman et al. 2019, "SmoothAdv",
    https://arxiv.org/abs/1906.04584); an attack's `eot` takes the mean over more of them.
    """

    paper = "cohen2019"
    Spec: ClassVar = SmoothingSpec
    family: ClassVar[str] = "certified"
    randomized: ClassVar[bool] = True
    spec: SmoothingSpec

    def noisy(self, x: Tensor) -> Tensor:
        """Return images [N,C,H,W], each with noise of its own; they leave [0, 1], as in the paper."""
        return x + self.spec.sigma * torch.randn_like(x)

    def forward(self, x: Tensor) -> Tensor:
        copies = self.spec.attacked_copies
        likely = self.network(self.noisy(x.repeat(copies, 1, 1, 1))).log_softmax(1)
        return likely.unflatten(0, (copies, len(x))).logsumexp(0) - math.log(copies)

    def votes(self, x: Tensor, copies: int) -> Tensor:
        """Return how many of `copies` noisy copies of each image x [N,C,H,W] get each class, [N,K] int64."""
        counts = torch.zeros(len(x), self.num_classes, dtype=torch.int64, device=x.device)
        with torch.no_grad():
            for _ in range(copies):
                counts += F.one_hot(self.network(self.noisy(x)).argmax(1), self.num_classes)
        return counts

    def verdict(self, x: Tensor) -> Verdict:
        """Return the class that most noisy copies vote for; the reject score is minus its share of the votes."""
        most, labels = self.votes(x, self.spec.copies).max(1)
        return Verdict(labels, torch.zeros_like(labels, dtype=torch.bool), -most.double() / self.spec.copies)

    @property
    def certificate(self) -> Certificate:
        return Certificate("l2", self.spec.alpha)

    def certified(self, x: Tensor, labels: Tensor, eps: Tensor) -> Tensor:
        """Return whether σ Φ⁻¹(p) ≥ eps (CERTIFY), where p bounds the probability of `labels` from below.

        p is the Clopper–Pearson bound at confidence 1 − α.

        It is about g itself, which infinitely many copies would vote for; with finitely many an attack may still get
        a wrong answer by chance. Float arithmetic adds to α what nobody has bounded (Voráček and Hein 2023,
        https://arxiv.org/abs/2302.13814).
        """
        spec, n = self.spec, self.spec.certificate_copies
        chosen = self.votes(x, SELECTION).argmax(1)
        counts = self.votes(x, n).gather(1, chosen[:, None])[:, 0]
        low, _ = proportion_confint(counts.cpu().numpy(), n, alpha=2 * spec.alpha, method="beta")
        share = torch.as_tensor(low, dtype=torch.float64, device=x.device)
        radius = spec.sigma * torch.special.ndtri(share)
        return ((chosen == labels) & (share > 0.5))[:, None] & (radius[:, None] >= eps)

    def fit(
        self, train: LabelledImages, validation: LabelledImages, budget: float, seed: int, progress: Progress
    ) -> dict[str, float]:
        spec = self.spec
        initialise(self.network, seed)
        most = train.images.shape[-1] // 16

        def step(images: Tensor, labels: Tensor, done: float) -> Tensor:
            return F.cross_entropy(self.network(self.noisy(shifted(images, most))), labels)

        def figures() -> dict[str, float]:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                return {"validation_accuracy": accuracy(self, validation)}

        epochs = epochs_for(budget, spec.epochs, len(train))
        training = Training("smoothing", seed, epochs, spec.batch_size, spec.rate, mixed_precision=spec.mixed_precision)
        train_module(self.network, step, train, training, progress, figures)
        self.eval()
        return figures()
