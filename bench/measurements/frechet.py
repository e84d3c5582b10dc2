"""The Fréchet distance between a generator's images and real ones (Heusel et al. 2017)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor, nn

from manifold_bench.bench.datasets.base import Dataset
from manifold_bench.bench.measurements.base import Measurement
from manifold_bench.defenses.base import Defense

BATCH = 500


@runtime_checkable
class Sampling(Protocol):
    """A defense with a generator of images."""

    def sample(self, n: int, seed: int) -> Tensor:
        """Return n images [n,C,H,W] in [0,1], of the classes in turn: the i-th is of class i mod K."""


@dataclass(frozen=True, kw_only=True)
class FrechetDistance(Measurement):
    """Fréchet distance between features of generated images and of the test images.

    Gaussians are fitted to the features of `samples` generated images and of all test images.

    samples: number of generated images.
    features: label of the defense whose classifier makes the features, the inputs of its last layer. Heusel et al. use
    an Inception network trained on ImageNet, whose distances have another scale: compare values with the same features
    only. As a reference, the distance of the validation images, which are real, is measured too.
    """

    paper = "heusel2017"
    headline: ClassVar[str] = "fid"
    samples: Annotated[int, Ge(2)] = 10_000
    features: str = "undefended"

    @property
    def others(self) -> tuple[str, ...]:
        return (self.features,)

    @property
    def title(self) -> str:
        return (
            f"Fréchet distance of {self.samples:,} generated images to the test images, features: the last hidden "
            f"layer of {self.features!r} (not Inception: compare within this table only)"
        )

    def unsuited(self, defense: Defense) -> str | None:
        return None if isinstance(defense, Sampling) else "the defense has no generator of images"

    def measure(self, defense: Defense, others: Mapping[str, Defense], data: Dataset, seed: int) -> dict[str, float]:
        network = others[self.features]
        assert isinstance(defense, Sampling)
        sizes = [min(BATCH, self.samples - start) for start in range(0, self.samples, BATCH)]
        # A seed for each batch, because ten thousand large images at once may not fit into memory
        seeds = np.random.SeedSequence(seed).generate_state(len(sizes))
        generated = (defense.sample(n, int(s)) for n, s in zip(sizes, seeds, strict=True))
        real = moments(penultimate(network, data.test.images.split(BATCH)))
        return {
            "fid": frechet_distance(moments(penultimate(network, generated)), real),
            "validation images": frechet_distance(
                moments(penultimate(network, data.validation.images.split(BATCH))), real
            ),
            "test images": len(data.test),
        }


def penultimate(network: Defense, batches: Iterable[Tensor]) -> np.ndarray:
    """Return the inputs of a classifier's last linear layer, float64 [N,D], for batches of images [n,C,H,W].

    Raises ValueError if the network has no linear layer with one output for each class.
    """
    layers = [m for m in network.modules() if isinstance(m, nn.Linear) and m.out_features == network.num_classes]
    if not layers:
        raise ValueError(f"{type(network).__name__} has no linear output layer whose inputs could serve as features")
    seen: list[np.ndarray] = []
    hook = layers[-1].register_forward_pre_hook(lambda _, given: seen.append(given[0].double().cpu().numpy()))
    device = layers[-1].weight.device
    try:
        with torch.no_grad():
            for batch in batches:
                network(batch.to(device))
    finally:
        hook.remove()
    return np.concatenate(seen)


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean [D] and the unbiased covariance [D,D] of features [N,D]."""
    return features.mean(0), np.atleast_2d(np.cov(features, rowvar=False))


def frechet_distance(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> float:
    """Return ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½) for two Gaussians with these means and covariances.

    It is their squared Wasserstein-2 distance (Dowson and Landau 1982). The eigenvalues of Σ₁Σ₂ are those of the
    symmetric Σ₁^½ Σ₂ Σ₁^½: real and, up to rounding, not negative.
    """
    (mean, covariance), (mean_2, covariance_2) = one, other
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ covariance_2 @ root).clip(0)).sum()
    distance = np.square(mean - mean_2).sum() + np.trace(covariance) + np.trace(covariance_2) - 2 * cross
    return max(0.0, float(distance))
