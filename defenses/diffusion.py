"""A denoising diffusion model (Ho, Jain and Abbeel 2020, https://arxiv.org/abs/2006.11239), by which defenses purify
images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Le, MultipleOf
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from manifold_bench.defenses.base import LabelledImages, Progress, Settings, Trainable, TrainableSpec
from manifold_bench.defenses.training import Training, device_of, epochs_for, initialise, train_module

STEPS = 1000
"""Number of noise levels; the variances β rise linearly from 1e-4 to 0.02, as in the paper."""


@dataclass(frozen=True, kw_only=True)
class DiffusionSettings(Settings):
    """Settings of `Diffusion` and of its training.

    width: number of channels at half resolution, a multiple of 8; there are twice as many at a quarter.

    latest: largest time that is trained, at most 1,000; purification needs none that are later than its own.
    epochs, batch_size, rate: number of epochs, batch size and learning rate of the training.
    """

    width: Annotated[int, Ge(8), MultipleOf(8)] = 24
    latest: Annotated[int, Ge(1), Le(STEPS)] = 500
    epochs: Annotated[int, Ge(1)] = 5
    batch_size: Annotated[int, Ge(1)] = 128
    rate: Annotated[float, Gt(0)] = 2e-3


@dataclass(frozen=True, kw_only=True)
class DiffusionSpec(TrainableSpec):
    """Parameters of `Diffusion`.

    settings: settings of the network and its training, which the defense that is built on it chooses.
    """

    settings: DiffusionSettings = field(default_factory=DiffusionSettings)


class Block(nn.Module):
    """Two 3×3 convolutions with a shortcut around them, and the time's embedding added in between."""

    def __init__(self, channels: int, made: int, embedding: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, channels), nn.Conv2d(channels, made, 3, padding=1)
        self.time = nn.Linear(embedding, made)
        self.norm2, self.conv2 = nn.GroupNorm(8, made), nn.Conv2d(made, made, 3, padding=1)
        self.shortcut = nn.Identity() if channels == made else nn.Conv2d(channels, made, 1)

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        inner = self.conv1(F.silu(self.norm1(h))) + self.time(time)[:, :, None, None]
        return self.shortcut(h) + self.conv2(F.silu(self.norm2(inner)))


