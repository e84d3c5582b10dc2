"""The convolution that sees the image: few channels in, many out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ImageConvolution(nn.Conv2d):
    """A convolution of images whose gradient for them is a matrix product and a fold.

    The same as `nn.Conv2d`, with the same parameters; the gradient that an attack asks of a frozen network takes a
    sixth of the time to the one channel of a digit, half to three channels, on CPUs (docs/speed.md). While its weights
    learn, and on GPUs, it is torch's own in all.
    """

    def __init__(self, channels: int, made: int, kernel: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__(channels, made, kernel, stride=stride, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.requires_grad or not (x.requires_grad and x.is_cpu):
            return super().forward(x)
        return _Folding.apply(x, self.weight, self.bias, self.stride, self.padding)


class _Folding(torch.autograd.Function):
    """F.conv2d, differentiable in the image alone, as often as wanted."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: tuple[int, ...], padding: tuple[int, ...]
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.size, ctx.stride, ctx.padding = x.shape[2:], stride, padding
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        patches = weight.flatten(1).t() @ gradient.flatten(2)
        image = F.fold(patches, ctx.size, weight.shape[2:], padding=ctx.padding, stride=ctx.stride)
        return image, None, None, None, None
