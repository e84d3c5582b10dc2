"""Compares a defense with the others of a run on the same inputs, and ranks it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from manifold_bench.bench.metrics.paired import holm, mcnemar, sign_of
from manifold_bench.bench.metrics.robustness import FOOLING, per_input
from manifold_bench.bench.metrics.summary import attacked_within
from manifold_bench.bench.records.schema import CALIBRATION, CLEAN

PAIRED_COLUMNS = (
    *("dataset", "kind", "norm", "eps", "other", "n"),  # what is compared
    *("own_share", "other_share", "gained", "lost", "p", "sign", "reason"),
)

Columns = dict[str, Any]
"""Name of a column of PAIRED_COLUMNS → its value in a row."""


def against_others(records: pd.DataFrame, defense: str) -> pd.DataFrame:
    """Compare a defense with each other one on the inputs that both have figures for: the columns PAIRED_COLUMNS.

    records: per-input records of a run. There is a row for each data set and other defense on clean inputs (kind
    "clean": accepted and right), and one at each norm and ε that both were attacked with: the worst case over the
    attacks that both have. `gained`, `lost`: number of inputs that are right or robust only with the defense, and only
    with the other one. `p`: exact McNemar test, Holm-adjusted over all rows of the data set. `sign`: + better, - worse,
    ~ not significant, = no difference, x not compared because one has no figures. `reason`: why, or why a worst case is
    partial. Norm "fooling" is left out.
    """
    rows: list[Columns] = []
    tested = records[(records["kind"] != CALIBRATION) & (records["norm"] != FOOLING)]
    for dataset, there in tested.groupby("dataset"):
        mine = there[there["defense"] == defense]
        if len(mine):
            compared = [
                {"dataset": dataset, "other": other, **result}
                for other, theirs in there[there["defense"] != defense].groupby("defense")
                for result in _against(mine, theirs)
            ]
            rows += _judged(compared)
    return pd.DataFrame(rows, columns=list(PAIRED_COLUMNS))


def _against(mine: pd.DataFrame, theirs: pd.DataFrame) -> Iterator[Columns]:
    """Yield the comparison on clean inputs, and at every norm and ε that both defenses have."""
    for norm, own in mine.groupby("norm"):
        other = theirs[theirs["norm"] == norm]
        shared = set(own["attack"]) & set(other["attack"])
        own, other = (rows[rows["attack"].isin(shared)] for rows in (own, other))
        for eps in sorted(set(own["eps"]) & set(other["eps"])):
            place = {"kind": own["kind"].iloc[0], "norm": norm, "eps": float(eps)}
            yield place | _paired(own, other, float(eps))


def _paired(own: pd.DataFrame, other: pd.DataFrame, eps: float) -> Columns:
    sides, reasons = [], []
    for rows in (own, other):
        name = rows["defense"].iloc[0]
        ok, status, reason = attacked_within(rows, eps)
        if ok.empty:
            return {"n": 0, "sign": "x", "reason": f"{name}: {status}: {reason}"}
        if status != "ok":
            reasons.append(f"{name}: {reason}")
        inputs = per_input(ok)
        sides.append(inputs["accuracy" if rows["kind"].iloc[0] == CLEAN else "robust_accuracy"])
    both = pd.concat(sides, axis=1, join="inner", keys=["own", "other"])
    gained, lost = int((both["own"] & ~both["other"]).sum()), int((~both["own"] & both["other"]).sum())
    shares = {"own_share": both["own"].mean(), "other_share": both["other"].mean()}
    tested = {"gained": gained, "lost": lost, "p": mcnemar(lost, gained), "reason": "; ".join(reasons)}
    return {"n": len(both), **shares, **tested}


def _judged(rows: list[Columns]) -> list[Columns]:
    """Return the rows with Holm-adjusted p and with signs."""
    tested = [row for row in rows if "p" in row]
    for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row |= {"p": p, "sign": sign_of(row["lost"], row["gained"], p)}
    return rows


def rank(rows: pd.DataFrame) -> tuple[int, int]:
    """Return the rank of the defense among all that were compared, and their number.

    rows: rows of against_others for one data set, norm and ε.
    """
    compared = rows[rows["sign"] != "x"]
    return 1 + int((compared["other_share"] > compared["own_share"]).sum()), 1 + len(compared)
