"""Threat models: norms, balls around an input, and the distances that the judge measures."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

Norm = Literal["linf", "l2", "l0", "unrestricted", "fooling"]
"""Norms of perturbations. `unrestricted`: any image. `fooling`: inputs are noise, and accepted noise is a success."""

NORMS: tuple[Norm, ...] = get_args(Norm)

UNBOUNDED: tuple[Norm, ...] = ("unrestricted", "fooling")
"""Norms in which any image is allowed: there is no ε, and distances are measured in L2."""


TOLERANCE: dict[Norm, float] = {"linf": 1e-6, "l2": 1e-5, "l0": 0.0, "unrestricted": 0.0, "fooling": 0.0}
"""How far a distance may exceed ε because of rounding: this share of ε, plus this number."""


GRIDS = (16, 255, 65535)
"""Numbers of steps from black to white that data sets use: scikit-learn's digits, 8 bits and 16 bits."""


def flat_norm(delta: Tensor, norm: Norm) -> Tensor:
    """Return the norm of each perturbation, delta [N,...] → [N]; for norms without ε, the L2 norm.

    `l0` counts changed pixels; a pixel of delta [N,C,H,W] counts once however many of its channels changed.
    """
    if norm == "l0":
        changed = (delta != 0).flatten(2).any(1) if delta.dim() > 2 else delta != 0
        return changed.flatten(1).sum(1).to(delta.dtype)
    flat = delta.flatten(1)
    return flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)


def expand(values: Tensor, like: Tensor) -> Tensor:
    """Return values [N] as [N,1,1,...] with as many dimensions as `like`, for arithmetic row by row."""
    return values.view(-1, *[1] * (like.dim() - 1))


def project(x: Tensor, origin: Tensor, norm: Norm, eps: float) -> Tensor:
    """Return the point of the ε-ball around `origin` nearest to each x, clipped to [0,1]. Shapes [N,C,H,W].

    The box is applied last: it can only shrink the distance to an origin that lies in the box, so the ball holds too.
    """
    if norm == "linf":
        return x.clamp(origin - eps, origin + eps).clamp_(0, 1)
    if norm == "l2":
        delta = x - origin
        length = flat_norm(delta, "l2")
        factor = (eps / length.clamp_min(1e-12)).clamp_max(1.0)
        return (origin + delta * expand(factor, delta)).clamp(0, 1)
    if norm == "l0":
        delta = x - origin
        size = delta.abs().amax(1).flatten(1)  # a pixel's change, over its channels
        kept = torch.zeros_like(size, dtype=torch.bool)
        count = min(int(eps), size.shape[1])
        if count:
            kept.scatter_(1, size.topk(count, dim=1).indices, True)
        mask = kept.view(x.shape[0], 1, *x.shape[2:])
        return torch.where(mask, x, origin).clamp(0, 1)
    return x.clamp(0, 1)


def inside(x: Tensor, origin: Tensor, norm: Norm, eps: float) -> Tensor:
    """Return whether each x [N,C,H,W] is finite, within [0,1] up to 1e-6, and within ε of its origin → [N] bool."""
    flat = x.flatten(1)
    finite = flat.isfinite().all(1)
    boxed = (flat.amin(1) >= -1e-6) & (flat.amax(1) <= 1 + 1e-6)
    if norm in UNBOUNDED:
        return finite & boxed
    # float64, because rounding of the distance itself must be smaller than the tolerance
    return finite & boxed & within(flat_norm(x.double() - origin.double(), norm), norm, eps)


def within(distance: Tensor, norm: Norm, eps: float) -> Tensor:
    """Return whether distances [N] in that norm are at most ε, up to the `TOLERANCE` for rounding → [N] bool."""
    tolerance = TOLERANCE[norm]
    return distance <= eps * (1 + tolerance) + tolerance


def grey_levels(x: Tensor) -> int | None:
    """Return how many steps from black to white the pixels of x have (255: 8-bit images); None: they are on no grid."""
    for levels in GRIDS:
        scaled = x * levels
        if (scaled - scaled.round()).abs().max() < 1e-3:
            return levels
    return None


def on_the_grid(point: Tensor, x: Tensor, levels: int) -> Tensor:
    """Round points to the grid of `levels` steps, towards their origin x, so that they stay within its ball."""
    scaled = (point * levels).double()
    towards = torch.where(point >= x, (scaled + 1e-3).floor(), (scaled - 1e-3).ceil())
    return (towards / levels).to(x.dtype).clamp(0, 1)


def input_seeds(x: Tensor, seed: int) -> list[int]:
    """Return a seed for each input x [N,...]; it depends on the input's pixels and on `seed`, not on its batch."""
    rows = x.detach().to("cpu", torch.float32).contiguous().numpy()
    prefix = str(seed).encode()
    return [int.from_bytes(hashlib.blake2b(prefix + row.tobytes(), digest_size=7).digest()) for row in rows]


def draw_per_input(x: Tensor, seed: int, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
    """Return draw(generator) for each input, stacked; each generator has the seed of its input (`input_seeds`)."""
    rows = [draw(torch.Generator().manual_seed(s)) for s in input_seeds(x, seed)]
    return torch.stack(rows).to(x.device, x.dtype) if rows else torch.empty_like(x)


def random_in_ball(x: Tensor, norm: Norm, eps: float, seed: int) -> Tensor:
    """Return a random point of the ε-ball around each x [N,C,H,W], clipped to [0,1]; uniform in the L∞ or L2 ball.

    In L0, `eps` random pixels get random values. In the norms without ε, every pixel is random.
    """
    shape = x.shape[1:]

    def delta(generator: torch.Generator) -> Tensor:
        if norm == "l2":
            direction = torch.randn(shape, generator=generator)
            radius = torch.rand((), generator=generator) ** (1 / direction.numel())
            return direction / direction.norm() * radius * eps
        return torch.rand(shape, generator=generator)

    noise = draw_per_input(x, seed, delta)
    if norm == "linf":
        return project(x + (2 * noise - 1) * eps, x, norm, eps)
    if norm == "l2":
        return project(x + noise, x, norm, eps)
    if norm == "l0":
        order = draw_per_input(x, seed + 1, lambda g: torch.rand(shape[1:], generator=g)).flatten(1)
        kept = torch.zeros_like(order, dtype=torch.bool)
        kept.scatter_(1, order.topk(min(int(eps), order.shape[1]), dim=1).indices, True)
        return torch.where(kept.view(x.shape[0], 1, *shape[1:]), noise, x)
    return noise
