"""Random changes of training images that do not change their class."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def shifted(images: Tensor, most: int) -> Tensor:
    """Return images [N,C,H,W], each shifted at random by up to `most` pixels in both directions; zeros move in."""
    if most == 0:
        return images
    height, width = images.shape[-2:]
    every_shift = F.pad(images, [most] * 4).unfold(2, height, 1).unfold(3, width, 1)  # [N,C,rows,columns,H,W], a view
    rows, columns = torch.randint(0, 2 * most + 1, (2, len(images)), device=images.device)
    return every_shift[torch.arange(len(images), device=images.device), :, rows, columns]


def warped(images: Tensor, angle: float = 0.2, scale: float = 0.1, shift: float = 0.12) -> Tensor:
    """Return images [N,C,H,W], each rotated, scaled and shifted at random, with zeros moving in.

    angle: largest rotation in radians. scale: largest relative change of the size. shift: largest shift as a share of
    half the image's size.
    """
    n = len(images)
    draw = (2 * torch.rand(4, n, device=images.device) - 1).double()
    turn, size, across, down = angle * draw[0], 1 + scale * draw[1], shift * draw[2], shift * draw[3]
    rows = [
        torch.stack([size * turn.cos(), -size * turn.sin(), across], dim=1),
        torch.stack([size * turn.sin(), size * turn.cos(), down], dim=1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1).to(images.dtype), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
