"""Shares of inputs and their confidence intervals."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np

QUANTILE = 1.9599639845400545
"""The 97.5 % quantile of the normal distribution: half the width of a 95 % interval in standard deviations."""


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
    share, spread = count / n, QUANTILE**2
    middle = (share + spread / (2 * n)) / (1 + spread / n)
    half = QUANTILE * math.sqrt(share * (1 - share) / n + spread / (4 * n**2)) / (1 + spread / n)
    return Estimate(share, max(0.0, middle - half), min(1.0, middle + half), n)


def binomial_tail(k: int, n: int, p: float) -> float:
    """Return the probability of at least k successes in n independent trials, each with probability p in (0, 1)."""
    if k <= 0:
        return 1.0
    one, other = math.log(p), math.log1p(-p)
    ways = (math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in range(k, n + 1))
    return min(1.0, math.fsum(math.exp(way + i * one + (n - i) * other) for i, way in enumerate(ways, k)))


def percent_interval(value: float, n: int) -> str:
    """Return a share of n inputs in percent with its Wilson interval, `86.1 [78.0, 91.5]`; `undefined` for NaN."""
    if np.isnan(value):
        return "undefined"
    share = wilson(value * n, n)
    return f"{100 * share.value:.1f} [{100 * share.low:.1f}, {100 * share.high:.1f}]"
