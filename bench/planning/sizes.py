"""Perturbation sizes in files and programs: numbers, or fractions like "8/255"."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from manifold_bench.bench.text import eps_of

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


Fractional = Annotated[float, BeforeValidator(_number)]
"""A number that may be written as a fraction in quotes."""

Size = Annotated[Fractional, Field(gt=0, allow_inf_nan=False)]

Sizes = Annotated[tuple[Size, ...], BeforeValidator(_list), Field(min_length=1, strict=False)]
"""One size or several."""
