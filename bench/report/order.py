"""The order in which screens, pages, tables and plots show norms."""

from __future__ import annotations

from collections.abc import Hashable

import pandas as pd

from manifold_bench.bench.metrics.robustness import FOOLING
from manifold_bench.bench.text import NORM_NAMES

NORMS = ("none", *NORM_NAMES)
"""The norms in order: that of clean cells, then L∞, L2, L1 and L0."""


def norm_place(norm: Hashable) -> tuple[int, str]:
    """Return the place of a norm, by which norms are sorted: those of NORMS, then others by name, then noise images."""
    known = NORMS.index(str(norm)) if norm in NORMS else len(NORMS) + (norm == FOOLING)
    return known, str(norm)


def by_norm(rows: pd.DataFrame, *before: str) -> list[tuple[tuple[str, ...], pd.DataFrame]]:
    """Return the groups of rows by the columns `before` and by norm, with their values, norms in the order above."""
    groups = [(tuple(map(str, values)), same) for values, same in rows.groupby([*before, "norm"])]
    return sorted(groups, key=lambda group: (group[0][:-1], norm_place(group[0][-1])))
