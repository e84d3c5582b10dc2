"""A Wasserstein GAN with gradient penalty (Gulrajani et al. 2017), as in Defense-GAN (Samangouei et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.nn import functional as F

from manifold_bench.defenses.base import LabelledImages, Progress
from manifold_bench.defenses.decoders import DeconvolutionalGenerator, doubling_sizes
from manifold_bench.defenses.generative_model import GenerativeModel, GenerativeSettings, GenerativeSpec
from manifold_bench.defenses.training import Training, batches_of, device_of, epochs_for, initialise, train_module


@dataclass(frozen=True, kw_only=True)
class WassersteinGANSettings(GenerativeSettings):
    """Settings of `WassersteinGAN` and of its training.

    width: number of channels before the last layer (Defense-GAN on MNIST: 64). penalty: weight λ of the gradient
    penalty. critic_steps: number of critic steps for each generator step. epochs, batch_size, rate: number of epochs,
    batch size and learning rate of the training.

    Batch size, penalty and critic steps are those of the paper, whose 200,000 generator steps at rate 1e-4 need a GPU.
    Here an epoch of 60,000 images has 200 generator steps.
    """

    model: Literal["wgan-gp"] = "wgan-gp"
    width: Annotated[int, Ge(1)] = 32
    penalty: Annotated[float, Gt(0)] = 10.0
    critic_steps: Annotated[int, Ge(1)] = 5
    epochs: Annotated[int, Ge(1)] = 75
    batch_size: Annotated[int, Ge(1)] = 50
    rate: Annotated[float, Gt(0)] = 3e-4


@dataclass(frozen=True, kw_only=True)
class WassersteinGANSpec(GenerativeSpec):
    """Parameters of `WassersteinGAN`; see `GenerativeSpec`."""

    settings: WassersteinGANSettings


class Critic(nn.Module):
    """The critic, images [N,C,H,W] → scores [N]: three 5×5 convolutions of stride 2, leaky ReLU, and a linear layer."""

    def __init__(self, shape: tuple[int, int, int], width: int) -> None:
        super().__init__()
        channels, height, rows = shape
        maps = [channels, width, 2 * width, 4 * width]
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 5, stride=2, padding=2) for a, b in pairwise(maps))
        self.output = nn.Linear(maps[-1] * doubling_sizes(height, 3)[0] * doubling_sizes(rows, 3)[0], 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
        return self.output(torch.flatten(x, 1))[:, 0]


class WassersteinGAN(GenerativeModel):
    """The generator of a WGAN-GP, with the layers of Defense-GAN's MNIST generator."""

    Spec: ClassVar = WassersteinGANSpec
    spec: WassersteinGANSpec

    def __init__(self, spec: WassersteinGANSpec) -> None:
        super().__init__(spec)
        self.generator = DeconvolutionalGenerator(spec.shape, spec.settings.latent, spec.settings.width)

    def fit_generator(
        self, train: LabelledImages, validation: LabelledImages, budget: float, seed: int, progress: Progress
    ) -> dict[str, float]:
        """Train generator and critic in turns, in one loop with one Adam; in a step only one gets a gradient.

        On a CUDA device each step is captured as a CUDA graph.
        """
        settings = self.spec.settings
        critic = Critic(self.spec.shape, settings.width).to(device_of(self))
        pair = nn.ModuleDict({"generator": self.generator, "critic": critic})
        initialise(pair, seed)
        distance = torch.zeros(())
        epochs = epochs_for(budget, settings.epochs, len(train))
        turns = epochs * batches_of(len(train), settings.batch_size)

        def step(images: Tensor, labels: Tensor, done: float) -> Tensor:
            nonlocal distance
            learns = round(done * turns) % (settings.critic_steps + 1) == settings.critic_steps
            critic.requires_grad_(not learns)
            z = torch.randn(len(images), settings.latent, device=images.device)
            if learns:
                return -critic(self.generator(z)).mean()
            with torch.no_grad():
                made = self.generator(z)
            distance = critic(images).mean() - critic(made).mean()
            return settings.penalty * gradient_penalty(critic, images, made) - distance

        def figures() -> dict[str, float]:
            return {"critic_distance": float(distance.detach())}

        batch_size, betas = settings.batch_size, (0.5, 0.9)
        kinds = settings.critic_steps + 1
        training = Training(
            "wgan-gp", seed, epochs, batch_size, settings.rate, betas, mixed_precision=True, kinds=kinds
        )
        train_module(pair, step, train, training, progress, figures)
        critic.requires_grad_(True)
        return figures()


def gradient_penalty(critic: nn.Module, real: Tensor, made: Tensor) -> Tensor:
    """Return E (‖∇ critic‖ − 1)² at random points between real and generated images [N,C,H,W] (eq. 3 of the paper)."""
    share = torch.rand(len(real), 1, 1, 1, device=real.device)
    between = (share * real + (1 - share) * made.float()).requires_grad_(True)
    (gradient,) = torch.autograd.grad(critic(between).float().sum(), between, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()
