"""Compares a defense with the others of a run on the same inputs, and ranks it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from manifold_bench.bench.metrics.paired import holm, mcnemar, sign_of
from manifold_bench.bench.metrics.robustness import FOOLING, per_input, per_inputs
from manifold_bench.bench.metrics.summary import FIGURED, attacked_within, worst_cases
from manifold_bench.bench.records.schema import CALIBRATION

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
    columns = ["dataset", "defense", "reason", *FIGURED]  # to leave out the others saves time
    tested = records.loc[(records["kind"] != CALIBRATION) & (records["norm"] != FOOLING), columns]
    for dataset, there in tested.groupby("dataset"):
        sides = {str(name): _Side(own) for name, own in there.groupby("defense")}
        if mine := sides.pop(defense, None):
            compared = [
                {"dataset": dataset, "other": other, **result}
                for other, theirs in sides.items()
                for result in _against(mine, theirs)
            ]
            rows += _judged(compared)
    return pd.DataFrame(rows, columns=list(PAIRED_COLUMNS))


Found = tuple[pd.Series | None, str]
"""Whether each input is right or robust, by sample, and why some attacks are missing; None where all are missing."""


class _Side:
    """One defense of a comparison. rows: its records on one data set."""

    def __init__(self, rows: pd.DataFrame) -> None:
        self.name = rows["defense"].iloc[0]
        self.norms = {str(norm): same for norm, same in rows.groupby("norm")}
        self._known: dict[tuple[str, frozenset[str]], dict[float, Found]] = {}

    def found(self, norm: str, attacks: frozenset[str]) -> dict[float, Found]:
        """Return ε → the result in the worst case over these attacks within ε; norm "none" has the clean one at 0.

        Results are kept, because most defenses share the same attacks with a defense.
        """
        if (norm, attacks) not in self._known:
            rows = self.norms[norm]
            rows = rows[rows["attack"].isin(attacks)]
            self._known[norm, attacks] = self._clean(rows) if norm == "none" else self._attacked(rows)
        return self._known[norm, attacks]

    def _clean(self, rows: pd.DataFrame) -> dict[float, Found]:
        ok, status, reason = attacked_within(rows, 0.0)
        return {0.0: self._named(per_input(ok)["accuracy"] if len(ok) else None, status, reason)}

    def _attacked(self, rows: pd.DataFrame) -> dict[float, Found]:
        cases = worst_cases(rows)
        sizes = [len(case.rows) for case in cases]
        places = np.concatenate([case.rows for case in cases])
        inputs = per_inputs(rows.iloc[places], np.repeat(np.arange(len(cases)), sizes)).set_index("sample")
        robust = dict(iter(inputs["robust_accuracy"].groupby(inputs["group"])))
        return {
            float(str(about["eps"])): self._named(robust.get(i), str(about["status"]), str(about["reason"]))
            for i, (about, _) in enumerate(cases)
        }

    def _named(self, inputs: pd.Series | None, status: str, reason: str) -> Found:
        """Return a result with its reason, which names the defense."""
        why = f"{self.name}: {reason}" if inputs is not None else f"{self.name}: {status}: {reason}"
        return inputs, "" if status == "ok" else why


def _against(mine: _Side, theirs: _Side) -> Iterator[Columns]:
    """Yield the comparison on clean inputs, and at every norm and ε that both defenses have."""
    for norm in (norm for norm in mine.norms if norm in theirs.norms):
        own, other = mine.norms[norm], theirs.norms[norm]
        shared = frozenset(own["attack"]) & frozenset(other["attack"])
        if not shared:
            continue
        sides = mine.found(norm, shared), theirs.found(norm, shared)
        for eps in sorted(set(sides[0]) & set(sides[1])):
            place = {"kind": own["kind"].iloc[0], "norm": norm, "eps": eps}
            yield place | _paired(sides[0][eps], sides[1][eps])


def _paired(own: Found, other: Found) -> Columns:
    """Return the comparison of two results of `_Side.found`."""
    if own[0] is None or other[0] is None:
        return {"n": 0, "sign": "x", "reason": own[1] if own[0] is None else other[1]}
    both = pd.concat([own[0], other[0]], axis=1, join="inner", keys=["own", "other"])
    gained, lost = int((both["own"] & ~both["other"]).sum()), int((~both["own"] & both["other"]).sum())
    shares = {"own_share": both["own"].mean(), "other_share": both["other"].mean()}
    reasons = "; ".join(filter(None, (own[1], other[1])))
    return {"n": len(both), **shares, "gained": gained, "lost": lost, "p": mcnemar(lost, gained), "reason": reasons}


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
