"""Outputs of any defense in the one form that attacks compute with: logits without NaN, in the inputs' precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn

from manifold_bench.attacks.batching import padded

SUM = 1e-2
"""Largest difference between 1 and the sum of probabilities: bfloat16 keeps eight bits of each."""


class Scored:
    """A function images → outputs [N,K] or [N,K+1], turned into one that returns logits (`logits_of`).

    It is computed on whole blocks. Where probabilities have underflown to 0, a copy of the function in double precision
    computes them again: double precision reaches down to 1e-308.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], classes: int) -> None:
        self.function, self.classes = function, classes
        self.precise: nn.Module | None = None

    def __call__(self, x: Tensor) -> Tensor:
        outputs = padded(self.function)(x)
        logits = logits_of(outputs, x, self.classes)
        lost = probabilities(outputs, self.classes) & (outputs[:, : self.classes] == 0).any(1)
        if not lost.any() or not isinstance(self.function, nn.Module) or x.dtype == torch.float64:
            return logits
        try:
            self.precise = self.precise or deepcopy(self.function).double()
            outputs = padded(self.precise)(x.double())
        except (RuntimeError, TypeError):  # the module mixes float types, or cannot be copied
            return logits
        return torch.where(lost[:, None], logits_of(outputs, x, self.classes), logits)


def logits_of(outputs: Tensor, x: Tensor, classes: int) -> Tensor:
    """Return outputs [N,K] or [N,K+1] for images x [N,C,H,W] as logits of x's type; a copy, differentiable.

    outputs: of any float type. Outputs that are probabilities become their logarithms, because the gradients of tiny
    probabilities vanish. The order of the outputs stays the same. Raises ValueError if the outputs contain NaN and x
    does not.
    """
    if outputs.isnan().any() and not x.isnan().any():
        raise ValueError("the defense returned NaN for an image")
    likely = probabilities(outputs, classes)
    if not likely.any():
        return narrowed(outputs, x.dtype, classes).clone()
    values = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    return torch.where(likely[:, None], log(values), narrowed(values, x.dtype, classes)).to(x.dtype)


def narrowed(outputs: Tensor, kind: torch.dtype, classes: int) -> Tensor:
    """Return outputs [N,K] or [N,K+1] in another float type, so that the largest one stays the largest; differentiable.

    Rows that the type cannot tell apart (1e9 + 1 and 1e9 + 2, or 1e40 and 2e40, as float32) lose their largest output
    first, and are divided by a power of two where they still overflow or vanish. Probabilities are only rounded.
    """
    narrow = outputs.to(kind)
    if torch.finfo(outputs.dtype).bits <= torch.finfo(kind).bits:
        return narrow
    values = outputs.detach()
    lost = _lost(values, kind) & ~probabilities(values, classes)
    if not lost.any():
        return narrow
    top, spread = _range(values)
    shifted = outputs - top
    exponents = 64 * (spread.clamp_max(torch.finfo(values.dtype).max).frexp().exponent / 64).round().clamp_min(-15)
    factor = torch.full_like(values[:, :1], 2.0) ** -exponents  # in steps, so that neighbours get the same one
    scaled = outputs * factor - top * factor
    apart = (scaled.detach().to(kind) == 0).sum(1) == (values == top).sum(1)
    scales = _lost(shifted.detach(), kind) & apart
    return torch.where(lost[:, None], torch.where(scales[:, None], scaled, shifted).to(kind), narrow)


def _range(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest finite value of each row, and its distance to the smallest one, both [N,1]."""
    finite = values.isfinite()
    top = values.masked_fill(~finite, -torch.inf).amax(1, keepdim=True)
    return top, top - values.masked_fill(~finite, torch.inf).amin(1, keepdim=True)


def _lost(values: Tensor, kind: torch.dtype) -> Tensor:
    """Return in which rows of values a float type cannot hold the order, or less than half of its digits, [N] bool."""
    ordered = values.sort(1).values
    narrow = ordered.to(kind)
    tied = ((ordered[:, 1:] > ordered[:, :-1]) & (narrow[:, 1:] == narrow[:, :-1])).any(1)
    spread = _range(values)[1][:, 0]
    largest = values.masked_fill(~values.isfinite(), 0).abs().amax(1)
    limits = torch.finfo(kind)
    coarse = (spread < largest * math.sqrt(limits.eps)) | (spread < limits.tiny / limits.eps)
    return tied | ((spread > 0) & coarse)


def probabilities(outputs: Tensor, classes: int) -> Tensor:
    """Return which rows of outputs are probabilities, [N] bool: not negative, of sum 1 with or without output K+1."""
    values = outputs.detach().to(torch.promote_types(outputs.dtype, torch.float32))
    totals = torch.stack([values[:, :classes].sum(1), values.sum(1)])
    return (values[:, :classes] >= 0).all(1) & ((totals - 1).abs() <= SUM).any(0)


def log(probabilities: Tensor) -> Tensor:
    """Return the natural logarithm, at least that of the least positive number; its gradient is finite, and 0 at 0."""
    value, kind = probabilities.detach(), torch.finfo(probabilities.dtype)
    slope = torch.where(value > 0, 1 / value.clamp_min(kind.tiny), 0.0)
    return value.clamp_min(0).log().clamp_min(math.log(kind.tiny) + math.log(kind.eps)) + slope * (
        probabilities - value
    )
