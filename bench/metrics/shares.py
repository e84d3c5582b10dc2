"""Shares of inputs and their confidence intervals."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np


class MissingCells(ValueError):
    """A figure cannot be computed, because a cell failed or was skipped, or an input lacks one of several attacks."""


class Estimate(NamedTuple):
    """A share of `n` inputs with its 95 % Wilson interval; value, low and high are NaN where n = 0."""

    value: float
    low: float
    high: float
    n: int


@cache
def wilson(count: float, n: int) -> Estimate:
    """Return count / n with its 95 % Wilson score interval (Wilson 1927).

    count: number of inputs, or a sum of n values in [0, 1]. For such values the interval is wider than it needs to be,
    since none with the same mean vary more than zeros and ones.
    """
    if n == 0:
        return Estimate(np.nan, np.nan, np.nan, 0)
    # late: takes a second, and worker processes do not need it
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(count, n, alpha=0.05, method="wilson")
    return Estimate(count / n, float(low), float(high), n)


def percent_interval(value: float, n: int) -> str:
    """Return a share of n inputs in percent with its Wilson interval, `86.1 [78.0, 91.5]`; `undefined` for NaN."""
    if np.isnan(value):
        return "undefined"
    share = wilson(value * n, n)
    return f"{100 * share.value:.1f} [{100 * share.low:.1f}, {100 * share.high:.1f}]"
