"""The share of inputs on which an attack stopped trying, so that they seem robust without having been attacked."""

from __future__ import annotations

import numpy as np
import pandas as pd

from manifold_bench.bench.records.schema import Row

EFFORT_COLUMNS = ("attacked", "given_up", "blind", "unmoved", "stalled")

LIMIT = 0.01
"""Share of such inputs above which a figure is marked with ‖."""


def effort(records: pd.DataFrame, group: np.ndarray, inputs: pd.Series) -> pd.DataFrame:
    """Return the columns EFFORT_COLUMNS of each group: number of attacked inputs at its largest ε, and shares of them.

    group, inputs: [N], number of the group and of the input of each row. The index of the result is the group's number.
    An input that was not beaten counts as blind if more than half of the gradients were exactly zero or not finite, as
    unmoved if every query and output was the input itself, as stalled if no query came nearer to success than the first
    one, and as given_up if any of these holds. In a group of several attacks it must hold for each that computes
    gradients and asks at least twice; of a single query nobody knows whether it came nearer. Shares are NaN where no
    input was attacked.
    """
    columns = ["attack", "eps", "status", "distance", "success", "blind", "moved", "improved", "forwards"]
    rows = records[columns].assign(group=group, input=inputs)
    # over all ε, since a minimal-distance attack has its passes in the rows of the smallest one
    rows["asks"] = (rows["forwards"] >= 2).groupby([rows["group"], rows["attack"]]).transform("any")
    largest = rows["eps"] == rows.groupby("group")["eps"].transform("max")
    rows = rows[largest & (rows["status"] == "ok") & (rows["distance"] > 0)]
    several = rows.groupby("group")["attack"].transform("nunique") > 1
    beaten = rows.groupby(["group", "input"])["success"].transform("any")
    by_attack = [rows["group"], rows["attack"]]
    differentiates = rows["blind"].notna().groupby(by_attack).transform("any")
    informed = differentiates & rows["asks"]
    some_informed = informed.groupby(rows["group"]).transform("any")
    counts = ~several | informed | (differentiates & ~some_informed)
    counted, beaten = rows[counts], beaten[counts]
    signs = pd.DataFrame(
        {"blind": counted["blind"] > 0.5, "unmoved": ~counted["moved"], "stalled": ~counted["improved"]}
    )
    given_up = signs.assign(given_up=signs.any(axis=1)).mul(~beaten, axis=0).astype(bool)
    of_inputs = given_up.groupby([counted["group"], counted["input"]]).all().groupby("group")
    return of_inputs.mean().assign(attacked=of_inputs.size())[list(EFFORT_COLUMNS)].astype("float64")


def effort_note(row: Row) -> str:
    """Return a phrase on a summary row whose attack stopped trying on more than LIMIT of the inputs; else ""."""
    if not row.get("given_up", 0.0) > LIMIT:  # also true for NaN
        return ""
    parts = {
        "blind": "the gradient was exactly zero or not finite on {}",
        "unmoved": "the image was never changed on {}",
        "stalled": "no query came nearer to a wrong answer on {}",
    }
    counts = {name: round(row[name] * row["attacked"]) for name in (*parts, "given_up")}
    phrases = [text.format(counts[name]) for name, text in parts.items() if counts[name]]
    share = f"{counts['given_up']} of {row['attacked']:.0f} attacked inputs ({100 * row['given_up']:.1f} %)"
    return f"stopped trying on {share}: {', '.join(phrases)}"
