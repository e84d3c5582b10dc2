"""The selective Gaussian-mixture VAE: Ghosh, Losalka, Black 2019, "Resisting Adversarial Attacks Using Gaussian
Mixture Variational Autoencoders" (AAAI 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn
from torch.nn import functional as F

from defenses.base import Defense, DefenseSpec, LabelledImages, Progress, append_reject_score
from defenses.generators import PoolingEncoder, UpsamplingDecoder
from defenses.training import train_module
from defenses.undefended import initialise, shifted


@dataclass(frozen=True, kw_only=True)
class GaussianMixtureVAESpec(DefenseSpec):
    """latent: k, at least the number of classes. noise_variance: Σ = noise_variance · I (paper: 1/3000 for MNIST).

    alpha: weight of ‖f(x) − μ_y‖² in the loss (unpublished; chosen on validation data).
    covariance: of the encodings in the Mahalanobis distance: the training encodings' own per class, or the prior's Σ.
    confidence: of both thresholds; the paper's 99.73 % is three standard deviations.
    """

    latent: Annotated[int, Ge(2)] = 10
    noise_variance: Annotated[float, Gt(0)] = 1 / 3000
    alpha: Annotated[float, Gt(0)] = 100.0
    covariance: Literal["empirical", "prior"] = "empirical"
    confidence: Annotated[float, Gt(0), Lt(1)] = 0.9973
    width: Annotated[int, Ge(1)] = 32
    hidden: Annotated[int, Ge(1)] = 256
    epochs: Annotated[int, Ge(1)] = 30
    batch_size: Annotated[int, Ge(1)] = 128
    rate: Annotated[float, Gt(0)] = 2e-3

    def __post_init__(self) -> None:
        if self.latent < self.num_classes:
            raise ValueError(f"latent: {self.latent} is less than the {self.num_classes} classes, each has a mean")


class NearestMean(nn.Module):
    """The encoder with the class means: images → logits −‖f(x) − μ_c‖², log p(z|c) up to scale and a constant.

    Unscaled: with the paper's Σ the factor would be 1500, and a softmax of it would have no gradient left.
    """

    means: Tensor

    def __init__(self, encoder: nn.Module, means: Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("means", means)

    def scores(self, z: Tensor) -> Tensor:
        """Encodings [N,k] → [N,K]."""
        return -(z[:, None, :] - self.means).square().sum(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(self.encoder(x))


class GaussianMixtureVAE(Defense):
    """Nearest class mean of the encoding; rejects where the encoding is too far from that mean or the input too far
    from its reconstruction (their section 3.4).

    forward: images [N,C,H,W] in [0,1] → logits [N,K+1]. The reject score exceeds the largest logit by
    max(d²/τ_enc, SSE/τ_dec) − 1, d² the Mahalanobis distance² of the encoding to its mean and SSE the reconstruction
    error. τ_enc is the χ²_k quantile, τ_dec the same quantile of the training errors.
    """

    Spec: ClassVar = GaussianMixtureVAESpec
    spec: GaussianMixtureVAESpec
    precision: Tensor
    tau_enc: Tensor
    tau_dec: Tensor

    def __init__(self, spec: GaussianMixtureVAESpec) -> None:
        super().__init__(spec)
        means = torch.eye(spec.num_classes, spec.latent)
        encoder = PoolingEncoder(spec.shape, spec.latent, spec.width, spec.hidden)
        self.classifier: NearestMean = NearestMean(encoder, means)
        self.decoder = UpsamplingDecoder(spec.shape, spec.latent, spec.width, spec.hidden)
        prior = torch.eye(spec.latent) / spec.noise_variance
        self.register_buffer("precision", prior.repeat(spec.num_classes, 1, 1))
        self.register_buffer("tau_enc", torch.tensor(torch.inf))
        self.register_buffer("tau_dec", torch.tensor(torch.inf))

    @property
    def rejects(self) -> bool:
        return True

    @property
    def encoder(self) -> nn.Module:
        """f: images → the means of their encodings [N,k]."""
        return self.classifier.encoder

    def forward(self, x: Tensor) -> Tensor:
        z = self.encoder(x)
        scores = self.classifier.scores(z)
        distance, error = self.detector_scores(x, z, scores.argmax(1))
        excess = torch.maximum(distance / self.tau_enc, error / self.tau_dec) - 1
        return append_reject_score(scores, excess)

    def detector_scores(self, x: Tensor, z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mahalanobis distance² of z [N,k] to the means of `labels` [N], and ‖x − g(z)‖²: both [N]."""
        offset = z - self.classifier.means[labels]
        distance = torch.einsum("ni,nij,nj->n", offset, self.precision[labels], offset)
        return distance, (x - self.decoder(z)).square().flatten(1).sum(1)

    def perceived(self, x: Tensor) -> Tensor:
        """The reconstruction g(f(x))."""
        with torch.no_grad():
            return self.decoder(self.encoder(x))

    def fit(
        self, train: LabelledImages, validation: LabelledImages, budget: float, seed: int, progress: Progress
    ) -> dict[str, float]:
        spec = self.spec
        initialise(self, seed)
        # Not more often for few images: that tightens their own encodings, and with them the thresholds
        epochs = max(1, round(budget * spec.epochs))
        most = spec.shape[-1] // 16

        def step(images: Tensor, labels: Tensor, done: float) -> Tensor:
            images = shifted(images, most)
            z = self.encoder(images)
            noisy = z + torch.randn_like(z) * spec.noise_variance**0.5
            error = F.mse_loss(self.decoder(noisy), images, reduction="sum")
            pull = (z - self.classifier.means[labels]).square().sum()
            return (error + spec.alpha * pull) / len(images)

        train_module(
            self, step, train, stage="gmvae", seed=seed, progress=progress,
            epochs=epochs, batch_size=spec.batch_size, rate=spec.rate,
            evaluate=lambda: self.figures(validation),
        )  # fmt: skip
        self.set_thresholds(train)
        return self.figures(validation)

    def set_thresholds(self, train: LabelledImages) -> None:
        """τ_enc from χ²_k, τ_dec and the empirical covariances from the training images."""
        from scipy.stats import chi2

        spec = self.spec
        device = self.tau_enc.device
        with torch.no_grad():
            z = torch.cat([self.encoder(x.to(device)) for x in train.images.split(500)])
            errors = torch.cat(
                [
                    self.detector_scores(x.to(device), f, y.to(device))[1]
                    for x, f, y in zip(train.images.split(500), z.split(500), train.labels.split(500), strict=True)
                ]
            )
            if spec.covariance == "empirical":
                offsets = z - self.classifier.means[train.labels.to(device)]
                for label in range(spec.num_classes):
                    own = offsets[train.labels.to(device) == label].double()
                    covariance = own.T @ own / max(len(own), 1) + 1e-8 * torch.eye(spec.latent, device=device)
                    self.precision[label] = torch.linalg.inv(covariance).float()
        self.tau_enc = torch.tensor(float(chi2.ppf(spec.confidence, spec.latent)), device=device)
        self.tau_dec = torch.quantile(errors, spec.confidence)

    def figures(self, validation: LabelledImages) -> dict[str, float]:
        """Accuracy without rejection, accepted and right, accepted and wrong, and rejected."""
        device = self.tau_enc.device
        with torch.no_grad():
            logits = torch.cat([self(x.to(device)) for x in validation.images.split(500)]).cpu()
        right = logits[:, : self.num_classes].argmax(1) == validation.labels
        accepted = logits.argmax(1) < self.num_classes
        return {
            "validation_accuracy_without_rejection": float(right.float().mean()),
            "validation_accuracy": float((right & accepted).float().mean()),
            "validation_error": float((~right & accepted).float().mean()),
            "validation_rejection": float((~accepted).float().mean()),
        }
