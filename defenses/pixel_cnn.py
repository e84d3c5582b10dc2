"""A PixelCNN with gates (van den Oord, Kalchbrenner, Vinyals, Espeholt, Graves and Kavukcuoglu 2016, "Conditional Image
Generation with PixelCNN Decoders", https://arxiv.org/abs/1606.05328), by which defenses purify images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.nn import functional as F

from manifold_bench.defenses.base import LabelledImages, Progress, Settings, Trainable, TrainableSpec
from manifold_bench.defenses.training import Training, device_of, epochs_for, in_batches, initialise, train_module

LEVELS = 256
"""Number of values of a sub-pixel: images have 8 bits, and level k is the value k/255."""

SPAN = 3
"""Size of the kernels: rows and columns of the vertical ones, columns of the horizontal ones."""


@dataclass(frozen=True, kw_only=True)
class PixelCNNSettings(Settings):
    """Settings of `PixelCNN` and of its training.

    width: number of channels of each layer. layers: number of layers.

    epochs, batch_size, rate: number of epochs, batch size and learning rate of the training. An epoch of MNIST takes
    about a quarter of an hour of one CPU core; with 12 epochs, for a GPU, validation images take 1.015 bits per
    dimension.
    """

    width: Annotated[int, Ge(1)] = 32
    layers: Annotated[int, Ge(1)] = 6
    epochs: Annotated[int, Ge(1)] = 1
    batch_size: Annotated[int, Ge(1)] = 64
    rate: Annotated[float, Gt(0)] = 1e-3


@dataclass(frozen=True, kw_only=True)
class PixelCNNSpec(TrainableSpec):
    """Parameters of `PixelCNN`.

    settings: settings of the network and its training, which the defense that is built on it chooses.
    """

    settings: PixelCNNSettings = field(default_factory=PixelCNNSettings)


class Layer(nn.Module):
    """A gated layer: maps of the vertical stack and of the horizontal stack, [N,width,H,W] each → the same shapes.

    At a pixel, the vertical maps depend on those of its row and the rows above, and the horizontal maps on those of its
    column and the columns to the left, and on the vertical maps at the pixel. Both have a shortcut.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.vertical = nn.Conv2d(width, 2 * width, SPAN)
        self.horizontal = nn.Conv2d(width, 2 * width, (1, SPAN))
        self.link = nn.Conv2d(2 * width, 2 * width, 1)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, vertical: Tensor, horizontal: Tensor) -> tuple[Tensor, Tensor]:
        gates = self.vertical(F.pad(vertical, (SPAN // 2, SPAN // 2, SPAN - 1, 0)))
        across = self.horizontal(F.pad(horizontal, (SPAN - 1, 0, 0, 0))) + self.link(gates)
        return vertical + gated(gates), horizontal + self.out(gated(across))


class Head(nn.Module):
    """A dense network at each pixel: maps [N,inputs,H,W] → logits of every level, [N,256,H,W]."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = nn.Conv2d(inputs, hidden, 1)
        self.out = nn.Conv2d(hidden, LEVELS, 1)

    def forward(self, maps: Tensor) -> Tensor:
        return self.out(F.relu(self.hidden(maps)))


class PixelCNN(Trainable):
    """An autoregressive model of 8-bit images: p(x) = Π p(x_i | x_1 … x_{i−1}), by a softmax for each sub-pixel x_i.

    Pixels are in raster order, and within a pixel its channels. Gated convolutions see the pixels before, and a small
    dense network for each channel sees their maps and the pixel's channels before it. The softmax is over 256 values,
    as in PixelDefend. The loss is the mean negative log-likelihood in bits per sub-pixel.
    """

    paper = "oord2016"
    Spec: ClassVar = PixelCNNSpec
    spec: PixelCNNSpec
    layers: Sequence[Layer]
    heads: Sequence[Head]

    def __init__(self, spec: PixelCNNSpec) -> None:
        super().__init__(spec)
        channels, width = spec.shape[0], spec.settings.width
        self.above = nn.Conv2d(channels, width, 1)
        self.left = nn.Conv2d(channels, width, 1)
        self.layers = nn.ModuleList(Layer(width) for _ in range(spec.settings.layers))  # type: ignore[assignment]
        self.heads = nn.ModuleList(Head(width + c, 2 * width) for c in range(channels))  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of every level for every sub-pixel, [N,256,C,H,W], given images x [N,C,H,W] in [0,1]."""
        x = 2 * x - 1  # so that what lies outside of the image, which is 0, is not black
        vertical = self.above(F.pad(x, (0, 0, 1, -1)))
        horizontal = self.left(F.pad(x, (1, -1)))
        for layer in self.layers:
            vertical, horizontal = layer(vertical, horizontal)
        logits = [head(torch.cat([horizontal, x[:, :c]], dim=1)) for c, head in enumerate(self.heads)]
        return torch.stack(logits, dim=2)

    def bits(self, x: Tensor) -> Tensor:
        """Return the mean of −log₂ p(x_i | x_1 … x_{i−1}) over the sub-pixels of each image x [N,C,H,W] → [N]."""
        return F.cross_entropy(self(x), levels(x), reduction="none").flatten(1).mean(1) / math.log(2)

    def greedy(self, x: Tensor, eps: int) -> Tensor:
        """Return images x [N,C,H,W] in [0,1], rounded to 8 bits, after greedy decoding within ± eps levels.

        In raster order, each sub-pixel is set to the most probable of the levels at most eps from its own, given those
        that were set before it. Maps of pixels that are set do not change any more and are kept: the vertical stack is
        computed once for each row, and the horizontal stack once for each pixel. That is the same as to evaluate the
        whole network for each pixel.
        """
        given = levels(x)
        n, channels, height, width = x.shape
        every = torch.arange(LEVELS, device=x.device)
        # images after a row and a column of zeros, and the maps that each layer sees, after zeros as in its padding
        image = x.new_zeros(n, channels, height + 1, width + 1)
        maps, side = self.left.out_channels, SPAN // 2
        rows = [x.new_zeros(n, maps, height + SPAN - 1, width + 2 * side) for _ in self.layers]
        for i in range(height):
            links = []
            vertical = self.above(image[:, :, i : i + 1, 1:])
            for layer, seen in zip(self.layers, rows, strict=True):
                seen[:, :, i + SPAN - 1, side : side + width] = vertical[:, :, 0]
                gates = layer.vertical(seen[:, :, i : i + SPAN])
                vertical = vertical + gated(gates)
                links.append(layer.link(gates)[:, :, 0].unbind(2))
            columns = [x.new_zeros(n, maps, width + SPAN - 1) for _ in self.layers]
            for j in range(width):
                horizontal = at_pixel(self.left, image[:, :, i + 1, j])
                for layer, seen, link in zip(self.layers, columns, links, strict=True):
                    seen[:, :, j + SPAN - 1] = horizontal
                    gates = at_pixel(layer.horizontal, seen[:, :, j : j + SPAN]) + link[j]
                    horizontal = horizontal + at_pixel(layer.out, gated(gates))
                for c, head in enumerate(self.heads):
                    before = torch.cat([horizontal, image[:, :c, i + 1, j + 1]], dim=1)
                    logits = at_pixel(head.out, F.relu(at_pixel(head.hidden, before)))
                    far = (every - given[:, c, i, j, None]).abs() > eps
                    given[:, c, i, j] = logits.masked_fill(far, -torch.inf).argmax(1)
                    image[:, c, i + 1, j + 1] = 2 * values(given[:, c, i, j], x) - 1
        return values(given, x)

    def fit(
        self, train: LabelledImages, validation: LabelledImages, budget: float, seed: int, progress: Progress
    ) -> dict[str, float]:
        settings = self.spec.settings
        initialise(self, seed)

        def step(images: Tensor, labels: Tensor, done: float) -> Tensor:
            return self.bits(images).mean()

        def figures() -> dict[str, float]:
            parts = validation.images[:1000].split(100)
            bits = torch.cat([in_batches(self.bits, part, device_of(self)) for part in parts])
            return {"validation_bits_per_dimension": float(bits.mean())}

        epochs = epochs_for(budget, settings.epochs, len(train))
        training = Training("pixelcnn", seed, epochs, settings.batch_size, settings.rate, mixed_precision=True)
        train_module(self, step, train, training, progress, figures)
        return figures()


def gated(maps: Tensor) -> Tensor:
    """Return tanh(a) σ(b) [N,c,...] for maps [N,2c,...], of which a is the first half and b the second."""
    value, gate = maps.chunk(2, dim=1)
    return torch.tanh(value) * torch.sigmoid(gate)


def levels(x: Tensor) -> Tensor:
    """Return images x in [0,1] rounded to 8 bits, as int64 levels 0 … 255."""
    return ((LEVELS - 1) * x).round().long()


def values(chosen: Tensor, like: Tensor) -> Tensor:
    """Return levels 0 … 255 as values in [0,1] of the type of `like`."""
    return chosen.to(like.dtype) / (LEVELS - 1)


def at_pixel(layer: nn.Conv2d, seen: Tensor) -> Tensor:
    """Return a convolution's outputs at one pixel, [N,made], for what it sees there, [N,C] or [N,C,columns]."""
    return F.linear(seen.flatten(1), layer.weight.flatten(1), layer.bias)
