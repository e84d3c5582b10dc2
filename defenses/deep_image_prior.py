"""Invert and classify with a deep image prior: Ilyas et al. 2017 with the untrained networks of Ulyanov et al. 2018."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor
from torch.nn import functional as F

from attacks.adam import Moments
from attacks.threat import input_seeds
from defenses.base import Defense, DefenseSpec
from defenses.projection import BackwardIdentity, mean_squared_error
from defenses.undefended import Undefended, UndefendedSpec

AT_ONCE = 16
"""Images whose networks are fitted together on a CPU: more of them don't fit into its caches."""


@dataclass(frozen=True, kw_only=True)
class DeepImagePriorSpec(DefenseSpec):
    """scales, channels, skip, noise: of the networks, see `SkipNetworks`; Ulyanov et al. have 5, 128, 4 and 32.

    steps, rate: of the fit by Adam, which stops early. jitter: standard deviation of what is added to the noise input,
    anew in every step. averaging: decay of the outputs' running mean, which is what is classified. seed: of all this.
    """

    scales: Annotated[int, Ge(1)] = 2
    channels: Annotated[int, Ge(1)] = 32
    skip: Annotated[int, Ge(1)] = 4
    noise: Annotated[int, Ge(1)] = 32
    steps: Annotated[int, Ge(1)] = 300
    rate: Annotated[float, Gt(0)] = 0.01
    jitter: Annotated[float, Ge(0)] = 1 / 30
    averaging: Annotated[float, Ge(0), Lt(1)] = 0.99
    seed: int = 0

    def __post_init__(self) -> None:
        side = min(self.shape[1:])
        most = max(0, (side - 1).bit_length() - 1)  # a single pixel can't be normalised
        if self.scales > most:
            raise ValueError(f"scales: images {side} pixels wide or high have at most {most} scales, not {self.scales}")


class DeepImagePrior(Defense):
    """C(f_θ*(z₀)): θ* fits an untrained network to x from random θ, argmin_θ ‖f_θ(z₀) − x‖², stopped early.

    What such a network learns first is what natural images are like (Ulyanov et al. 2018); the classifier is
    `undefended`. θ, z₀ and the jitter of an input come from its pixels and the spec's seed, so that its answer depends
    on the input alone. Backward mode: `identity` through the fit (BPDA). While it is attacked, a fit goes on where the
    last one of the same input ended, with the z₀ that it had.
    """

    Spec: ClassVar = DeepImagePriorSpec
    family: ClassVar[str] = "projection"
    parts: ClassVar[tuple[str, ...]] = ("classifier",)
    spec: DeepImagePriorSpec

    def __init__(self, spec: DeepImagePriorSpec) -> None:
        super().__init__(spec)
        self.classifier: Undefended = Undefended(UndefendedSpec(shape=spec.shape, num_classes=spec.num_classes))
        self.networks = SkipNetworks(spec.shape, spec.scales, spec.channels, spec.skip, spec.noise)

    @property
    def gradient_modes(self) -> tuple[str, ...]:
        return ("identity",)

    @property
    def inference_steps(self) -> int:
        return self.spec.steps

    def forward(self, x: Tensor) -> Tensor:
        return self.attack_forward(x, "identity", None, 0)[0]

    def attack_forward(self, x: Tensor, gradient: str, start: Tensor | None, inner_steps: int) -> tuple[Tensor, Tensor]:
        """See `Defense.attack_forward`."""
        fitted, end = self.fit_networks(x, start, self.spec.steps if start is None else inner_steps)
        return self.classifier(BackwardIdentity.apply(x, fitted)), end

    def perceived(self, x: Tensor) -> Tensor:
        """f_θ*(z₀): the running mean of the outputs."""
        return self.fit_networks(x, None, self.spec.steps)[0]

    def fit_networks(self, x: Tensor, start: Tensor | None, steps: int) -> tuple[Tensor, Tensor]:
        """What networks fitted to x [N,C,H,W] make of it, same shape, and where their fits ended, [N,S].

        start: such ends, for fits of the same inputs or of inputs near them; None: random θ and z₀.
        """
        at_once = AT_ONCE if x.device.type == "cpu" else max(1, len(x))
        starts = [None] * len(x) if start is None else start.split(at_once)
        parts = [self._fit(some, begun, steps) for some, begun in zip(x.detach().split(at_once), starts, strict=False)]
        images, ends = zip(*parts, strict=True)
        return torch.cat(images), torch.cat(ends)

    def _fit(self, x: Tensor, start: Tensor | None, steps: int) -> tuple[Tensor, Tensor]:
        """`fit_networks` of images that are fitted together."""
        spec, networks, n = self.spec, self.networks, len(x)
        randoms = [torch.Generator().manual_seed(seed) for seed in input_seeds(x, spec.seed)]
        if start is None:
            weights = torch.stack([networks.random_weights(random) for random in randoms])
            z = torch.stack([0.1 * torch.rand(networks.entering, generator=random) for random in randoms]).to(x)
            theta = networks.by_layer(weights.to(x))
            moments = Moments.none(theta)
        else:
            *learnt, z = start.split([networks.size] * 3 + [start.shape[1] - 3 * networks.size], dim=1)
            theta, *means = (networks.by_layer(rows) for rows in learnt)
            moments = Moments(*means)
            z = z.view(n, *networks.entering)
        unbiased, spread = moments
        average = torch.zeros_like(x)
        for number in range(1, steps + 1):
            jitter = torch.stack([torch.randn(networks.entering, generator=random) for random in randoms]).to(x)
            with torch.enable_grad():  # an attack may ask for predictions without
                theta.requires_grad_(True)
                output = networks(theta, z + spec.jitter * jitter)
                (gradient,) = torch.autograd.grad(mean_squared_error(output, x).sum(), theta)
            average = spec.averaging * average + (1 - spec.averaging) * output.detach()
            moments = moments.after(gradient)
            # Means that have been unbiased before have no zeros behind them
            unbiased, spread = moments.unbiased(number if start is None else math.inf)
            theta = theta.detach() - spec.rate * unbiased / (spread.sqrt() + 1e-8)
        end = [networks.by_image(values, n) for values in (theta.detach(), unbiased, spread)]
        return average / (1 - spec.averaging**steps), torch.cat([*end, z.flatten(1)], dim=1)


