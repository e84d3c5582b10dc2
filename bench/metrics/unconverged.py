"""Finds the ε at which the attacks of a run still beat new inputs in the second half of their passes."""

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
"""What the evidence of `unconverged` means."""

ITERATIVE = 20
"""Passes that an attack spends at least on an input that it doesn't beat; a second half of fewer means nothing."""


def unconverged(records: pd.DataFrame, minimal: Collection[str] = ()) -> dict[tuple[str, str, str, float], str]:
    """Return worst cases whose robust accuracy more steps would probably lower: (data set, defense, norm, ε) → text.

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
    rows = rows[attacked]
    rows = rows.assign(place=rows.groupby(list(PLACE)).ngroup())
    job = rows.groupby(["place", "attack", "seed"])
    whole = rows["passes"].where(~rows["success"]).groupby(job.ngroup()).transform("max")
    late = (whole >= ITERATIVE) & (rows["passes"] > whole / 2) & (rows["passes"] < whole) & ~rows["minimal"]
    jobs = job.size().groupby("place").size()
    common = rows.groupby(["place", "sample"])["sample"].transform("size") == rows["place"].map(jobs)
    met = rows[common].assign(late=late | ~rows["success"])  # the inputs of the worst case
    inputs = met.groupby(["place", "sample"]).agg(beaten=("success", "any"), late=("late", "all"))
    inputs["late"] &= inputs["beaten"]
    counts = inputs.groupby("place").sum().assign(n=inputs.groupby("place").size())
    named = counts[(counts["beaten"] < counts["n"]) & (counts["late"] >= FEWEST)]
    named = named[named["late"] > LIMIT * named["n"]]
    places = rows.drop_duplicates("place").set_index("place")[list(PLACE)]
    found = {}
    for number, count, n in named[["late", "n"]].itertuples():
        dataset, defense, norm, eps = cast(tuple[str, str, str, float], tuple(places.loc[number]))
        found[dataset, defense, norm, eps] = f"{norm_text(norm)} ε = {eps_text(eps)}: {count} of {n}"
    return found
