"""Gradients through a projection: the identity (BPDA), or the implicit function theorem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx


def straight_through(x: Tensor, value: Tensor) -> Tensor:
    """Return `value` with the gradient of x, which has the same shape (BPDA, Athalye et al. 2018)."""
    return value.detach() + (x - x.detach())


class Context(FunctionCtx):
    """What `BackwardImplicit` keeps for its backward pass."""

    generator: nn.Module
    solve: LinearSolve
    saved_tensors: tuple[Tensor, Tensor]


class BackwardImplicit(torch.autograd.Function):
    """An autograd function that returns `value` = G(z) with the gradient of G(z*(x)), by the implicit function theorem.

    At the optimum Jᵀ(G(z*) − x) = 0, so that dz*/dx = A⁻¹Jᵀ with A = JᵀJ + Σ rᵢ∇²Gᵢ and r = G(z*) − x. The Jacobian
    dG(z*)/dx = J A⁻¹ Jᵀ is symmetric, so that a gradient passes by one vjp, a linear solve and one jvp. `gauss-newton`
    leaves out the curvature of G: J(JᵀJ)⁻¹Jᵀ projects on the range's tangent space.
    """

    @staticmethod
    def forward(x: Tensor, value: Tensor, generator: nn.Module, z: Tensor, solve: LinearSolve) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(
        ctx: Context, inputs: tuple[Tensor, Tensor, nn.Module, Tensor, LinearSolve], output: Tensor
    ) -> None:
        x, _, ctx.generator, z, ctx.solve = inputs
        ctx.save_for_backward(x, z)

    @staticmethod
    def backward(ctx: Context, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        x, z = ctx.saved_tensors
        return through_optimum(ctx.generator, x, z, gradients[0], ctx.solve), None, None, None, None


@dataclass(frozen=True, kw_only=True)
class LinearSolve:
    """The parameters of the linear solve by conjugate gradients on A + damping·I.

    curvature: whether A contains the second derivatives of G; otherwise A = JᵀJ (Gauss–Newton).
    iterations: largest number of iterations; a direction along which A + damping·I is not positive ends them earlier.
    """

    curvature: bool
    damping: float = 1e-2
    iterations: int = 20


def through_optimum(generator: nn.Module, x: Tensor, z: Tensor, gradient: Tensor, how: LinearSolve) -> Tensor:
    """Return J A⁻¹ Jᵀ gradient at latents z [N,k], for images x and gradients [N,C,H,W] → [N,C,H,W]."""

    def image(z: Tensor) -> Tensor:
        return generator(z)

    def downhill(z: Tensor) -> Tensor:
        """Return Jᵀ(G(z) − x); its derivative is A."""
        value, back = torch.func.vjp(image, z)[:2]
        return back(value - x)[0]

    def times(v: Tensor) -> Tensor:
        if how.curvature:
            return torch.func.jvp(downhill, (z,), (v,))[1] + how.damping * v
        return pull(torch.func.jvp(image, (z,), (v,))[1])[0] + how.damping * v

    x, z = x.detach(), z.detach()
    with torch.no_grad():
        pull = torch.func.vjp(image, z)[1]
        (right,) = pull(gradient)
        return torch.func.jvp(image, (z,), (conjugate_gradients(times, right, how.iterations),))[1]


def conjugate_gradients(times: Callable[[Tensor], Tensor], right: Tensor, iterations: int) -> Tensor:
    """Return w [N,k] with A w ≈ right [N,k], solved for each row by itself.

    times: function v → A v. Rows that are solved, or that meet a direction without positive curvature, stop changing.
    """
    w, residual = torch.zeros_like(right), right
    step = residual
    size = residual.square().sum(1)
    enough = 1e-20 * size
    for _ in range(iterations):
        product = times(step)
        curvature = (step * product).sum(1)
        going = (curvature > 0) & (size > enough)
        if not going.any():
            break
        length = torch.where(going, size / curvature.where(going, torch.ones_like(curvature)), 0.0)[:, None]
        w, residual = w + length * step, residual - length * product
        now = residual.square().sum(1)
        step = residual + torch.where(going, now / size.clamp_min(1e-300), 0.0)[:, None] * step
        size = torch.where(going, now, torch.zeros_like(now))
    return w