class SkipNetworks:
    """N encoder–decoder networks with skip connections, one for each image: figure 21 of Ulyanov et al. 2018.

    At every scale what enters goes two ways: through a 1×1 convolution to `skip` channels, and through two 3×3
    convolutions, the first of stride 2, on to the next scale, whose answer is upsampled (bilinear). A 3×3 and a 1×1
    convolution join both; the last 1×1 convolution and a sigmoid make the image. All others have `channels` channels,
    are normalised over the pixels of an image and channel, and pass a leaky ReLU of slope .2. Theirs pad by reflection;
    these with zeros.

    The weights θ of N networks are one tensor [N·P]: layer by layer, in each layer image by image, so that a layer of
    all networks is one grouped convolution. entering: shape of z₀. size: P.
    """

    def __init__(self, shape: tuple[int, int, int], scales: int, channels: int, skip: int, noise: int) -> None:
        self.channels, self.scales = channels, scales
        self.entering = (noise, *shape[1:])

        def convolution(before: int, after: int, kernel: int) -> Iterator[tuple[int, ...]]:
            yield (after, before, kernel, kernel)
            yield from normalisation(after)

        def normalisation(channels: int) -> Iterator[tuple[int, ...]]:
            yield from [(channels,)] * 2

        def scale(depth: int, before: int) -> Iterator[tuple[int, ...]]:
            yield from convolution(before, skip, 1)
            yield from convolution(before, channels, 3)
            yield from convolution(channels, channels, 3)
            if depth < scales:
                yield from scale(depth + 1, channels)
            yield from normalisation(skip + channels)
            yield from convolution(skip + channels, channels, 3)
            yield from convolution(channels, channels, 1)

        self.shapes = [*scale(1, noise), (shape[0], channels, 1, 1), (shape[0],)]
        """Of the weights of one network, in the order in which they are used."""
        self.sizes = [math.prod(shape) for shape in self.shapes]
        self.size = sum(self.sizes)

    def random_weights(self, random: torch.Generator) -> Tensor:
        """θ of one network [P], as layers of torch begin: uniform within 1/√inputs, scales 1, shifts 0."""

        def draw(shape: tuple[int, ...]) -> Tensor:
            if len(shape) == 1:
                return torch.zeros(shape)  # a scale is kept as its difference from 1
            return (2 * torch.rand(math.prod(shape), generator=random) - 1) / math.sqrt(math.prod(shape[1:]))

        return torch.cat([draw(shape) for shape in self.shapes])

    def by_layer(self, rows: Tensor) -> Tensor:
        """[N,P], a row for each image → [N·P]."""
        return torch.cat([part.flatten() for part in rows.split(self.sizes, dim=1)])

    def by_image(self, layers: Tensor, n: int) -> Tensor:
        """[N·P] → [N,P], a row for each image."""
        return torch.cat([part.view(n, -1) for part in layers.split([n * size for size in self.sizes])], dim=1)

    def __call__(self, theta: Tensor, z: Tensor) -> Tensor:
        """θ [N·P], z [N,...] (see `entering`) → images [N,C,H,W] in [0,1]."""
        n = len(z)
        parts = theta.split([n * size for size in self.sizes])
        weights = iter([part.view(n * shape[0], *shape[1:]) for part, shape in zip(parts, self.shapes, strict=True)])

        def normalised(h: Tensor) -> Tensor:
            return F.batch_norm(h, None, None, 1 + next(weights), next(weights), training=True)

        def convolved(h: Tensor, stride: int = 1) -> Tensor:
            kernel = next(weights)
            h = F.conv2d(h, kernel, stride=stride, padding=kernel.shape[2] // 2, groups=n)
            return F.leaky_relu(normalised(h), 0.2)

        def scale(depth: int, h: Tensor) -> Tensor:
            size = h.shape[2:]
            aside = convolved(h)
            h = convolved(convolved(h, stride=2))
            if depth < self.scales:
                h = scale(depth + 1, h)
            h = F.interpolate(h, size, mode="bilinear")
            both = torch.cat([aside.view(n, -1, *size), h.view(n, -1, *size)], dim=1)
            return convolved(convolved(normalised(both.view(1, -1, *size))))

        h = scale(1, z.reshape(1, -1, *z.shape[2:]))
        return F.conv2d(h, next(weights), next(weights), groups=n).view(n, -1, *z.shape[2:]).sigmoid()
