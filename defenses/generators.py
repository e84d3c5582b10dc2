"""Encoders and decoders between images [N,C,H,W] in [0,1] and latent vectors [N,k], for any image size."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def doubling_sizes(size: int, doublings: int) -> list[int]:
    """Sizes from the coarsest up to `size`, each at most twice the one before: 28, 3 → [4, 7, 14, 28]."""
    sizes = [size]
    for _ in range(doublings):
        sizes.insert(0, (sizes[0] + 1) // 2)
    return sizes


class DeconvolutionalGenerator(nn.Module):
    """Latents → a dense layer to 4·`width` maps → three 5×5 transposed convolutions of stride 2 → sigmoid.

    On 28×28 with width 8 the first maps are 4·4·32, the generator of Ilyas et al. 2017 for MNIST (their figures for
    the inner channels are unpublished; halving them from layer to layer is ours, after Gulrajani et al. 2017).
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
        h = self.dense(z).view(len(z), -1, *self.sizes[0])
        for layer, (height, rows) in zip(self.layers, self.sizes[1:], strict=True):
            h = layer(F.relu(h))[:, :, :height, :rows]
        return torch.sigmoid(h)


class PoolingEncoder(nn.Module):
    """Convolution, max-pooling, convolution, max-pooling, dense, with ReLU: images → `outputs` numbers each."""

    def __init__(self, shape: tuple[int, int, int], outputs: int, width: int = 32, hidden: int = 256) -> None:
        super().__init__()
        channels, height, rows = shape
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.dense = nn.Linear(2 * width * (height // 4) * (rows // 4), hidden)
        self.output = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = F.max_pool2d(F.relu(self.conv1(x)), 2)
        h = F.max_pool2d(F.relu(self.conv2(h)), 2)
        return self.output(F.relu(self.dense(torch.flatten(h, 1))))


class UpsamplingDecoder(nn.Module):
    """Dense, then twice (upsampling, convolution) with ReLU, and a sigmoid: latents [N,k] → images."""

    def __init__(self, shape: tuple[int, int, int], latent: int, width: int = 32, hidden: int = 256) -> None:
        super().__init__()
        channels, height, rows = shape
        self.sizes = list(zip(doubling_sizes(height, 2), doubling_sizes(rows, 2), strict=True))
        self.dense1 = nn.Linear(latent, hidden)
        self.dense2 = nn.Linear(hidden, 2 * width * self.sizes[0][0] * self.sizes[0][1])
        self.conv1 = nn.Conv2d(2 * width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = F.relu(self.dense2(F.relu(self.dense1(z))))
        h = h.view(len(z), -1, *self.sizes[0])
        h = F.relu(self.conv1(F.interpolate(h, size=self.sizes[1])))
        return torch.sigmoid(self.conv2(F.interpolate(h, size=self.sizes[2])))
