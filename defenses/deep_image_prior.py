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

from manifold_bench.attacks.adam import Moments
from manifold_bench.attacks.threat import input_seeds
from manifold_bench.defenses.base import Defense, DefenseSpec
from manifold_bench.defenses.pretrained import Behind, classifier_behind
from manifold_bench.defenses.projection_gradients import straight_through
from manifold_bench.defenses.solvers import mean_squared_error

AT_ONCE = 16
"""Number of images whose networks are fitted together on a CPU; more do not fit into its caches."""

UNROLLED_AT_ONCE = 4
"""The same number where the fit is differentiated, because that keeps the values of every differentiated step."""

FLOOR = 1e-16
"""Least v̂ in the differentiated steps of Adam; its root has no derivative at 0, and is as large as epsilon here."""


@dataclass(frozen=True, kw_only=True)
class DeepImagePriorSpec(DefenseSpec):
    """Parameters of `DeepImagePrior`.

    scales: number of times that a network halves the size of the image (5 in Ulyanov et al. 2018). channels: number of
    channels of the networks' convolutions (128 in Ulyanov et al. 2018). skip: number of channels of each skip
    connection (4 in Ulyanov et al. 2018). noise: number of channels of the noise input z₀ (32 in Ulyanov et al. 2018).

    steps: number of steps of the fit by Adam, which stops early. rate: learning rate of the fit.
    jitter: standard deviation of random numbers that are added to the noise input in every step.
    averaging: decay of the outputs' running mean, which is classified.
    seed: seed of the weights, the noise input and the jitter.
    classifier: the classifier of the networks' outputs, `undefended` or `pretrained`.

    The number of steps was chosen on 48 validation images of MNIST. After 25, 50, 100, 200 and 400 steps, 90, 100, 100,
    100 and 100 % of the clean images are right, and 71, 79, 67, 46 and 33 % of FGSM's images on the classifier at L∞
    0.2 (21 % without the defense). On 100 other images, 50 steps get 98 % of the clean ones right, and 54 % at 0.2
    (16 % without the defense).
    """

    scales: Annotated[int, Ge(1)] = 2
    channels: Annotated[int, Ge(1)] = 32
    skip: Annotated[int, Ge(1)] = 4
    noise: Annotated[int, Ge(1)] = 32
    steps: Annotated[int, Ge(1)] = 50
    rate: Annotated[float, Gt(0)] = 0.01
    jitter: Annotated[float, Ge(0)] = 1 / 30
    averaging: Annotated[float, Ge(0), Lt(1)] = 0.99
    seed: int = 0
    classifier: Behind = "undefended"

    def __post_init__(self) -> None:
        side = min(self.shape[1:])
        most = max(0, (side - 1).bit_length() - 1)  # a map of a single pixel cannot be normalised
        if self.scales > most:
            raise ValueError(f"scales: images {side} pixels wide or high have at most {most} scales, not {self.scales}")


