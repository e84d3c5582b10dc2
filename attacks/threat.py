"""What an attacker may do to an image: norms, balls around an input, and the distances that are judged."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

Norm = Literal["linf", "l2", "l0", "unrestricted", "fooling"]
"""`fooling` has no image to stay near: the inputs are noise, and success is an answer that accepts them."""

NORMS: tuple[Norm, ...] = get_args(Norm)

UNBOUNDED: tuple[Norm, ...] = ("unrestricted", "fooling")
"""Those in which any image is allowed: there is no ε, and distances are told in L2."""


TOLERANCE: dict[Norm, float] = {"linf": 1e-6, "l2": 1e-5, "l0": 0.0, "unrestricted": 0.0, "fooling": 0.0}
"""What a distance may exceed ε by, for rounding: this share of ε, and as much again absolutely."""


GRIDS = (16, 255, 65535)
"""Steps from black to white of the pixel values that data sets have: scikit-learn's digits, 8 and 16 bits."""


def flat_norm(delta: Tensor, norm: Norm) -> Tensor:
    """Norm of each perturbation. delta: [N,...] → [N]; the unbounded ones in L2, `l0` counts changed pixels.

    A pixel counts once for `l0` however many of its channels changed (delta [N,C,H,W]).
    """
    if norm == "l0":
        changed = (delta != 0).flatten(2).any(1) if delta.dim() > 2 else delta != 0
        return changed.flatten(1).sum(1).to(delta.dtype)
    flat = delta.flatten(1)
    return flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)


def expand(values: Tensor, like: Tensor) -> Tensor:
    """values [N] → [N,1,1,...] with as many dimensions as `like`, for arithmetic row by row."""
    return values.view(-1, *[1] * (like.dim() - 1))


def project(x: Tensor, origin: Tensor, norm: Norm, eps: float) -> Tensor:
    """Nearest point of the ε-ball around `origin` for each x, then of the box [0,1]. Shapes [N,C,H,W].

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
    """Whether each x [N,C,H,W] is finite, within [0,1] up to 1e-6, and within ε of its origin → [N] bool."""
    flat = x.flatten(1)
    finite = flat.isfinite().all(1)
    boxed = (flat.amin(1) >= -1e-6) & (flat.amax(1) <= 1 + 1e-6)
    if norm in UNBOUNDED:
        return finite & boxed
    # float64: the distance itself must not lose what the tolerance is about
    return finite & boxed & within(flat_norm(x.double() - origin.double(), norm), norm, eps)


def within(distance: Tensor, norm: Norm, eps: float) -> Tensor:
    """Whether distances [N] in that norm count as no larger than ε, up to the `TOLERANCE` for rounding → [N] bool."""
    tolerance = TOLERANCE[norm]
    return distance <= eps * (1 + tolerance) + tolerance


def grey_levels(x: Tensor) -> int | None:
    """Number of steps from black to white on whose grid the pixels of x lie (255: 8-bit images); None for no grid."""
    for levels in GRIDS:
        scaled = x * levels
        if (scaled - scaled.round()).abs().max() < 1e-3:
            return levels
    return None


def on_the_grid(point: Tensor, x: Tensor, levels: int) -> Tensor:
    """Points on the grid next to `point`, towards their origin x, so that they stay within its ball."""
    scaled = (point * levels).double()
    towards = torch.where(point >= x, (scaled + 1e-3).floor(), (scaled - 1e-3).ceil())
    return (towards / levels).to(x.dtype).clamp(0, 1)


def input_seeds(x: Tensor, seed: int) -> list[int]:
    """A seed for each input that depends on its pixels and `seed` only, so never on its batch. x: [N,...]."""
    rows = x.detach().to("cpu", torch.float32).contiguous().numpy()
    prefix = str(seed).encode()
    return [int.from_bytes(hashlib.blake2b(prefix + row.tobytes(), digest_size=7).digest()) for row in rows]


def draw_per_input(x: Tensor, seed: int, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
    """Stacks draw(generator) over inputs, each with the generator of its own seed (`input_seeds`)."""
    rows = [draw(torch.Generator().manual_seed(s)) for s in input_seeds(x, seed)]
    return torch.stack(rows).to(x.device, x.dtype) if rows else torch.empty_like(x)


def random_in_ball(x: Tensor, norm: Norm, eps: float, seed: int) -> Tensor:
    """A random point of the ε-ball around each x, in the box: uniform in L∞, uniform in the ball in L2.

    x: [N,C,H,W] in [0,1]. In L0, `eps` random pixels get random values; unrestricted and fooling: any image.
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
