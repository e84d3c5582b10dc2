"""Batches of whole blocks, so that an input has the same result in any batch, and memory stays bounded."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BLOCK = 8
"""Batches are padded to a multiple of this number of rows. Matrix kernels round differently for other numbers of rows;
with whole blocks an input's logits and gradients are the same bits in every batch."""


MOST_ROWS, MOST_VALUES = 256, 256 * 28 * 28
"""Largest numbers of inputs and of pixel values in a batch. On a GPU 16 times as many values are allowed."""


def batch_rows(x: Tensor) -> int:
    """Return the batch size for inputs like those of x [N,...]: a multiple of BLOCK, smaller for larger images.

    It bounds memory. It depends on the shape of the images and the kind of device alone, never on free memory, because
    a randomized defense draws random numbers batch by batch.
    """
    values = MOST_VALUES * (16 if x.is_cuda else 1)
    return max(BLOCK, min(MOST_ROWS, values // x.shape[1:].numel()) // BLOCK * BLOCK)


def pad_to_block(x: Tensor) -> Tensor:
    """Return a copy of x [N,...] with its last row repeated up to a multiple of BLOCK.

    It is always a copy, because the function that gets it may change it in place.
    """
    missing = -len(x) % BLOCK
    return torch.cat([x, x[-1:].expand(missing, *x.shape[1:])]) if missing else x.clone()


def all_rows(x: Tensor) -> Tensor:
    """Return the indices 0..N−1 of the inputs x [N,...], [N] int64."""
    return torch.arange(len(x), device=x.device)


def remaining(going: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the rows of each tensor [N,...] where `going` [N] is true; the others leave the batch."""
    if going.all():
        return tensors
    left = going.nonzero()[:, 0]
    return tuple(tensor.index_select(0, left) for tensor in tensors)


def padded(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return the same function of x [N,...], computed on a whole number of blocks."""
    return lambda x: function(pad_to_block(x))[: len(x)]


def blockwise(function: Callable[[Tensor], Tensor], x: Tensor, batch_size: int | None = None) -> Tensor:
    """Return function(x) [N,...], computed in padded batches and without gradient; the same bits in any batch.

    batch_size: number of inputs in each batch; None: `batch_rows`.
    """
    with torch.no_grad():
        return torch.cat([padded(function)(part) for part in x.split(batch_size or batch_rows(x))])
