"""Threat models: norms, balls around an input, and the distances that the judge measures."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import TypeVar, get_args

import torch
from torch import Tensor

from manifold_bench.attacks.norms import UNBOUNDED, Norm

NORMS: tuple[Norm, ...] = get_args(Norm)

Size = TypeVar("Size", float, Tensor)

TOLERANCE: dict[Norm, float] = {
    "linf": 1e-6,
    "l2": 1e-5,
    "l1": 1e-5,
    "l0": 0.0,
    "unrestricted": 0.0,
    "fooling": 0.0,
}
"""How far a distance may exceed ε because of rounding: this share of ε, plus this number."""

NEWTON_STEPS = 60
"""Largest number of steps of Newton's method in `shrinkage`."""

SPARSITY = 0.05
"""Share of an image's values that the step of steepest ascent in L1 changes."""

GRIDS = (16, 255, 65535)
"""Numbers of steps from black to white that data sets use: scikit-learn's digits, 8 bits and 16 bits."""


def expand(values: Tensor, like: Tensor) -> Tensor:
    """Return values [N] as [N,1,1,...] with as many dimensions as `like`, for arithmetic row by row."""
    return values.view(-1, *[1] * (like.dim() - 1))


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
    return distance <= allowed(norm, eps)


def allowed(norm: Norm, eps: Size) -> Size:
    """Return the largest distance that counts as ε: ε and the `TOLERANCE` of the norm for rounding."""
    return eps * (1 + TOLERANCE[norm]) + TOLERANCE[norm]


def grey_levels(x: Tensor) -> int | None:
    """Return how many steps from black to white the pixels of x have (255: 8-bit images); None: they are on no grid."""
    for levels in GRIDS:
        scaled = x * levels
        if (scaled - scaled.round()).abs().max() < 1e-3:
            return levels
    return None


def to_levels(point: Tensor, levels: int) -> Tensor:
    """Return the nearest point on the grid of `levels` steps, with the gradient of the point itself."""
    return point + ((point * levels).round() / levels - point).detach()


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
    """Return a random point of the ε-ball around each x [N,C,H,W], clipped to [0,1]; uniform in L∞, L2 or L1.

    In L0, `eps` random pixels get random values. In the norms without ε, every pixel is random.
    """
    return BALLS[norm].random(x, eps, seed)


def flat_norm(delta: Tensor, norm: Norm) -> Tensor:
    """Return the norm of each perturbation, delta [N,...] → [N]; for norms without ε, the L2 norm.

    `l0` counts changed pixels; a pixel of delta [N,C,H,W] counts once however many of its channels changed.
    """
    return BALLS[norm].size(delta)


def project(x: Tensor, origin: Tensor, norm: Norm, eps: float) -> Tensor:
    """Return a point within [0,1] and the ε-ball around `origin` near each x; the nearest in L∞ and L1. [N,C,H,W].

    In L2 the point of the ball is clipped to the box, and in L0 it keeps the pixels that changed most.
    """
    return BALLS[norm].project(x, origin, eps)


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """Return the unit step of steepest ascent: the sign in L∞, the normalised gradient in L2. [N,C,H,W] → same.

    In L1 the largest entry alone would be steepest. The step goes along the signs of the largest 5 % of the entries
    (`SPARSITY`), as in Tramèr & Boneh 2019, because one value has little room within [0,1].
    """
    return BALLS[norm].steepest(gradient)


def sparse_step(gradient: Tensor, counts: Tensor) -> Tensor:
    """Return the step of L1 norm 1 along the signs of each gradient's largest entries. [N,...] → same.

    counts: number of entries, [N] int64, at least 1. Entries as large as the smallest of these belong to the step, too.
    """
    size = gradient.abs().flatten(1)
    least = size.topk(int(counts.max()), dim=1).values.gather(1, counts[:, None] - 1) if len(counts) else size[:, :1]
    signs = gradient.sign() * (size >= least).view_as(gradient)
    return signs / expand(flat_norm(signs, "l1").clamp_min(1.0), gradient)


class Box:
    """What an attack has to know of a norm; this class is for the norms without ε, in which any image is allowed.

    Images and perturbations are [N,C,H,W]. See the functions `flat_norm`, `project`, `steepest`, `random_in_ball`.
    """

    def size(self, delta: Tensor) -> Tensor:
        return delta.flatten(1).norm(dim=1)

    def project(self, x: Tensor, origin: Tensor, eps: float) -> Tensor:
        return x.clamp(0, 1)

    def steepest(self, gradient: Tensor) -> Tensor:
        # Scaled by the largest entry first, because the squares of a confident model's tiny gradients would vanish
        scaled = gradient / expand(flat_norm(gradient, "linf").clamp_min(1e-37), gradient)
        return scaled / expand(flat_norm(scaled, "l2").clamp_min(1e-12), gradient)

    def random(self, x: Tensor, eps: float, seed: int) -> Tensor:
        return draw_per_input(x, seed, lambda generator: torch.rand(x.shape[1:], generator=generator))


class LInfBall(Box):
    """Every value of an image may change by at most ε."""

    def size(self, delta: Tensor) -> Tensor:
        return delta.flatten(1).abs().amax(1)

    def project(self, x: Tensor, origin: Tensor, eps: float) -> Tensor:
        return x.clamp(origin - eps, origin + eps).clamp_(0, 1)

    def steepest(self, gradient: Tensor) -> Tensor:
        return gradient.sign()

    def random(self, x: Tensor, eps: float, seed: int) -> Tensor:
        return self.project(x + (2 * super().random(x, eps, seed) - 1) * eps, x, eps)


