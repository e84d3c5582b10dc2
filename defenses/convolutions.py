"""Faster forms of the first convolution and of the first dense layer of a convolutional classifier."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F


class ImageConvolution(nn.Conv2d):
    """A convolution of images, whose gradient for the images is a matrix product and a fold.

    It computes the same as `nn.Conv2d`, with the same parameters. For frozen weights on a CPU the gradient for an image
    of one channel takes a sixth to a third of the time; for three channels it is faster too (docs/speed.md). While the
    weights are trained, and on GPUs, it is `nn.Conv2d`.
    """

    def __init__(self, channels: int, made: int, kernel: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__(channels, made, kernel, stride=stride, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.requires_grad or not (x.requires_grad and x.is_cpu):
            return super().forward(x)
        return _Folding.apply(x, self.weight, self.bias, self.stride, self.padding)


class DenseOnMaps(nn.Conv2d):
    """A dense layer on maps [N,C,H,W] → [N,made], computed as a convolution whose kernel covers the whole maps.

    So the maps are not copied to flatten them, which took a twelfth of a pass of `undefended` on CPUs (docs/speed.md).
    Files hold the weights in the form of `nn.Linear`, [made, C·H·W].
    """

    def __init__(self, maps: int, size: tuple[int, int], made: int) -> None:
        super().__init__(maps, made, size)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flatten(1)

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = destination[f"{prefix}weight"].flatten(1)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: object) -> None:
        found = state_dict.get(f"{prefix}weight")
        if found is not None and found.shape == (len(self.weight), self.weight[0].numel()):
            state_dict[f"{prefix}weight"] = found.clone().view_as(self.weight)  # a copy, as it may be this very weight
        super()._load_from_state_dict(state_dict, prefix, *rest)


class _Context(FunctionCtx):
    """What `_Folding` keeps for its backward pass."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    saved_tensors: tuple[Tensor]


class _Folding(torch.autograd.Function):
    """F.conv2d with a gradient for the image alone, which is itself differentiable."""

    @staticmethod
    def forward(
        ctx: _Context, x: Tensor, weight: Tensor, bias: Tensor, stride: tuple[int, ...], padding: tuple[int, ...]
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.size, ctx.stride, ctx.padding = x.shape[2:], stride, padding
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        patches = weight.to(gradient).flatten(1).t() @ gradient.flatten(2)  # autocast may give half precision
        image = F.fold(patches, ctx.size, weight.shape[2:], padding=ctx.padding, stride=ctx.stride)
        return image, None, None, None, None
