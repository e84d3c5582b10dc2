"""A Gaussian variational autoencoder (Kingma and Welling 2014), whose decoder is the generator of a defense."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.nn import functional as F

from manifold_bench.defenses.base import LabelledImages, Progress
from manifold_bench.defenses.decoders import DeconvolutionalGenerator, DenseDecoder
from manifold_bench.defenses.generative_model import GenerativeModel, GenerativeSettings, GenerativeSpec
from manifold_bench.defenses.networks import StridedCNN
from manifold_bench.defenses.training import Training, device_of, epochs_for, initialise, train_module


@dataclass(frozen=True, kw_only=True)
class VariationalAutoencoderSettings(GenerativeSettings):
    """Settings of `VariationalAutoencoder` and of its training.

    decoder: `deconvolutional` (that of Ilyas et al. 2017 for INC) or `dense` (20-500-500-784, for their overpowered
    attack). width: number of channels of the last hidden layer of `deconvolutional`. hidden: number of units of each
    hidden layer of `dense`.

    pixel_variance: variance of the decoder's Gaussian; a smaller one improves reconstructions, but more latents of the
    prior then give no proper image. epochs, batch_size, rate: number of epochs, batch size and learning rate of the
    training.
    """

    model: Literal["vae"] = "vae"
    decoder: Literal["deconvolutional", "dense"] = "deconvolutional"
    latent: Annotated[int, Ge(1)] = 32
    width: Annotated[int, Ge(1)] = 8
    hidden: Annotated[int, Ge(1)] = 500
    pixel_variance: Annotated[float, Gt(0)] = 0.05
    epochs: Annotated[int, Ge(1)] = 40
    batch_size: Annotated[int, Ge(1)] = 128
    rate: Annotated[float, Gt(0)] = 2e-3


@dataclass(frozen=True, kw_only=True)
class VariationalAutoencoderSpec(GenerativeSpec):
    """Parameters of `VariationalAutoencoder`; see `GenerativeSpec`."""

    settings: VariationalAutoencoderSettings


class VariationalAutoencoder(GenerativeModel):
    """The decoder of a Gaussian VAE; the encoder that learns the posterior is not kept after the training."""

    Spec: ClassVar = VariationalAutoencoderSpec
    spec: VariationalAutoencoderSpec

    def __init__(self, spec: VariationalAutoencoderSpec) -> None:
        super().__init__(spec)
        settings = spec.settings
        dense = settings.decoder == "dense"
        decoder, size = (DenseDecoder, settings.hidden) if dense else (DeconvolutionalGenerator, settings.width)
        self.generator: nn.Module = decoder(spec.shape, settings.latent, size)

    def fit_generator(
        self, train: LabelledImages, validation: LabelledImages, budget: float, seed: int, progress: Progress
    ) -> dict[str, float]:
        settings = self.spec.settings
        posterior = StridedCNN(self.spec.shape, 2 * settings.latent).to(device_of(self))
        pair = nn.ModuleDict({"encoder": posterior, "decoder": self.generator})
        initialise(pair, seed)

        def step(images: Tensor, labels: Tensor, done: float) -> Tensor:
            mean, log_variance = posterior(images).chunk(2, dim=1)
            log_variance = log_variance.clamp(-10, 10)
            z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
            error = F.mse_loss(self.generator(z), images, reduction="sum") / (2 * settings.pixel_variance)
            divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum()
            return (error + divergence) / len(images)

        epochs = epochs_for(budget, settings.epochs, len(train))
        training = Training("generator", seed, epochs, settings.batch_size, settings.rate, mixed_precision=True)
        train_module(pair, step, train, training, progress)
        with torch.no_grad():
            images = validation.images[:1000].to(device_of(self))
            error = F.mse_loss(self.generator(posterior(images)[:, : settings.latent]), images)
        return {"validation_mse_of_the_posterior_mean": float(error)}
