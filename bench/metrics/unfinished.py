"""At which ε the attacks of a run were still winning when their passes were spent."""

from __future__ import annotations

from collections.abc import Collection
from typing import cast

import pandas as pd

from manifold_bench.bench.metrics.robustness import FOOLING
from manifold_bench.bench.records.schema import ATTACK
from manifold_bench.bench.text import eps_text, norm_text

PLACE = ("dataset", "defense", "norm", "eps")
"""Columns of the records that say which worst case a row belongs to."""

LIMIT = 0.01
"""Share of the inputs that have to fall late for an ε to be named."""

FEWEST = 2
"""Number of inputs that have to fall late: a single one may be chance."""

FELL_LATE = (
    "more steps, restarts or targets may leave less, because some inputs fell only in the second half of the passes of "
    "every attack that beat them (number of these inputs in each cell)"
)
"""What the evidence of `unfinished` means."""

ITERATIVE = 20
"""Passes that an attack spends at least on an input that it doesn't beat; a second half of fewer means nothing."""


def unfinished(records: pd.DataFrame, minimal: Collection[str] = ()) -> dict[tuple[str, str, str, float], str]:
    """Return where more steps would leave less, by data set, defense, norm and ε of a worst case.

    A value says how many inputs fell late, such as `L∞ ε = 0.1: 3 of 64`; `FELL_LATE` says what that means.

    An input falls late where every attack that beats it at ε has spent more than half of what it spends on inputs that
    hold. An ε is named where more than `LIMIT` of the inputs, and no fewer than `FEWEST`, fall late, and some inputs
    are left. So many inputs were gained by the second half of the steps; as many steps again may gain more.

    Only the inputs that every attack met count, as in the worst case.

    records: of a run. minimal: keys of attacks that run once for all ε; how long they took says nothing of one ε.
    What an attack answers at the very end alone counts as not late, since nobody knows when it was found.
    """
    attacked = (records["kind"] == ATTACK) & (records["status"] == "ok") & (records["norm"] != FOOLING)
    rows = records[[*PLACE, "attack", "seed", "sample", "success"]].assign(
        passes=records["forwards"] + records["backwards"], minimal=records["key"].isin(list(minimal))
    )
    found = {}
    for place, cell in rows[attacked].groupby(list(PLACE)):
        dataset, defense, norm, eps = cast(tuple[str, str, str, float], place)
        whole = cell["passes"].where(~cell["success"]).groupby([cell["attack"], cell["seed"]]).transform("max")
        late = (whole >= ITERATIVE) & (cell["passes"] > whole / 2) & (cell["passes"] < whole)
        late &= ~cell["minimal"]
        attacks = cell.groupby(["attack", "seed"]).ngroups
        common = cell.groupby("sample")["sample"].transform("size") == attacks  # the inputs of the worst case
        cell, late = cell[common], late[common]
        left = ~cell.groupby("sample")["success"].any()
        beaten = cell["success"]
        fell_late = late[beaten].groupby(cell["sample"][beaten]).all()
        count, n = int(fell_late.sum()), len(left)
        if left.any() and count >= FEWEST and count / n > LIMIT:
            found[dataset, defense, norm, eps] = f"{norm_text(norm)} ε = {eps_text(eps)}: {count} of {n}"
    return found
