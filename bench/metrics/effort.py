"""The share of inputs on which an attack stopped trying, so that they seem robust without having been attacked."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pandas as pd

from manifold_bench.bench.records.schema import Row

EFFORT_COLUMNS = ("attacked", "given_up", "blind", "unmoved", "stalled", "unqueried", "masked")

LIMIT = 0.01
"""Share of such inputs above which a figure is marked with ‖."""

MOST = 0.9
"""Share of inputs above which an attack that is blind on them says that a defense masks its gradients."""


def effort(
    records: pd.DataFrame, group: np.ndarray, inputs: pd.Series, worst_cases: Collection[int] = ()
) -> pd.DataFrame:
    """Return the columns EFFORT_COLUMNS of each group: number of attacked inputs at its largest ε, and shares of them.

    group, inputs: [N], number of the group and of the input of each row. The index of the result is the group's number.
    worst_cases: numbers of the groups that are worst cases over labelled images. Shares are NaN where no input was
    attacked.

    An input that was not beaten counts as blind if more than half of the gradients were exactly zero or not finite, as
    unmoved if every query and output was the input itself, as stalled if no query came nearer to success than the first
    one, and as given_up if any of these holds. In a group of several attacks it must hold for each that computes
    gradients and asks at least twice; of a single query nobody knows whether it came nearer.

    Two more hold in worst cases alone. All inputs are unqueried, and given_up, if no attack made a query and none
    succeeded; a single attack is left out, since a control such as one draw of noise asks nothing. An input is masked
    if an attack that is blind on more than MOST of the inputs is blind on it, and all attacks together beat at most
    LIMIT of the inputs: that another attack came nearer then says little.
    """
    columns = ["attack", "eps", "status", "distance", "success", "blind", "moved", "improved", "forwards"]
    rows = records[columns].assign(group=group, input=inputs)
    # over all ε, since a minimal-distance attack has its passes in the rows of the smallest one
    asked = {"once": rows["forwards"] > 0, "twice": rows["forwards"] >= 2}
    rows = rows.assign(**asked).assign(**{name: _any(rows, one, "attack") for name, one in asked.items()})
    rows["beaten"] = _any(rows, rows["success"], "input")  # at any ε, since attacks may have different ones
    largest = rows["eps"] == rows.groupby("group")["eps"].transform("max")
    rows = rows[largest & (rows["status"] == "ok") & (rows["distance"] > 0)]
    beaten, blind = rows["beaten"], rows["blind"] > 0.5
    is_worst = rows["group"].isin(worst_cases)
    several = rows.groupby("group")["attack"].transform("nunique") > 1
    differentiates = _any(rows, rows["blind"].notna(), "attack")
    informed = differentiates & rows["twice"]
    unqueried = is_worst & ~_any(rows, rows["once"] | rows["success"])
    counts = ~several | informed | (differentiates & ~_any(rows, informed)) | unqueried
    signs = pd.DataFrame(
        {"blind": blind, "unmoved": ~rows["moved"], "stalled": ~rows["improved"], "unqueried": unqueried}
    )
    given_up = signs.assign(given_up=signs.any(axis=1)).mul(~beaten, axis=0).astype(bool)
    counted = rows[counts]
    of_inputs = given_up[counts].groupby([counted["group"], counted["input"]]).all().groupby("group")
    blinded = several & is_worst & (blind.groupby([rows["group"], rows["attack"]]).transform("mean") > MOST)
    of_any = pd.DataFrame({"beaten": beaten, "masked": blinded & blind & ~beaten})
    of_any = of_any.groupby([rows["group"], rows["input"]]).any().groupby("group").mean()
    masked = of_any["masked"].where(of_any["beaten"] <= LIMIT, 0.0)
    return of_inputs.mean().assign(attacked=of_inputs.size(), masked=masked)[list(EFFORT_COLUMNS)].astype("float64")


def _any(rows: pd.DataFrame, holds: pd.Series, *columns: str) -> pd.Series:
    """Return for each row whether that holds [N] in any row of its group with the same values in these columns."""
    return holds.groupby([rows["group"], *(rows[column] for column in columns)]).transform("any")


def effort_note(row: Row) -> str:
    """Return a phrase on a summary row whose attacks stopped trying on more than LIMIT of the inputs; else ""."""
    parts = {
        "blind": "the gradient was exactly zero or not finite on {}",
        "unmoved": "the image was never changed on {}",
        "stalled": "no query came nearer to a wrong answer on {}",
        "unqueried": "no attack queried the model on {}",
    }

    def share(name: str) -> str:
        count = f"{round(row[name] * row['attacked'])} of {row['attacked']:.0f} attacked inputs"
        return f"{count} ({100 * row[name]:.1f} %)"

    if row.get("given_up", 0.0) > LIMIT:  # False for NaN
        counts = {name: round(row[name] * row["attacked"]) for name in parts if row.get(name, 0.0) > 0}
        phrases = [text.format(counts[name]) for name, text in parts.items() if counts.get(name)]
        return f"stopped trying on {share('given_up')}: {', '.join(phrases)}"
    if row.get("masked", 0.0) > LIMIT:
        zero = f"gradient was exactly zero or not finite on {share('masked')}"
        return f"beat at most {100 * LIMIT:g} % of the inputs, and one of them stopped trying: its {zero}"
    return ""


def who_gave_up(row: Row) -> str:
    """Return which attacks of a worst case's row the phrase of `effort_note` is about."""
    if not row.get("given_up", 0.0) > LIMIT:
        return "the attacks"
    return "every attack" if row.get("unqueried", 0.0) > 0 else "every gradient-based attack"
