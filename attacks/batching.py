"""Batches of whole blocks, so that an input has the same bits in any batch and memory stays bounded."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BLOCK = 8
"""Batches are padded to a multiple of this. Matrix kernels round differently for ragged row counts; with whole
blocks an input's logits and gradients are the same bits whatever batch it is in."""


MOST_ROWS, MOST_VALUES = 256, 256 * 28 * 28
"""Of a batch: inputs, and pixel values of all of them. A GPU has room for 16 times as many values."""


def batch_rows(x: Tensor) -> int:
    """How many inputs like those of x [N,...] are handled at once: whole blocks, fewer of large images.

    So memory is bounded, however many inputs there are and however large they are. It follows from the images' shape
    and the kind of device alone, not from what is free: a randomized defense draws by the batch.
    """
    values = MOST_VALUES * (16 if x.is_cuda else 1)
    return max(BLOCK, min(MOST_ROWS, values // x.shape[1:].numel()) // BLOCK * BLOCK)


def pad_to_block(x: Tensor) -> Tensor:
    """A copy of x [N,...] with its last row repeated up to a multiple of BLOCK.

    It is a copy always, since what it is handed to may change it in place.
    """
    missing = -len(x) % BLOCK
    return torch.cat([x, x[-1:].expand(missing, *x.shape[1:])]) if missing else x.clone()


def all_rows(x: Tensor) -> Tensor:
    """The indices of all inputs of x [N,...]: [N] int64."""
    return torch.arange(len(x), device=x.device)


def remaining(going: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Each of the tensors [N,...] without the inputs that leave the batch: the rows where `going` [N] is true."""
    if going.all():
        return tensors
    left = going.nonzero()[:, 0]
    return tuple(tensor.index_select(0, left) for tensor in tensors)


def padded(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The same function of x [N,...], computed on a whole number of blocks."""
    return lambda x: function(pad_to_block(x))[: len(x)]


def blockwise(function: Callable[[Tensor], Tensor], x: Tensor, batch_size: int | None = None) -> Tensor:
    """function(x) [N,...] in padded batches, without gradient; the same bits for an input in any batch.

    batch_size: inputs in each; None: `batch_rows`.
    """
    with torch.no_grad():
        return torch.cat([padded(function)(part) for part in x.split(batch_size or batch_rows(x))])