class UNet(nn.Module):
    """A small U-Net of images [N,C,H,W] and times [N] → [N,C,H,W].

    It works on blocks of 2×2 pixels: `width` channels at half resolution, and twice as many at a quarter.
    """

    def __init__(self, shape: tuple[int, int, int], width: int) -> None:
        super().__init__()
        channels, height, rows = shape
        self.odd = (rows % 2, height % 2)
        self.width = width
        embedding = 2 * width
        self.time = nn.Sequential(nn.Linear(2 * width, embedding), nn.SiLU())
        self.stem = nn.Conv2d(4 * channels, width, 3, padding=1)
        self.before = Block(width, width, embedding)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.deepest = nn.ModuleList(Block(2 * width, 2 * width, embedding) for _ in range(3))
        self.up = nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1)
        self.after = Block(2 * width, width, embedding)
        self.out = nn.Conv2d(width, 4 * channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        scale = torch.exp(torch.arange(self.width, device=x.device) * (-math.log(STEPS) / self.width))
        angle = t[:, None] * scale
        time = self.time(torch.cat([angle.sin(), angle.cos()], dim=1))
        whole = F.pad(x, (0, self.odd[0], 0, self.odd[1]))
        half = self.before(self.stem(F.pixel_unshuffle(whole, 2)), time)
        h = self.down(half)
        for block in self.deepest:
            h = block(h, time)
        h = self.after(torch.cat([cropped(self.up(h), half), half], dim=1), time)
        return cropped(F.pixel_shuffle(self.out(F.silu(h)), 2), x)


def cropped(maps: Tensor, like: Tensor) -> Tensor:
    """Return maps cut to the height and width of `like`, which are one less where these are odd."""
    return maps[:, :, : like.shape[2], : like.shape[3]]


class Diffusion(Trainable):
    """A diffusion model: a network ε(x_t, t) that estimates the noise in x_t = √ᾱ_t x + √(1 − ᾱ_t) ε, ε ~ N(0, I).

    ᾱ_t = Π (1 − β_s) over s ≤ t; images are scaled to [−1, 1]. The loss is the mean squared error of the estimate at
    uniform random t.
    """

    paper = "ho2020"
    Spec: ClassVar = DiffusionSpec
    spec: DiffusionSpec
    kept: Tensor

    def __init__(self, spec: DiffusionSpec) -> None:
        super().__init__(spec)
        self.network = UNet(spec.shape, spec.settings.width)
        kept = torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64).neg().add(1).cumprod(0)
        self.register_buffer("kept", torch.cat([kept.new_ones(1), kept]).float(), persistent=False)

    def forward(self, noisy: Tensor, t: Tensor) -> Tensor:
        """Return the estimated noise in noisy images [N,C,H,W] at times t [N] int64 ≥ 1."""
        return self.network(noisy, t)

    def noised(self, x: Tensor, t: Tensor | int, noise: Tensor) -> Tensor:
        """Return √ᾱ_t x + √(1 − ᾱ_t) noise for images x in [−1,1] at times t [N], or at one time t."""
        kept = self.kept[t].view(-1, 1, 1, 1)
        return kept.sqrt() * x + (1 - kept).sqrt() * noise

    def reversed(self, noisy: Tensor, times: Sequence[int], noise: Tensor) -> Tensor:
        """Return images in about [−1,1] that the reverse process reaches from noisy ones [N,C,H,W].

        times: descending times of the process, from that of the noisy images to 0. noise [N,S,C,H,W]: standard normal
        noise that each of the S steps adds. Gradients pass through every step exactly. The backward pass computes each
        step again, so that activations are kept for one step at a time.
        """
        for step, (now, then) in enumerate(pairwise(times)):
            noisy = checkpoint(
                self.step, noisy, now, then, noise[:, step], use_reentrant=False, preserve_rng_state=False
            )
        return noisy

    def step(self, noisy: Tensor, now: int, then: int, noise: Tensor) -> Tensor:
        """Return a draw of x at time `then` given x at time `now`, by the posterior at the estimated clean image."""
        before, after = self.kept[now], self.kept[then]
        estimate = self(noisy, torch.full((len(noisy),), now, device=noisy.device))
        clean = (noisy - (1 - before).sqrt() * estimate) / before.sqrt()
        variance = (1 - after) / (1 - before) * (1 - before / after)
        return after.sqrt() * clean + (1 - after - variance).clamp_min(0).sqrt() * estimate + variance.sqrt() * noise

    def fit(
        self, train: LabelledImages, validation: LabelledImages, budget: float, seed: int, progress: Progress
    ) -> dict[str, float]:
        settings = self.spec.settings
        initialise(self.network, seed)

        def error(images: Tensor) -> Tensor:
            t, noise = (
                torch.randint(1, settings.latest + 1, (len(images),), device=images.device),
                torch.randn_like(images),
            )
            return F.mse_loss(self(self.noised(2 * images - 1, t, noise), t).float(), noise)

        def step(images: Tensor, labels: Tensor, done: float) -> Tensor:
            return error(images)

        def figures() -> dict[str, float]:
            with torch.random.fork_rng(), torch.no_grad():
                torch.manual_seed(seed)
                return {"validation_loss": float(error(validation.images[:1000].to(device_of(self))))}

        epochs = epochs_for(budget, settings.epochs, len(train))
        training = Training("diffusion", seed, epochs, settings.batch_size, settings.rate)
        train_module(self.network, step, train, training, progress, figures)
        self.eval()
        return figures()
