"""Random changes of training images that leave their class as it is."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def shifted(images: Tensor, most: int) -> Tensor:
    """Each image [N,C,H,W] moved by up to `most` pixels in both directions, zeros moving in."""
    if most == 0:
        return images
    height, width = images.shape[-2:]
    every_shift = F.pad(images, [most] * 4).unfold(2, height, 1).unfold(3, width, 1)  # [N,C,rows,columns,H,W], a view
    rows, columns = torch.randint(0, 2 * most + 1, (2, len(images)), device=images.device)
    return every_shift[torch.arange(len(images), device=images.device), :, rows, columns]


def warped(images: Tensor, angle: float = 0.2, scale: float = 0.1, shift: float = 0.12) -> Tensor:
    """Each image [N,C,H,W] turned by up to `angle` radians, scaled by up to `scale`, shifted by up to `shift` of its
    half size, at random; zeros move in. With few labels the classes must learn what doesn't matter."""
    n = len(images)
    draw = (2 * torch.rand(4, n, device=images.device) - 1).double()
    turn, size, across, down = angle * draw[0], 1 + scale * draw[1], shift * draw[2], shift * draw[3]
    rows = [
        torch.stack([size * turn.cos(), -size * turn.sin(), across], dim=1),
        torch.stack([size * turn.sin(), size * turn.cos(), down], dim=1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1).to(images.dtype), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
