"""Norms and perturbation sizes in files and programs; sizes are numbers, or fractions like "8/255"."""

from __future__ import annotations

import math
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, Field

from manifold_bench.attacks.norms import Norm
from manifold_bench.bench.errors import InputError
from manifold_bench.bench.text import LEVELS, eps_of, eps_text, norm_of, norm_text

PARAMETERS = ("eps", "eps_step", "start_eps", "step_size")
"""Names of parameters of attacks and defenses that are perturbation sizes, including ART's `eps_step`."""


def _number(value: object) -> object:
    return eps_of(value) if isinstance(value, str) else value


def in_numbers(value: object) -> object:
    """Return a parameter, or a list of them, with numbers in place of fractions; raises ValueError as `eps_of` does."""
    if isinstance(value, list):
        return [*map(in_numbers, value)]
    return eps_of(value) if isinstance(value, str) and "/" in value else value


def _list(value: object) -> object:
    return value if isinstance(value, (list, tuple)) else (value,)


NormName = Annotated[Norm, BeforeValidator(norm_of)]
"""A norm, which may be written in any of the usual ways."""

Fractional = Annotated[float, BeforeValidator(_number)]
"""A number that may be written as a fraction in quotes."""

Size = Annotated[Fractional, Field(gt=0, allow_inf_nan=False)]

Sizes = Annotated[tuple[Size, ...], BeforeValidator(_list), Field(min_length=1, strict=False)]
"""One size or several."""


def check_size(place: str, norm: str, eps: object, shape: tuple[int, int, int] | None = None) -> float:
    """Check that ε is a perturbation size in that norm, for images [C,H,W] of that shape if it is known; return it.

    Raises InputError; place: beginning of its message.
    """
    if not (isinstance(eps, int | float) and 0 < eps < math.inf):
        raise InputError(f'{place}: {eps!r} is not a perturbation size; give a number > 0, as 0.03 or "8/255"')
    if norm == "l0" and eps != int(eps):
        raise InputError(f"{place}: {eps_text(eps)} is no L0 size; give whole numbers of pixels ≥ 1")
    channels, height, width = shape or (math.inf,) * 3
    largest = {"linf": 1.0, "l2": math.sqrt(channels * height * width), "l0": height * width}.get(norm, math.inf)
    if eps <= largest * (1 + 1e-9):
        return eps
    images = f" for images of shape {shape}" if shape and norm != "linf" else ""
    if norm == "l0":
        allowed = f"give whole numbers of pixels from 1 to {largest}"
    else:
        allowed = f"give a number in (0, {math.floor(100 * largest) / 100:g}] (sizes are in the data set's scale [0,1])"
        if eps <= LEVELS:
            allowed += f', or "{eps_text(eps)}/{LEVELS}" for {eps_text(eps)} of {LEVELS} grey levels'
    given = eps_text(eps) if eps_text(eps) != eps_text(largest) else repr(eps)
    raise InputError(f"{place}: {given} is no {norm_text(norm)} size{images}; {allowed}")


def sizes_of(eps: Any) -> list[str | float]:  # what users hand in, checked here
    """Return one or several perturbation sizes as a list of texts and finite numbers; raises InputError."""
    try:
        many = list(eps) if np.ndim(eps) else [eps]
        if any(isinstance(one, (bool, np.bool_, bytes)) for one in many):
            raise TypeError
        sizes = [one if isinstance(one, str) else float(one) for one in many]
    except (TypeError, ValueError):
        sizes = []
    if not sizes or not all(isinstance(one, str) or math.isfinite(one) for one in sizes):
        raise InputError('eps: say how large a perturbation may be, as eps=0.1, eps="8/255" or a list of such sizes')
    return sizes
