"""Generative models on whose range defenses project: a generator, and an encoder that inverts it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.nn import functional as F

from manifold_bench.defenses.base import LabelledImages, Progress, Settings, Trainable, TrainableSpec
from manifold_bench.defenses.decoders import PoolingEncoder
from manifold_bench.defenses.training import Training, device_of, epochs_for, in_batches, initialise, train_module


@dataclass(frozen=True, kw_only=True)
class GenerativeSettings(Settings):
    """Settings of `GenerativeModel` and of its training.

    latent: number of dimensions of z. encoder_width, encoder_hidden: size of the encoder. encoder_epochs,
    encoder_rate: number of epochs and learning rate of its training (Adam, one cycle).
    """

    latent: Annotated[int, Ge(1)] = 128
    encoder_width: Annotated[int, Ge(1)] = 32
    encoder_hidden: Annotated[int, Ge(1)] = 128
    encoder_epochs: Annotated[int, Ge(1)] = 12
    encoder_rate: Annotated[float, Gt(0)] = 1e-3


@dataclass(frozen=True, kw_only=True)
class GenerativeSpec(TrainableSpec):
    """Parameters of `GenerativeModel`.

    settings: settings of the model and its training, which the defense that is built on it chooses.
    """

    settings: GenerativeSettings


class GenerativeModel(Trainable, ABC):
    """A generator G: z [N,k] → images [N,C,H,W] in [0,1], z ~ N(0, I), and an encoder E: images → z that inverts it.

    A subclass sets `Spec`, `version` and `generator`, and trains the generator in `fit_generator`.
    """

    spec: GenerativeSpec
    generator: nn.Module

    def __init__(self, spec: GenerativeSpec) -> None:
        super().__init__(spec)
        settings = spec.settings
        self.latent = settings.latent
        self.encoder = PoolingEncoder(spec.shape, settings.latent, settings.encoder_width, settings.encoder_hidden)

    def forward(self, z: Tensor) -> Tensor:
        return self.generator(z)

    def encode(self, x: Tensor) -> Tensor:
        """Return latents [N,k] of images x [N,C,H,W], from which a search for the nearest G(z) may start."""
        return self.encoder(x)

    def sample(self, n: int, seed: int) -> Tensor:
        """Return n images G(z), z ~ N(0, I), [n,C,H,W]; the i-th image does not depend on n."""
        generator = torch.Generator().manual_seed(seed)
        z = torch.stack([torch.randn(self.latent, generator=generator) for _ in range(n)]).to(device_of(self))
        with torch.no_grad():
            return torch.cat([self.generator(part) for part in z.split(500)])

    def fit(
        self, train: LabelledImages, validation: LabelledImages, budget: float, seed: int, progress: Progress
    ) -> dict[str, float]:
        figures = self.fit_generator(train, validation, budget, seed, progress)
        self.generator.requires_grad_(False)
        self.fit_encoder(train, budget, seed, progress)
        self.generator.requires_grad_(True)
        return figures | {"validation_mse_of_the_encoder": self.encoding_error(validation)}

    @abstractmethod
    def fit_generator(
        self, train: LabelledImages, validation: LabelledImages, budget: float, seed: int, progress: Progress
    ) -> dict[str, float]:
        """Train `generator` in place, and return figures for the card."""

    def fit_encoder(self, data: LabelledImages, budget: float, seed: int, progress: Progress) -> None:
        """Train E in place so that G(E(x)) ≈ x and E(G(z)) ≈ z.

        Real images take part, because E is used on images that are not in the generator's range.
        """
        settings = self.spec.settings
        initialise(self.encoder, seed)

        def step(images: Tensor, labels: Tensor, done: float) -> Tensor:
            z = torch.randn(len(images), self.latent, device=images.device)
            returned = F.mse_loss(self.encoder(self.generator(z)), z)
            return F.mse_loss(self.generator(self.encoder(images)), images) + 0.01 * returned

        epochs = epochs_for(budget, settings.encoder_epochs, len(data))
        training = Training("encoder", seed, epochs, 128, settings.encoder_rate, mixed_precision=True)
        train_module(self.encoder, step, data, training, progress)

    def encoding_error(self, data: LabelledImages) -> float:
        """Return the mean squared error of G(E(x)) over all pixels of the images."""
        return float(in_batches(lambda x: (self(self.encode(x)) - x).square(), data.images, device_of(self)).mean())
