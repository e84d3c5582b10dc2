"""On how many inputs an attack stopped trying, so that they stand without having been attacked."""

from __future__ import annotations

import numpy as np
import pandas as pd

from manifold_bench.bench.records.schema import Row

EFFORT_COLUMNS = ("given_up", "blind", "unmoved", "stalled")

LIMIT = 0.01
"""Share of inputs given up from which on a figure is marked."""


def effort(records: pd.DataFrame, group: np.ndarray, inputs: pd.Series) -> pd.DataFrame:
    """The columns EFFORT_COLUMNS for each group of rows, by its number: shares of its attacked inputs at its largest ε.

    group, inputs: [N], of each row. Of an input that was not beaten, blind: more than half of the gradients before the
    first success were exactly zero or not finite; unmoved: no query and no output was another image; stalled: no query
    came nearer to success than the first one. given_up: any of them. Of several attacks only those that asked for
    gradients count, and it must hold of each. NaN where there is no attacked input.
    """
    columns = ["attack", "eps", "status", "distance", "success", "blind", "moved", "improved"]
    rows = records[columns].assign(group=group, input=inputs)
    largest = rows["eps"] == rows.groupby("group")["eps"].transform("max")
    rows = rows[largest & (rows["status"] == "ok") & (rows["distance"] > 0)]
    several = rows.groupby("group")["attack"].transform("nunique") > 1
    beaten = rows.groupby(["group", "input"])["success"].transform("any")
    differentiates = rows["blind"].notna().groupby([rows["group"], rows["attack"]]).transform("any")
    counted, beaten = rows[~several | differentiates], beaten[~several | differentiates]
    signs = pd.DataFrame(
        {"blind": counted["blind"] > 0.5, "unmoved": ~counted["moved"], "stalled": ~counted["improved"]}
    )
    given_up = signs.assign(given_up=signs.any(axis=1)).mul(~beaten, axis=0).astype(bool)
    shares = given_up.groupby([counted["group"], counted["input"]]).all().groupby("group").mean()
    return shares[list(EFFORT_COLUMNS)].astype("float64")


def effort_note(row: Row) -> str:
    """What is to be said of a summary row whose attack gave up on more than LIMIT of the inputs; else empty."""
    if not row.get("given_up", 0.0) > LIMIT:  # NaN is none
        return ""
    parts = {
        "blind": "the gradient was exactly zero or not finite on {}",
        "unmoved": "the image was never changed on {}",
        "stalled": "the loss never improved on {}",
    }
    said = [text.format(f"{100 * row[name]:.1f} %") for name, text in parts.items() if row[name] > 0]
    return f"stopped trying on {100 * row['given_up']:.1f} % of the attacked inputs: {', '.join(said)}"
