"""Gradients for steps without one: backward pass differentiable approximation (BPDA, Athalye et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from manifold_bench.defenses.projection_gradients import straight_through

Step = Callable[[Tensor], Tensor]

_estimated: ContextVar[list[str] | None] = ContextVar("_estimated", default=None)


@contextmanager
def approximated() -> Iterator[list[str]]:
    """Within this context, a step of `bpda` computes the function whose gradient it has, and so has a true gradient.

    It yields a list to which each step adds its name whose gradient a library estimates, by no function that is known.
    """
    names: list[str] = []
    token = _estimated.set(names)
    try:
        yield names
    finally:
        _estimated.reset(token)


def declare_estimated(name: str) -> None:
    """Declare that the gradient of the step of that name is an estimate, for `approximated`."""
    if (names := _estimated.get()) is not None:
        names.append(name)


def identity(x: Tensor) -> Tensor:
    """Return x; it approximates a step whose output resembles its input."""
    return x


def bpda(forward: Step, backward: Step = identity) -> Step:
    """Return a step that computes `forward` and has the gradient of `backward`.

    forward: any function of a tensor, differentiable or not; it gets a copy, so that it may change its input in place.
    backward: a differentiable function whose output has the same shape as that of `forward`. Raises TypeError for
    anything else, and, when the step is called, ValueError where the shapes differ.

    >>> rounded = bpda(lambda x: (x * 15).round() / 15)  # in a module's forward: self.net(rounded(x))
    """

    for name, given in (("forward", forward), ("backward", backward)):
        if not callable(given):
            raise TypeError(
                f"bpda: {name} is a {type(given).__name__}; give a function of a tensor, as in mb.bpda(round_pixels)(x)"
            )

    def step(x: Tensor) -> Tensor:
        if _estimated.get() is not None:
            return backward(x)
        with torch.no_grad():
            value = forward(x.detach().clone())
        if not isinstance(value, Tensor):
            raise TypeError(f"bpda: forward returned {type(value).__name__}; return a tensor, as by torch.as_tensor")
        approximation = backward(x)
        if value.shape != approximation.shape:
            raise ValueError(
                f"bpda: forward returned shape {tuple(value.shape)}, but its replacement backward returned "
                f"{tuple(approximation.shape)}; both have to return the same shape"
            )
        return straight_through(approximation, value.to(approximation))

    return step


class Context(FunctionCtx):
    """What `BackwardBy` keeps for its backward pass."""

    product: Step


class BackwardBy(torch.autograd.Function):
    """An autograd function that returns `value`, which was computed from x outside torch.

    product: function of the gradient for the output that returns the gradient for x, the product with the Jacobian's
    transpose.
    """

    @staticmethod
    def forward(x: Tensor, value: Tensor, product: Step) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Context, inputs: tuple[Tensor, Tensor, Step], output: Tensor) -> None:
        ctx.product = inputs[2]

    @staticmethod
    def backward(ctx: Context, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.product(gradients[0]), None, None