class L2Ball(Box):
    """The root of the sum of squares of all changes is at most ε."""

    def project(self, x: Tensor, origin: Tensor, eps: float) -> Tensor:
        delta = x - origin
        factor = (eps / self.size(delta).clamp_min(1e-12)).clamp_max(1.0)
        # The box comes last: it can only shrink the distance to an origin that lies in the box
        return (origin + delta * expand(factor, delta)).clamp(0, 1)

    def random(self, x: Tensor, eps: float, seed: int) -> Tensor:
        def draw(generator: torch.Generator) -> Tensor:
            direction = torch.randn(x.shape[1:], generator=generator)
            radius = torch.rand((), generator=generator) ** (1 / direction.numel())
            return direction / direction.norm() * radius * eps

        return self.project(x + draw_per_input(x, seed, draw), x, eps)


class L1Ball(Box):
    """The sum of all changes is at most ε.

    The projection is the nearest point of the ball within [0,1], and not that of the ball, clipped: in L1 the clipped
    one lies far inside the ball (Croce & Hein 2021).
    """

    def size(self, delta: Tensor) -> Tensor:
        return delta.flatten(1).abs().sum(1)

    def project(self, x: Tensor, origin: Tensor, eps: float) -> Tensor:
        delta = x - origin
        room = torch.where(delta > 0, 1 - origin, origin)
        size = torch.minimum(delta.abs(), room)
        outside = size.flatten(1).sum(1) > eps
        less = expand(shrinkage(delta.abs().flatten(1), room.flatten(1), eps), delta)
        nearest = origin + delta.sign() * torch.minimum((delta.abs() - less).clamp_min(0), room)
        return torch.where(expand(outside, delta), nearest, x).clamp(0, 1)

    def steepest(self, gradient: Tensor) -> Tensor:
        count = math.ceil(SPARSITY * gradient[0].numel()) if len(gradient) else 1
        return sparse_step(gradient, torch.full((len(gradient),), count, device=gradient.device))

    def random(self, x: Tensor, eps: float, seed: int) -> Tensor:
        def draw(generator: torch.Generator) -> Tensor:
            # Of D + 1 exponential numbers, the first D over the sum of all are uniform in the simplex
            parts = torch.empty(x[0].numel() + 1).exponential_(generator=generator)
            signs = 2 * torch.randint(2, parts.shape, generator=generator) - 1
            return (eps * signs * parts / parts.sum())[:-1].view(x.shape[1:])

        return self.project(x + draw_per_input(x, seed, draw), x, eps)


class L0Ball(Box):
    """At most ε pixels may change, each in all its channels."""

    def size(self, delta: Tensor) -> Tensor:
        changed = (delta != 0).flatten(2).any(1) if delta.dim() > 2 else delta != 0
        return changed.flatten(1).sum(1).to(delta.dtype)

    def project(self, x: Tensor, origin: Tensor, eps: float) -> Tensor:
        size = (x - origin).abs().amax(1).flatten(1)  # a pixel's change, over its channels
        return torch.where(self._largest(size, eps).view(len(x), 1, *x.shape[2:]), x, origin).clamp(0, 1)

    def random(self, x: Tensor, eps: float, seed: int) -> Tensor:
        noise = super().random(x, eps, seed)
        order = draw_per_input(x, seed + 1, lambda generator: torch.rand(x.shape[2:], generator=generator))
        return torch.where(self._largest(order.flatten(1), eps).view(len(x), 1, *x.shape[2:]), noise, x)

    def _largest(self, values: Tensor, eps: float) -> Tensor:
        """Return where the ε largest values [N,D] are → [N,D] bool."""
        kept = torch.zeros_like(values, dtype=torch.bool)
        return kept.scatter_(1, values.topk(min(int(eps), values.shape[1]), dim=1).indices, True)


def shrinkage(size: Tensor, room: Tensor, eps: float) -> Tensor:
    """Return the smallest λ ≥ 0 [N] at which min(max(size − λ, 0), room) sums to at most ε; size, room [N,D] ≥ 0."""
    # The sum is piecewise linear and falls with λ: Newton's method, and bisection where that leaves the bracket, end
    # after about ten steps; sorting the 2 D corners would take ten times as long
    low, high = torch.zeros_like(size[:, 0]), size.amax(1)
    less, going = low, torch.ones_like(low, dtype=torch.bool)
    for _ in range(NEWTON_STEPS):
        left = size - less[:, None]
        total = torch.minimum(left.clamp_min(0), room).sum(1)
        moving = ((left > 0) & (left < room)).sum(1)
        over = total > eps
        low, high = torch.where(going & over, less, low), torch.where(going & ~over, less, high)
        going = going & ~(~over & ((total > eps * (1 - 1e-6)) | (less == 0)))
        if not going.any():
            break
        newton = less + (total - eps * (1 - 5e-7)) / moving.clamp_min(1)
        within = (newton > low) & (newton < high)
        less = torch.where(going, torch.where(within, newton, (low + high) / 2), less)
    return high


BALLS: Mapping[Norm, Box] = {
    "linf": LInfBall(),
    "l2": L2Ball(),
    "l1": L1Ball(),
    "l0": L0Ball(),
    "unrestricted": Box(),
    "fooling": Box(),
}
