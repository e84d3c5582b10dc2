"""At which ε the attacks of a run were still winning when their passes were spent."""

from __future__ import annotations

from collections.abc import Collection

import pandas as pd

from manifold_bench.bench.metrics.robustness import FOOLING
from manifold_bench.bench.records.schema import ATTACK
from manifold_bench.bench.text import eps_text, norm_text

LIMIT = 0.01
"""Share of the inputs that have to fall late for an ε to be named."""

FEWEST = 2
"""Number of inputs that have to fall late: a single one may be chance."""

ITERATIVE = 20
"""Passes that an attack spends at least on an input that it doesn't beat; a second half of fewer means nothing."""


def unfinished(records: pd.DataFrame, minimal: Collection[str] = ()) -> dict[tuple[str, str, str, float], str]:
    """Return evidence that more steps would leave less, by data set, defense, norm and ε of a worst case.

    An input falls late where every attack that beats it at ε has spent more than half of what it spends on inputs that
    hold. An ε is named where more than `LIMIT` of the inputs, and no fewer than `FEWEST`, fall late, and some inputs
    are left. So many inputs were gained by the second half of the steps; as many steps again may gain more.

    records: of a run. minimal: keys of attacks that run once for all ε; how long they took says nothing of one ε.
    What an attack answers at the very end alone counts as not late, since nobody knows when it was found.
    """
    rows = records[(records["kind"] == ATTACK) & (records["status"] == "ok") & (records["norm"] != FOOLING)]
    rows = rows[["dataset", "defense", "norm", "eps", "attack", "seed", "key", "sample", "success"]].assign(
        passes=rows["forwards"] + rows["backwards"]
    )
    found = {}
    for (dataset, defense, norm, eps), cell in rows.groupby(["dataset", "defense", "norm", "eps"]):
        left = ~cell.groupby("sample")["success"].any()
        whole = cell["passes"].where(~cell["success"]).groupby([cell["attack"], cell["seed"]]).transform("max")
        late = (whole >= ITERATIVE) & (cell["passes"] > whole / 2) & (cell["passes"] < whole)
        late &= ~cell["key"].isin(list(minimal))
        beaten = cell["success"]
        fell_late = late[beaten].groupby(cell["sample"][beaten]).all()
        count, n = int(fell_late.sum()), len(left)
        if left.any() and count >= FEWEST and count / n > LIMIT:
            where = f"{norm_text(str(norm))} ε = {eps_text(float(str(eps)))}"
            found[str(dataset), str(defense), str(norm), float(str(eps))] = (
                f"at {where}, {count} of {n} inputs fell only in the second half of the passes of every attack that "
                "beat them, so more steps, restarts or targets may leave less"
            )
    return found
