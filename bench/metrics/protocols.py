"""The four protocols by which the answers of a randomized defense can be judged, side by side.

A randomized defense gives n answers to each image. Its accuracy is that of a single answer, the mean over the n
answers, the worst of n (an image counts if every answer does), or that of the majority vote of n.

An answer to a clean image counts if it is accepted and right, and an answer to an attacked image if it is not accepted
and wrong. A rejection of an attacked image deserves credit only so far as the clean image is accepted, so the value
under attack is multiplied by that of the clean image's acceptance. The attacker may leave an image as it was: where
more of the clean answers are wrong than of the attacked ones, the clean ones stand for both. The worst of n is then the
robust accuracy of `robustness`, and with n = 1 all four are.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import pandas as pd

from manifold_bench.bench.metrics.robustness import FOOLING
from manifold_bench.bench.metrics.shares import wilson
from manifold_bench.bench.records.schema import ANSWERS, ATTACK, CLEAN

PROTOCOLS = ("single", "mean", "worst", "majority")
"""The protocols, in the order of tables."""

CELL = ("dataset", "defense", "attack", "norm", "eps")
"""Columns that identify a cell."""

INPUT = ("dataset", "defense", "seed", "sample")
"""Columns by which an attacked input finds its clean answers."""


def protocols(records: pd.DataFrame) -> pd.DataFrame:
    """Return the figures of each cell of randomized defenses, clean or attacked, by the four protocols.

    Columns of the result: CELL, the numbers of inputs (`n`) and of answers to each (`answers`), and each of PROTOCOLS
    with its 95 % Wilson interval (`mean_low`, `mean_high`), which is conservative for the mean over answers (`wilson`).
    Of an input with several rows in a cell, such as target classes and seeds, the smallest value of each protocol
    counts. Figures of a cell that failed or was skipped are NaN. Noise has no right answer, and no row here. There are
    no rows at all where no records count answers, as those of earlier versions.
    """
    ends = [f"{name}{end}" for name in PROTOCOLS for end in ("", "_low", "_high")]
    found: list[list[object]] = []
    if "answers" in records:
        shown = records["kind"].isin([CLEAN, ATTACK]) & (records["norm"] != FOOLING)
        rows = records[shown & (records["protocol"] != "deterministic")]
        for cell, own in rows.assign(**_values(rows)).groupby(list(CELL)):
            values = own.groupby("sample")[list(PROTOCOLS)].min()
            n, known = len(values), bool(own[list(PROTOCOLS)].notna().to_numpy().all())
            figures = [end for name in PROTOCOLS for end in wilson(float(values[name].sum()), n if known else 0)[:3]]
            found.append([*cast(tuple[object, ...], cell), n, own["answers"].max(), *figures])
    return pd.DataFrame(found, columns=[*CELL, "n", "answers", *ends])


def _values(rows: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return the value of each row by each protocol, float [N] in [0, 1]; NaN where answers were not counted."""
    label, is_clean = rows["label"].to_numpy(), (rows["kind"] == CLEAN).to_numpy(bool)
    unperturbed = rows[is_clean].drop_duplicates(list(INPUT))
    clean = _answers(rows[list(INPUT)].merge(unperturbed, "left", list(INPUT)))
    own = _answers(rows)
    own = {name: np.where(clean["answers_wrong"] > own["answers_wrong"], clean[name], own[name]) for name in own}
    n, wrong = own["answers"], own["answers_wrong"]
    rejected = clean["answers"] - clean["answers_right"] - clean["answers_wrong"]

    def holds(name: str) -> np.ndarray:
        return (clean[name] >= 0) & ((own[name] == label) | (own[name] < 0))

    values = {
        "single": holds("first_answer"),
        "mean": np.where(is_clean, own["answers_right"] / n, (1 - rejected / clean["answers"]) * (1 - wrong / n)),
        "worst": (rejected == 0) & (wrong == 0),
        "majority": holds("majority_answer"),
    }
    known = ~np.isnan(n) & ~np.isnan(clean["answers"])
    return {name: np.where(known, value, np.nan) for name, value in values.items()}


def _answers(rows: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return the columns ANSWERS of rows as float [N]; NaN where the status is not ok."""
    ok = rows["status"].eq("ok").fillna(False).to_numpy(bool)
    return {name: np.where(ok, rows[name].to_numpy(float), np.nan) for name in ANSWERS}
