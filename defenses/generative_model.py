"""Generative models that defenses project on: each a generator, and an encoder that inverts it."""

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
    """latent: dimensions of z. encoder_*: the inverting encoder's size and training (Adam, one cycle)."""

    latent: Annotated[int, Ge(1)] = 128
    encoder_width: Annotated[int, Ge(1)] = 32
    encoder_hidden: Annotated[int, Ge(1)] = 128
    encoder_epochs: Annotated[int, Ge(1)] = 12
    encoder_rate: Annotated[float, Gt(0)] = 1e-3


@dataclass(frozen=True, kw_only=True)
class GenerativeSpec(TrainableSpec):
    """settings: of the model and its training; they are what a defense that is built on it chooses."""

    settings: GenerativeSettings


class GenerativeModel(Trainable, ABC):
    """G: z [N,k] → images [N,C,H,W] in [0,1], z ~ N(0, I); and E: images → z, trained to invert it.

    A subclass sets `Spec`, `version` and `generator`, and trains it in `fit_generator`.
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
        """[N,C,H,W] → where a search for the nearest G(z) may start, [N,k]."""
        return self.encoder(x)

    def sample(self, n: int, seed: int) -> Tensor:
        """n images G(z), z ~ N(0, I) → [n,C,H,W]; the i-th is the same whatever n is."""
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
        """Trains `generator` in place; returns figures for the card."""

    def fit_encoder(self, data: LabelledImages, budget: float, seed: int, progress: Progress) -> None:
        """Trains E: images come back, G(E(x)) ≈ x, and so do latents, E(G(z)) ≈ z.

        On generated images alone it would never meet what it is for: images beside the range.
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
        """Mean squared error per pixel of G(E(x))."""
        return float(in_batches(lambda x: (self(self.encode(x)) - x).square(), data.images, device_of(self)).mean())