class DeepImagePrior(Defense):
    """Fits an untrained network to the input, stops early, and classifies the network's output.

    It answers C(f_θ*(z₀)), where θ* fits the network to x from random weights, argmin_θ ‖f_θ(z₀) − x‖².

    Such a network learns the structure of natural images first (Ulyanov et al. 2018); the classifier C is `undefended`,
    or `pretrained` for photographs.

    The random θ, z₀ and jitter of an input follow from its pixels and the spec's seed, so that its answer depends on
    the input alone. With a warm start all fits of an attacked input share the first steps, taken on the attack's first
    point, and differ in the last `inner_steps`: a fit that continued the last one would come closer to the attacker's
    image than the deployed fit, which stops early.

    The gradient mode `identity` passes the fit unchanged (BPDA). `unrolled` differentiates the last `inner_steps` steps
    of Adam, which pull the weights towards x, and takes the weights before them as constant.
    """

    paper = "ilyas2017"
    Spec: ClassVar = DeepImagePriorSpec
    family: ClassVar[str] = "projection"
    parts: ClassVar[tuple[str, ...]] = ("classifier",)
    gradient_modes: ClassVar[tuple[str, ...]] = ("identity", "unrolled")
    spec: DeepImagePriorSpec

    def __init__(self, spec: DeepImagePriorSpec) -> None:
        super().__init__(spec)
        self.classifier: Defense = classifier_behind(spec.classifier, spec)
        self.networks = SkipNetworks(spec.shape, spec.scales, spec.channels, spec.skip, spec.noise)

    @property
    def inference_steps(self) -> int:
        return self.spec.steps

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(straight_through(x, self.perceived(x)))

    def attack_forward(self, x: Tensor, gradient: str, start: Tensor | None, inner_steps: int) -> tuple[Tensor, Tensor]:
        """See `Defense.attack_forward`."""
        unrolled = gradient == "unrolled"
        fitted, shared = self.fit_networks(x, start, inner_steps, unrolled)
        return self.classifier(fitted if unrolled else straight_through(x, fitted)), shared

    def perceived(self, x: Tensor) -> Tensor:
        """Return f_θ*(z₀) for images x [N,C,H,W]: the running mean of the networks' outputs, same shape."""
        return self.fit_networks(x, None, self.spec.steps)[0]

    def fit_networks(
        self, x: Tensor, start: Tensor | None, inner_steps: int, unrolled: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Fit networks to images x [N,C,H,W]; return their outputs [N,C,H,W], and their states before the last steps.

        The states [N,S] are those before the last `inner_steps` steps. start: such states, of these inputs or of ones
        near them, from which only the last steps are taken; None: all steps are taken, from random θ and z₀.
        unrolled: whether the outputs have a gradient with respect to x, through the last `inner_steps` steps.
        """
        at_once = (UNROLLED_AT_ONCE if unrolled else AT_ONCE) if x.device.type == "cpu" else max(1, len(x))
        images = (x if unrolled else x.detach()).split(at_once)
        starts = [None] * len(images) if start is None else start.split(at_once)
        parts = [self._fit(*part, inner_steps) for part in zip(images, starts, strict=True)]
        fitted, shared = zip(*parts, strict=True)
        return torch.cat(fitted), torch.cat(shared)

    def _fit(self, x: Tensor, start: Tensor | None, inner_steps: int) -> tuple[Tensor, Tensor]:
        """Fit the networks of images that are fitted together, as `fit_networks` does; unrolled if x has a gradient."""
        spec, networks, n = self.spec, self.networks, len(x)
        randoms = [torch.Generator().manual_seed(seed) for seed in input_seeds(x, spec.seed)]
        before = max(0, spec.steps - inner_steps)
        first = 0 if start is None else before
        sizes = [networks.size] * 3 + [math.prod(networks.entering), x[0].numel()]
        if start is None:
            weights = torch.stack([networks.random_weights(random) for random in randoms])
            z = torch.stack([0.1 * torch.rand(networks.entering, generator=random) for random in randoms])
            means, average = torch.zeros(n, 2 * networks.size), torch.zeros(n, sizes[-1])
            start = torch.cat([weights, means, z.flatten(1), average], dim=1).to(x)
        *learnt, flat_z, flat_average = start.split(sizes, dim=1)
        theta, mean, square = (networks.by_layer(rows) for rows in learnt)
        moments = Moments(mean, square)
        z, average = flat_z.view(n, *networks.entering), flat_average.view_as(x)
        for number in range(first, spec.steps):
            if number == before:
                learnt = [networks.by_image(values.detach(), n) for values in (theta, *moments)]
                shared = torch.cat([*learnt, z.flatten(1), average.flatten(1)], dim=1)
            jitter = torch.stack([torch.randn(networks.entering, generator=random) for random in randoms]).to(x)
            kept = number >= before and x.requires_grad and torch.is_grad_enabled()
            with torch.enable_grad():  # an attack may call this under no_grad
                theta = theta if theta.requires_grad else theta.requires_grad_(True)
                output = networks(theta, z + spec.jitter * jitter)
                (gradient,) = torch.autograd.grad(mean_squared_error(output, x).sum(), theta, create_graph=kept)
            if not kept:
                output, theta = output.detach(), theta.detach()
            average = spec.averaging * average + (1 - spec.averaging) * output
            moments = moments.after(gradient)
            theta = theta - moments.step(spec.rate, number + 1, epsilon=1e-8, floor=FLOOR if kept else 0.0)
        return average / (1 - spec.averaging**spec.steps), shared


class SkipNetworks:
    """N encoder–decoder networks with skip connections, one for each image (figure 21 of Ulyanov et al. 2018).

    At every scale the input takes two ways: through a 1×1 convolution to `skip` channels; and through two 3×3
    convolutions, the first of stride 2, to the next scale, whose output is upsampled (bilinear). A 3×3 and a 1×1
    convolution join both. A last 1×1 convolution and a sigmoid make the image. All other convolutions have `channels`
    channels, are normalised over the pixels of an image and channel, and are followed by a leaky ReLU of slope 0.2.
    The paper pads by reflection, this code with zeros.

    The weights θ of N networks are one tensor [N·P], layer by layer and within a layer image by image, so that a layer
    of all networks is one grouped convolution. entering: shape of z₀. size: P.
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
        """Shapes of the weights of one network, in the order in which they are used."""
        self.sizes = [math.prod(shape) for shape in self.shapes]
        self.size = sum(self.sizes)

    def random_weights(self, random: torch.Generator) -> Tensor:
        """Return random θ of one network, [P], as torch does: uniform within 1/√inputs, scales 1, shifts 0."""

        def draw(shape: tuple[int, ...]) -> Tensor:
            if len(shape) == 1:
                return torch.zeros(shape)  # a scale is stored as its difference from 1
            return (2 * torch.rand(math.prod(shape), generator=random) - 1) / math.sqrt(math.prod(shape[1:]))

        return torch.cat([draw(shape) for shape in self.shapes])

    def by_layer(self, rows: Tensor) -> Tensor:
        """Reorder weights [N,P] with a row for each image to [N·P]."""
        return torch.cat([part.flatten() for part in rows.split(self.sizes, dim=1)])

    def by_image(self, layers: Tensor, n: int) -> Tensor:
        """Reorder weights [N·P] to [N,P] with a row for each of n images."""
        return torch.cat([part.view(n, -1) for part in layers.split([n * size for size in self.sizes])], dim=1)

    def __call__(self, theta: Tensor, z: Tensor) -> Tensor:
        """Return the networks' images [N,C,H,W] in [0,1] for weights θ [N·P] and inputs z [N,...] (see `entering`)."""
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
