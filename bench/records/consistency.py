"""Whether stored rows agree with themselves: what the judge writes can never say these things."""

from __future__ import annotations

import pandas as pd

from manifold_bench.attacks.threat import TOLERANCE, UNBOUNDED
from manifold_bench.bench.records.schema import CALIBRATION, CLEAN


def contradiction(rows: pd.DataFrame) -> str | None:
    """Return what the rows of one job, typed by the schema, contradict themselves in; None where they agree."""
    rows = rows[rows["status"] == "ok"]
    accepted = ~rows["adv_rejected"]
    noise = rows["label"] < 0
    aimed = (rows["aim"] < 0) | (rows["adv_label"] == rows["aim"])
    wrong = (rows["adv_label"] != rows["label"]).where(~noise, aimed)
    if (rows["success"] != (rows["valid"] & accepted & wrong)).any():
        return "a success is what is valid, accepted and wrong, and nothing else"
    if (rows["valid"] & (_size(rows) > _largest(rows))).any():
        return "a valid output is farther from its input than ε"
    still = rows["valid"] & (rows["linf"] == 0) & (rows["l2"] == 0) & (rows["l0"] == 0)
    same = (rows["adv_label"] == rows["clean_label"]) & (rows["adv_rejected"] == rows["clean_rejected"])
    if (still & ~same & (rows["protocol"] == "deterministic")).any():
        return "an input that was not changed has another answer"
    return None


def _size(rows: pd.DataFrame) -> pd.Series:
    """The distance of each row in the norm that its ε is of."""
    return rows["l2"].where(rows["norm"] == "l2", rows["l0"]).where(rows["norm"] != "linf", rows["linf"])


def _largest(rows: pd.DataFrame) -> pd.Series:
    """The distance that a valid output of each row may have at most."""
    tolerance = rows["norm"].map(TOLERANCE).astype("float64").fillna(0.0)
    bounded = ~rows["norm"].isin(UNBOUNDED) & ~rows["kind"].isin((CLEAN, CALIBRATION))
    return (rows["eps"] * (1 + tolerance) + tolerance).where(bounded, float("inf"))
