"""What a defense hands out, in the one form that attacks compute with: logits without NaN, in the inputs' precision."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from manifold_bench.attacks.batching import padded

SUM = 5e-3
"""By how much probabilities may miss a sum of 1: bfloat16 keeps eight bits of each."""

LEAST, SMALLEST = 1.4e-45, 1.2e-38
"""The least positive float32, and the least of full precision."""


def scored(function: Callable[[Tensor], Tensor], classes: int) -> Callable[[Tensor], Tensor]:
    """That function of images → outputs [N,K] or [N,K+1], computed on whole blocks, its outputs as `logits_of` has
    them."""
    return lambda x: logits_of(padded(function)(x), x, classes)


def logits_of(outputs: Tensor, x: Tensor, classes: int) -> Tensor:
    """Outputs of any float type for images x [N,C,H,W] as logits of x's type; a copy, differentiable.

    Where the outputs of an input are probabilities these are their logarithms: a class of probability 1e-30 is no
    nearer by its probability than one of 1e-10, and the gradient would vanish. The order of outputs stays the same.
    Raises ValueError for NaN, which is no answer, unless x has it.
    """
    logits = outputs.to(x.dtype, copy=True)
    if logits.isnan().any() and not x.isnan().any():
        raise ValueError("the defense returned NaN for an image")
    real = logits[:, :classes].detach()
    totals = torch.stack([real.sum(1), logits.detach().sum(1)])  # a reject score may be one of them or apart
    likely = (real >= 0).all(1) & ((totals - 1).abs() <= SUM).any(0)
    return torch.where(likely[:, None], log(logits), logits) if likely.any() else logits


def log(probabilities: Tensor) -> Tensor:
    """Natural logarithm, at least that of the least positive float32; its gradient is finite, and 0 at 0."""
    value = probabilities.detach()
    slope = torch.where(value > 0, 1 / value.clamp_min(SMALLEST), 0.0)
    return value.clamp_min(LEAST).log().clamp_min(-103.28) + slope * (probabilities - value)
