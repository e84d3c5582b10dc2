"""The selective Gaussian-mixture VAE (Ghosh, Losalka and Black, AAAI 2019).

The paper is "Resisting Adversarial Attacks Using Gaussian Mixture Variational Autoencoders".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Lt
from scipy.special import gammaincinv
from torch import Tensor, nn

from manifold_bench.attacks.batching import pad_to_block
from manifold_bench.defenses.augmentation import shifted, warped
from manifold_bench.defenses.base import (
    Defense,
    DefenseSpec,
    LabelledImages,
    Progress,
    append_reject_score,
    deployment,
    suspicion,
)
from manifold_bench.defenses.calibration import HeldOutScores, selective_figures
from manifold_bench.defenses.decoders import PoolingEncoder, UpsamplingDecoder
from manifold_bench.defenses.projection_gradients import straight_through
from manifold_bench.defenses.solvers import AdamSolver, Penalty, best_start
from manifold_bench.defenses.training import Step, Training, in_batches, initialise, train_module


@dataclass(frozen=True, kw_only=True)
class GaussianMixtureVAESpec(DefenseSpec):
    """The parameters of the training, and those of the deployment from `covariance` on.

    latent: dimension k of the encoding, at least the number of classes; None: the number of classes.
    noise_variance: factor σ² of the prior's covariance Σ = σ² I; None: 1/3000 · 10/k (the paper has 1/3000 for MNIST,
    and less for a larger k).
    alpha: weight of ‖f(x) − μ_y‖²; the paper does not give it, and it was chosen on validation data.
    labelled_per_class: number of training images of each class that keep their label, while the others are used without
    one (the paper's semi-supervised form); None: all keep it.
    posterior: whether the posterior's entropy is `constant`, or `variable`, where the encoder gives variances, too, as
    in the usual VAE (the paper's ablation).
    width: number of channels of the first convolution of the encoder. hidden: number of units of the dense layers.
    epochs: number of epochs of the training. batch_size: number of images in a batch. rate: learning rate of Adam.
    covariance: covariance in the Mahalanobis distance: `empirical`, that of the training encodings of each class, or
    `prior`, the prior's Σ.
    confidence: confidence of both thresholds on training data; the paper's 99.73 % is three standard deviations.
    rejection_rate: share of clean held-out images that is rejected, for which both thresholds are multiplied by one
    factor; None: the thresholds are those of `confidence`.
    reclassify: whether rejected inputs are projected on the decoder's range and classified there.
    descent: the search for that projection, from every class mean.
    reject_after: whether an input is still rejected if its projection, too, is beyond a threshold.
    pull: whether the descents minimise α ‖z − μ_c‖² as well, the training's pull to the mean that they start from.
    Without it, as the paper writes, z* leaves the region on which the decoder was trained. On rejected validation
    images of MNIST after FGSM at ε 0.06, 0.12 and 0.30, the label is then right for 79, 75 and 58 % (24 images each; z*
    is within τ_enc for 17, 29 and 33 %), and with the pull for 97, 100 and 90 % (40 images each; all within).
    """

    latent: Annotated[int, Ge(2)] | None = None
    noise_variance: Annotated[float, Gt(0)] | None = None
    alpha: Annotated[float, Gt(0)] = 100.0
    labelled_per_class: Annotated[int, Ge(1)] | None = None
    posterior: Literal["constant", "variable"] = "constant"
    confidence: Annotated[float, Gt(0), Lt(1)] = 0.9973
    width: Annotated[int, Ge(1)] = 32
    hidden: Annotated[int, Ge(1)] = 128
    epochs: Annotated[int, Ge(1)] = 30
    batch_size: Annotated[int, Ge(1)] = 128
    rate: Annotated[float, Gt(0)] = 2e-3
    covariance: Literal["empirical", "prior"] = deployment("empirical")
    rejection_rate: Annotated[float, Gt(0), Lt(1)] | None = deployment(None)
    reclassify: bool = deployment(False)
    reject_after: bool = deployment(True)
    pull: bool = deployment(True)
    descent: AdamSolver = field(default_factory=AdamSolver, metadata={"deployment": True})

    def __post_init__(self) -> None:
        if self.latent is not None and self.latent < self.num_classes:
            raise ValueError(
                f"latent: {self.latent} is too small; give {self.num_classes} (the number of classes) or more"
            )

    @property
    def k(self) -> int:
        """Dimension of the encoding."""
        return self.num_classes if self.latent is None else self.latent

    @property
    def sigma2(self) -> float:
        """Variance σ² of the prior in each dimension."""
        return 1 / 3000 * 10 / self.k if self.noise_variance is None else self.noise_variance


class MeanEncoder(nn.Module):
    """f: images [N,C,H,W] → the means of their encodings [N,k].

    network: network whose first k outputs are the means; if the posterior is variable, k log variances follow.
    """

    def __init__(self, network: nn.Module, latent: int) -> None:
        super().__init__()
        self.network = network
        self.latent = latent

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)[:, : self.latent]


class NearestMean(nn.Module):
    """The encoder with the class means: images → logits −‖f(x) − μ_c‖², which is log p(z|c) up to scale and a constant.

    The logits are not scaled: with the paper's Σ the factor would be 1500, and the gradient of a softmax would vanish.
    """

    means: Tensor

    def __init__(self, encoder: MeanEncoder, means: Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("means", means)

    def scores(self, z: Tensor) -> Tensor:
        """Return the logits [N,K] of encodings z [N,k]."""
        return -(z[:, None, :] - self.means).square().sum(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(self.encoder(x))


class GaussianMixtureVAE(Defense):
    """Classifies by the nearest class mean of a Gaussian-mixture VAE, and rejects outliers.

    It rejects an input whose encoding is too far from that mean, or whose reconstruction is too far from the input
    (section 3.4 of the paper).

    forward: images [N,C,H,W] in [0,1] → logits [N,K+1]. The reject score exceeds the largest logit by
    max(d²/τ_enc, SSE/τ_dec) − 1, where d² is the squared Mahalanobis distance of the encoding to its mean, and SSE the
    reconstruction error. τ_enc is a quantile of χ²_k, and τ_dec the same quantile of the training errors.

    With `reclassify`, gradients pass the projection as if z* were f(x) (`identity`), or through the last steps of the
    descent (`unrolled`).
    """

    paper = "ghosh2019"
    Spec: ClassVar = GaussianMixtureVAESpec
    family: ClassVar[str] = "generative rejection"
    version: ClassVar[int] = 3
    rejects: ClassVar[bool] = True
    detectors: ClassVar = ("encoding", "reconstruction")
    spec: GaussianMixtureVAESpec
    precision: Tensor
    tau_enc: Tensor
    tau_dec: Tensor

    def __init__(self, spec: GaussianMixtureVAESpec) -> None:
        super().__init__(spec)
        means = torch.eye(spec.num_classes, spec.k)
        outputs = spec.k if spec.posterior == "constant" else 2 * spec.k
        encoder = MeanEncoder(PoolingEncoder(spec.shape, outputs, spec.width, spec.hidden), spec.k)
        self.classifier: NearestMean = NearestMean(encoder, means)
        self.decoder = UpsamplingDecoder(spec.shape, spec.k, spec.width, spec.hidden)
        self.register_buffer("precision", (torch.eye(spec.k) / spec.sigma2).repeat(spec.num_classes, 1, 1))
        self.register_buffer("tau_enc", torch.tensor(torch.inf))
        self.register_buffer("tau_dec", torch.tensor(torch.inf))
        self.held_out = HeldOutScores(2)
        """max(d²/τ_enc, SSE/τ_dec) of validation images, first with the empirical covariances, then with Σ."""

    @property
    def gradient_modes(self) -> tuple[str, ...]:
        return ("identity", "unrolled") if self.spec.reclassify else ("default",)

    @property
    def inference_steps(self) -> int:
        return self.spec.descent.steps if self.spec.reclassify else 0

    @property
    def encoder(self) -> MeanEncoder:
        """The encoder f: images → the means of their encodings [N,k]."""
        return self.classifier.encoder

    @property
    def looseness(self) -> Tensor:
        """The factor of both thresholds: 1, or the one that gives `rejection_rate` on clean held-out images."""
        if self.spec.rejection_rate is None:
            return torch.ones_like(self.tau_enc)
        return self.held_out.thresholds([self.spec.rejection_rate] * 2)[int(self.spec.covariance == "prior")]

    def forward(self, x: Tensor) -> Tensor:
        if self.spec.reclassify:
            return self.attack_forward(x, self.gradient_modes[0], None, 0)[0]
        return self._without_reclassification(x)

    def _without_reclassification(self, x: Tensor) -> Tensor:
        z = self.encoder(x)
        return self._selective(z, self.error(x, z))

    def _selective(self, z: Tensor, error: Tensor) -> Tensor:
        """Return logits [N,K+1] for encodings z [N,k] and reconstruction errors [N]."""
        scores = self.classifier.scores(z)
        return append_reject_score(scores, self._ratios(z, error, scores.argmax(1)).amax(1) - 1)

    def _ratios(self, z: Tensor, error: Tensor, labels: Tensor) -> Tensor:
        """Return both detectors' scores over their thresholds for the answers `labels` [N], [N,2]."""
        distance = self.distance(z, labels, self.spec.covariance)
        return torch.stack([distance / self.tau_enc, error / self.tau_dec], dim=1) / self.looseness

    def detection(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits without reclassification, and ratios d²_label/τ_enc, SSE/τ_dec; see `Defense.detection`."""
        z = self.encoder(x)
        error = self.error(x, z)
        return self._selective(z, error), self._ratios(z, error, labels)

    def distance(self, z: Tensor, labels: Tensor, covariance: str) -> Tensor:
        """Return the squared Mahalanobis distance of z [N,k] to the means of `labels` [N], [N].

        covariance: `empirical` or `prior`, as in the spec.
        """
        offset = z - self.classifier.means[labels]
        if covariance == "prior":
            return offset.square().sum(1) / self.spec.sigma2
        return torch.einsum("ni,nij,nj->n", offset, self.precision[labels], offset)

    def error(self, x: Tensor, z: Tensor) -> Tensor:
        """Return ‖x − g(z)‖² for images x [N,C,H,W] and latents z [N,k], [N]."""
        return (x - self.decoder(z).float()).square().flatten(1).sum(1)

    def attack_forward(self, x: Tensor, gradient: str, start: Tensor | None, inner_steps: int) -> tuple[Tensor, Tensor]:
        """See `Defense.attack_forward`; the inner optimisation reclassifies rejected inputs (section 3.5)."""
        z = self.encoder(x)
        logits = self._selective(z, self.error(x, z))
        rejected = (logits.argmax(1) == self.num_classes).nonzero()[:, 0]
        reached = z.detach().clone()
        if len(rejected):
            padded = pad_to_block(rejected)
            found = self._projected(x[padded], gradient, None if start is None else start[padded], inner_steps)
            found = found[: len(rejected)]
            reached[rejected] = found.detach()
            if gradient == "identity":
                found = straight_through(z[rejected], found)
            ended = pad_to_block(found)
            again = self._selective(ended, self.error(x[padded], ended))[: len(rejected)]
            if not self.spec.reject_after:
                # Inputs that were beyond a threshold stay the most suspicious of all accepted ones
                again = append_reject_score(again[:, :-1], suspicion(again, self.num_classes).clamp(max=0))
            logits = logits.index_copy(0, rejected, again)
        return logits, reached

    def _projected(self, x: Tensor, gradient: str, start: Tensor | None, inner_steps: int) -> Tensor:
        """Return z*(x) [N,k]: the best of the descents from every class mean, or one from `start` [N,k]."""
        solver = self.spec.descent
        z = torch.cat([self._best_descent(part) for part in x.split(32)]) if start is None else start
        penalty = self._pull_to(self.classifier.means[self.classifier.scores(z).argmax(1)])
        if gradient == "unrolled":
            steps = inner_steps or solver.steps
            return solver.solve(self.decoder, x, z[:, None], steps, unroll=True, penalty=penalty)[:, 0]
        return z if start is None else solver.solve(self.decoder, x, z[:, None], inner_steps, penalty=penalty)[:, 0]

    def _best_descent(self, x: Tensor) -> Tensor:
        """Return the end of the best of the descents from every class mean, for images x [N,C,H,W] → [N,k]."""
        solver, starts = self.spec.descent, self.classifier.means.expand(len(x), -1, -1)
        penalty = self._pull_to(starts.flatten(0, 1))
        z = solver.solve(self.decoder, x, starts, solver.steps, penalty=penalty)
        return best_start(self.decoder, x, z, penalty)[0].detach()

    def _pull_to(self, means: Tensor) -> Penalty | None:
        """Return the penalty α ‖z − μ‖² for latents with means [M,k], weighted against the error as in training."""
        if not self.spec.pull:
            return None
        weight = self.spec.alpha / math.prod(self.spec.shape)
        return lambda z, rows: weight * (z - means[rows]).square().sum(1)

    def perceived(self, x: Tensor) -> Tensor:
        """Return the reconstruction g(f(x)) of images x [N,C,H,W]; for inputs that are reclassified, g(z*)."""
        with torch.no_grad():
            z = self.encoder(x)
            if self.spec.reclassify:
                z = self.attack_forward(x, "identity", None, 0)[1]
            return self.decoder(z)

    def sample(self, n: int, seed: int) -> Tensor:
        """Return n generated images [n,C,H,W], decoded from z ~ N(μ_c, Σ) of the classes c in turn."""
        means = self.classifier.means.cpu()[torch.arange(n) % self.num_classes]
        noise = torch.randn(means.shape, generator=torch.Generator().manual_seed(seed))
        z = (means + noise * self.spec.sigma2**0.5).to(self.tau_enc.device)
        with torch.no_grad():
            return torch.cat([self.decoder(part) for part in z.split(256)])

    def fit(
        self, train: LabelledImages, validation: LabelledImages, budget: float, seed: int, progress: Progress
    ) -> dict[str, float]:
        spec = self.spec
        initialise(self, seed)
        labelled = labelled_rows(train.labels, spec.labelled_per_class)
        known = LabelledImages(train.images[labelled], train.labels[labelled])
        step = self._supervised if spec.labelled_per_class is None else self._semi_supervised(known)
        # No more epochs for few images, because that would overfit their encodings, and make the thresholds too tight
        epochs = max(1, round(budget * spec.epochs))
        training = Training("gmvae", seed, epochs, spec.batch_size, spec.rate, mixed_precision=True)
        train_module(self, step, train, training, progress, lambda: self.figures(validation))
        self.set_thresholds(known, validation)
        return self.figures(validation)

    def _supervised(self, images: Tensor, labels: Tensor, done: float) -> Tensor:
        """Return the mean loss of a batch: SSE(x, g(z)) + α ‖f(x) − μ_y‖², plus α times the rest of the divergence."""
        images = shifted(images, self.spec.shape[-1] // 16)
        mean, z, divergence = self._encoded(images)
        pull = (mean - self.classifier.means[labels]).square().sum(1) + divergence
        return (self.error(images, z) + self.spec.alpha * pull).mean()

    def _semi_supervised(self, known: LabelledImages) -> Step:
        """Return a training step that ignores the labels of its images, and adds half as many labelled images.

        The loss of images without labels is SSE(x, g(z)) − α · 2σ² log Σ_c N(z; μ_c, Σ)/K. If one mean μ_c is near, the
        second term is α ‖z − μ_c‖², as for labelled images. Its weight grows over the first half of the training, in
        which the means find their classes.
        """
        spec = self.spec

        def step(images: Tensor, labels: Tensor, done: float) -> Tensor:
            rows = torch.randint(len(known), (len(images) // 2,))
            own, own_labels = known.images[rows].to(images.device), known.labels[rows].to(images.device)
            both = warped(torch.cat([images, own]))
            mean, z, divergence = self._encoded(both)
            n = len(images)
            mixture = (self.classifier.scores(z[:n]) / (2 * spec.sigma2)).logsumexp(1)
            pull = torch.cat(
                [
                    min(1.0, 2 * done) * -2 * spec.sigma2 * mixture,
                    (mean[n:] - self.classifier.means[own_labels]).square().sum(1),
                ]
            )
            return (self.error(both, z) + spec.alpha * (pull + divergence)).sum() / n

        return step

    def _encoded(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return f(x) [N,k], a random z [N,k] of the posterior, and the rest of the divergence [N] (times 2σ²)."""
        spec = self.spec
        outputs = self.classifier.encoder.network(images).float()
        mean = outputs[:, : spec.k]
        if spec.posterior == "constant":
            return mean, mean + torch.randn_like(mean) * spec.sigma2**0.5, mean.new_zeros(len(mean))
        # 2σ² KL(N(f, s²) ‖ N(μ, σ²)) = ‖f − μ‖² + Σ (s² − σ² − σ² log(s²/σ²)); the network gives log(s²/σ²)
        log_ratio = outputs[:, spec.k :].clamp(-10, 10)
        z = mean + torch.randn_like(mean) * (spec.sigma2 * log_ratio.exp()).sqrt()
        return mean, z, (spec.sigma2 * (log_ratio.exp() - 1 - log_ratio)).sum(1)

    def set_thresholds(self, train: LabelledImages, validation: LabelledImages) -> None:
        """Set τ_enc from χ²_k, τ_dec and covariances from labelled training images, and `held_out` from validation.

        The training images are shifted at random, as in training; a small number of them several times.
        """
        spec = self.spec
        device = self.tau_enc.device
        self.tau_enc = torch.tensor(2 * float(gammaincinv(spec.k / 2, spec.confidence)), device=device)
        z, errors = self._encodings(train.images, copies=math.ceil(10_000 / len(train)))
        labels = train.labels.to(device).repeat(len(z) // len(train))
        offsets = (z - self.classifier.means[labels]).double()
        for label in range(spec.num_classes):
            own = offsets[labels == label]
            covariance = own.T @ own / max(len(own), 1)
            # Shrinkage, as if by k + 2 observations of the average variance: few encodings do not determine the matrix
            average = covariance.diagonal().mean().clamp_min(1e-8) * torch.eye(spec.k, device=device)
            share = (spec.k + 2) / (len(own) + spec.k + 2)
            self.precision[label] = torch.linalg.inv((1 - share) * covariance + share * average).float()
        self.tau_dec = torch.quantile(errors, spec.confidence)
        z, errors = self._encodings(validation.images)
        nearest = self.classifier.scores(z).argmax(1)
        distances = torch.stack([self.distance(z, nearest, kind) for kind in ("empirical", "prior")], dim=1)
        self.held_out.keep(torch.maximum(distances / self.tau_enc, errors[:, None] / self.tau_dec))

    def _encodings(self, images: Tensor, copies: int = 0) -> tuple[Tensor, Tensor]:
        """Return f(x) and ‖x − g(f(x))‖² of the images, or of `copies` shifted copies of them, one after another."""
        most = self.spec.shape[-1] // 16
        found, errors = [], []
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            for _ in range(max(copies, 1)):
                for part in images.split(256):
                    x = (shifted(part, most) if copies else part).to(self.tau_enc.device)
                    found.append(self.encoder(x))
                    errors.append(self.error(x, found[-1]))
        return torch.cat(found), torch.cat(errors)

    def figures(self, validation: LabelledImages) -> dict[str, float]:
        """Return `selective_figures` of validation images, without reclassification."""
        logits = in_batches(self._without_reclassification, validation.images, self.tau_enc.device)
        return selective_figures(logits, validation.labels)


def labelled_rows(labels: Tensor, per_class: int | None) -> Tensor:
    """Return the rows of the first `per_class` images of every class, sorted; all rows for None."""
    if per_class is None:
        return torch.arange(len(labels))
    return torch.cat([(labels == label).nonzero()[:per_class, 0] for label in labels.unique()]).sort().values
