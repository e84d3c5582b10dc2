"""Finds the worst cases in which no attack is made for the family of the defense."""

from __future__ import annotations

from collections.abc import Collection

import pandas as pd

from manifold_bench.bench.metrics.robustness import FOOLING
from manifold_bench.bench.metrics.unconverged import PLACE
from manifold_bench.bench.records.schema import WORST_CASE
from manifold_bench.bench.text import eps_text, norm_text
from manifold_bench.defenses.identity import JsonObject

NOT_ADAPTED = "none of them is made for the family of the defense (in parentheses)"
"""What the evidence of `unadapted` means."""


def unadapted(
    summary: pd.DataFrame, run: JsonObject, figures: Collection[str]
) -> dict[tuple[str, str, str, float, str], str]:
    """Return the figures of worst cases without an adapted attack: (data set, defense, norm, ε, figure) → text.

    A value names the family, such as `L∞ ε = 0.1 (projection)`; `NOT_ADAPTED` says what that means. Where attacks left
    nothing, they were strong enough.

    summary: result of summary.summary. run: content of run.json, whose `undecided` lists these defenses; one for which
    it has no sizes is undecided at all sizes. figures: columns of the summary with kinds of robust accuracy. Noise has
    none, so that it is left out.
    """
    families = {
        (entry["dataset"], defense): (entry["family"], entry.get("sizes", {}).get(defense))
        for entry in run.get("undecided", ())
        for defense in entry["defenses"]
    }
    found: dict[tuple[str, str, str, float, str], str] = {}
    worst = summary[(summary["kind"] == WORST_CASE) & (summary["norm"] != FOOLING)]
    for row in worst.to_dict("records"):
        dataset, defense, norm, eps = (row[column] for column in PLACE)
        family, sizes = families.get((dataset, defense), ("", {}))
        if sizes is None or eps in sizes.get(norm, ()):
            text = f"{norm_text(norm)} ε = {eps_text(eps)} ({family})"
            found |= {(dataset, defense, norm, eps, figure): text for figure in figures if row[figure] > 0}
    return found
