"""Shares of inputs with their confidence intervals."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np


class MissingCells(ValueError):
    """A figure over several attacks was asked for, but an input lacks one of them, or a cell failed or was skipped."""


class Estimate(NamedTuple):
    """A share of `n` inputs with its 95 % Wilson interval; value, low and high are NaN where n = 0."""

    value: float
    low: float
    high: float
    n: int


@cache
def wilson(count: int, n: int) -> Estimate:
    """count of n inputs → their share with its 95 % Wilson score interval (Wilson 1927)."""
    if n == 0:
        return Estimate(np.nan, np.nan, np.nan, 0)
    from statsmodels.stats.proportion import proportion_confint  # late: takes a second, which no job's process needs

    low, high = proportion_confint(count, n, alpha=0.05, method="wilson")
    return Estimate(count / n, float(low), float(high), n)


def percent_interval(value: float, n: int) -> str:
    """The share of n inputs in percent with its Wilson interval: 86.1 [78.0, 91.5]."""
    if np.isnan(value):
        return "undefined"
    share = wilson(round(value * n), n)
    return f"{100 * share.value:.1f} [{100 * share.low:.1f}, {100 * share.high:.1f}]"
