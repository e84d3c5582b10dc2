"""Encoders and decoders between images [N,C,H,W] in [0,1] and latent vectors [N,k], for any image size."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manifold_bench.defenses.convolutions import ImageConvolution


def doubling_sizes(size: int, doublings: int) -> list[int]:
    """Return sizes from the coarsest up to `size`, each at most twice the one before: 28, 3 → [4, 7, 14, 28]."""
    sizes = [size]
    for _ in range(doublings):
        sizes.insert(0, (sizes[0] + 1) // 2)
    return sizes


class DeconvolutionalGenerator(nn.Module):
    """A decoder: latents [N,k] → dense layer to 4·`width` maps → three 5×5 transposed convolutions, stride 2 → sigmoid.

    For 28×28 images and width 8 the first maps have 4·4·32 values, as in the generator of Ilyas et al. 2017 for MNIST.
    They do not publish the numbers of inner channels; here they are halved from layer to layer, as in Gulrajani et al.
    2017.
    """

    def __init__(self, shape: tuple[int, int, int], latent: int, width: int = 8) -> None:
        super().__init__()
        channels, height, rows = shape
        self.latent = latent
        self.sizes = list(zip(doubling_sizes(height, 3), doubling_sizes(rows, 3), strict=True))
        self.dense = nn.Linear(latent, 4 * width * self.sizes[0][0] * self.sizes[0][1])
        maps = [4 * width, 2 * width, width, channels]
        self.layers = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 5, stride=2, padding=2, output_padding=1) for a, b in pairwise(maps)
        )

    def forward(self, z: Tensor) -> Tensor:
        h = self.dense(z).unflatten(1, (-1, *self.sizes[0]))
        h = h.contiguous(memory_format=torch.channels_last)  # a third faster on CPUs, with gradients too
        *inner, last = cast(Iterable[nn.ConvTranspose2d], self.layers)
        for layer, (height, rows) in zip(inner, self.sizes[1:-1], strict=True):
            h = layer(F.relu(h))[:, :, :height, :rows]
        height, rows = self.sizes[-1]
        # for one or three output maps this takes half the time of a transposed convolution, with gradients too
        return torch.sigmoid(in_phases(F.relu(h), phases(last.weight), last.bias)[:, :, :height, :rows])


def in_phases(h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return maps [N,D,2H,2W] for maps h [N,C,H,W], by a convolution that makes the four pixels of each position.

    weight: [4·D,C,3,3], from `phases` or `doubling_phases`. bias: [D].
    """
    assert bias is not None
    return F.pixel_shuffle(F.conv2d(h, weight, bias.repeat_interleave(4), padding=1), 2)


def phases(weight: Tensor) -> Tensor:
    """Return the weights of a 3×3 convolution for `in_phases` that equals a 5×5 transposed convolution of stride 2.

    The transposed convolution has padding 2 and output padding 1. Weights [C,D,5,5] → [4·D,C,3,3]: even and odd rows
    and columns of the output each depend on every other row and column of the kernel. The maps are in the order of
    `pixel_shuffle`.
    """
    maps, made = weight.shape[:2]
    split = F.pad(weight, (0, 1, 0, 1)).view(maps, made, 3, 2, 3, 2).flip(2, 4)
    return split.permute(1, 3, 5, 0, 2, 4).reshape(4 * made, maps, 3, 3).contiguous(memory_format=torch.channels_last)


class DenseDecoder(nn.Module):
    """A decoder: latents [N,k] → two hidden layers, leaky ReLU of slope 0.1 → sigmoid.

    It is the decoder k-500-500-784 of Ilyas et al. 2017.
    """

    def __init__(self, shape: tuple[int, int, int], latent: int, hidden: int = 500) -> None:
        super().__init__()
        self.shape = shape
        self.layers = nn.ModuleList([nn.Linear(latent, hidden), nn.Linear(hidden, hidden)])
        self.output = nn.Linear(hidden, math.prod(shape))

    def forward(self, z: Tensor) -> Tensor:
        for layer in self.layers:
            z = F.leaky_relu(layer(z), 0.1)
        return torch.sigmoid(self.output(z)).view(len(z), *self.shape)


class PoolingEncoder(nn.Module):
    """An encoder: images → three times (3×3 convolution, max-pooling), then dense, all with ReLU → [N,outputs].

    width: number of channels of the first convolution; each further one has twice as many. hidden: number of units of
    the dense layer.
    """

    def __init__(self, shape: tuple[int, int, int], outputs: int, width: int = 32, hidden: int = 128) -> None:
        super().__init__()
        channels, height, rows = shape
        first = ImageConvolution(channels, width, 3, padding=1)
        inner = (nn.Conv2d(a, 2 * a, 3, padding=1) for a in (width, 2 * width))
        self.layers = nn.ModuleList([first, *inner])
        self.dense = nn.Linear(4 * width * (height // 8) * (rows // 8), hidden)
        self.output = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.relu(F.max_pool2d(layer(x), 2))  # the maximum first, so that ReLU has a fourth of the values
        return self.output(F.relu(self.dense(torch.flatten(x, 1))))


class UpsamplingDecoder(nn.Module):
    """A decoder, the mirror of `PoolingEncoder`: latents [N,k] → images.

    It has two dense layers and three times (upsampling, 3×3 convolution), with ReLU, and a sigmoid.
    """

    def __init__(self, shape: tuple[int, int, int], latent: int, width: int = 32, hidden: int = 128) -> None:
        super().__init__()
        channels, height, rows = shape
        self.sizes = list(zip(doubling_sizes(height, 3), doubling_sizes(rows, 3), strict=True))
        maps = [4 * width, 2 * width, width, channels]
        self.dense1 = nn.Linear(latent, hidden)
        self.dense2 = nn.Linear(hidden, maps[0] * self.sizes[0][0] * self.sizes[0][1])
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(maps))

    def forward(self, z: Tensor) -> Tensor:
        h = F.relu(self.dense2(F.relu(self.dense1(z)))).view(len(z), -1, *self.sizes[0])
        *inner, last = cast(Iterable[nn.Conv2d], self.layers)
        for layer, size in zip(inner, self.sizes[1:-1], strict=True):
            h = layer(F.interpolate(F.relu(h), size=size))
        h, (height, rows) = F.relu(h), self.sizes[-1]
        if height % 2 or rows % 2:
            return torch.sigmoid(last(F.interpolate(h, size=(height, rows))))
        # this takes a third of the time of upsampling first, with gradients too
        return torch.sigmoid(in_phases(h, doubling_phases(last.weight), last.bias))


def doubling_phases(weight: Tensor) -> Tensor:
    """Return the weights of a 3×3 convolution for `in_phases` that equals a 3×3 convolution after upsampling by 2.

    Weights [D,C,3,3] → [4·D,C,3,3], in the order of `pixel_shuffle`. An even row of the output depends once on the row
    above and twice on its own row before upsampling, an odd row twice on its own row and once on the row below; columns
    likewise.
    """
    seen = weight.new_tensor([[[1, 0, 0], [0, 1, 1], [0, 0, 0]], [[0, 0, 0], [1, 1, 0], [0, 0, 1]]])
    split = torch.einsum("pik,qjl,dckl->dpqcij", seen, seen, weight)
    return split.flatten(0, 2).contiguous(memory_format=torch.channels_last)
