"""Computes the summary of a run: the figures of each cell, and of the worst case over attacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from manifold_bench.bench.metrics.effort import EFFORT_COLUMNS, effort
from manifold_bench.bench.metrics.robustness import (
    CELL,
    FOOLING,
    group_numbers,
    inputs_of,
    is_fooling,
    median_distances,
    over_seeds,
    per_inputs,
    without_calibration,
)
from manifold_bench.bench.metrics.shares import wilson
from manifold_bench.bench.records.schema import ATTACK, CLEAN, WORST_CASE
from manifold_bench.bench.text import NOT_RUN

SUMMARY_COLUMNS = (
    *("dataset", "defense", "attack", "kind", "norm", "eps"),  # which cell
    *("n", "seeds", "status"),  # how much of it has results
    *("accuracy", "error", "rejection"),  # shares of outcomes
    *("robust_accuracy", "robust_low", "robust_high", "robust_mean", "robust_sd", "strict_robust_accuracy"),
    *("median_distance", "valid", "forwards", "backwards", "seconds", *EFFORT_COLUMNS, "reason"),
)

READ = (
    *("dataset", "defense", *CELL, "kind", "seed", "sample", "status", "reason"),
    *("label", "clean_label", "clean_rejected", "adv_label", "adv_rejected", "success", "valid", "distance"),
    *("forwards", "backwards", "seconds", "blind", "moved", "improved"),
)
"""Columns of the records from which a summary is computed; to leave out the others takes a fifth less time."""


def summary(records: pd.DataFrame) -> pd.DataFrame:
    """Return the summary of per-input records: the columns SUMMARY_COLUMNS, a row for each cell and worst case.

    - `kind` is clean, attack, or worst-case.
    - A clean cell has norm "none" and ε 0; its robust accuracy is the share accepted and right.
    - A cell that failed or was skipped has n = its number of inputs, its reason, and NaN for every figure. The reason
      of a cell that is ok is a remark, usually empty.
    - A worst case has one row per data set, defense, norm and ε: see worst_case.
    - `n` is the number of inputs, also where an attack has several rows for each.
    - `seeds` is the number of seeds. With several, figures are those of the worst seed of each input, passes and
      seconds are sums over all seeds, and `robust_mean` and `robust_sd` are mean and deviation over seeds: see
      over_seeds.
    - `valid` is the share of valid outputs; `forwards` and `backwards` are means per input of the passes at this ε;
      `seconds` is the sum. A figure that is undefined is NaN, never 0.
    - `given_up` is the share of attacked inputs on which the attack stopped trying; `blind`, `unmoved` and `stalled`
      say how. In a worst case this holds for every gradient-based attack: see effort.effort.
    - In norm "fooling" `error` is the share of noise images with which an attack succeeded and `rejection` the rest.
    - Calibration records have no rows.
    """
    records = without_calibration(records)[list(READ)]
    made = []
    for (dataset, defense), of_defense in records.groupby(["dataset", "defense"]):
        cases = [cell_case(cell) for _, cell in of_defense.groupby(["norm", "attack", "eps"])]
        made.append(with_figures(cases + worst_cases(of_defense)).assign(dataset=str(dataset), defense=str(defense)))
    table = pd.concat(made, ignore_index=True) if made else with_figures([])
    # the clean cell comes first within its defense, the worst case last within its norm
    order = pd.DataFrame({"clean": table["kind"] != CLEAN, "last": table["kind"] == WORST_CASE})
    keys = ["dataset", "defense", "clean", "norm", "last", "attack", "eps"]
    return table.assign(**order).sort_values(keys, ignore_index=True)[list(SUMMARY_COLUMNS)]


class Strongest(NamedTuple):
    """The strongest single attacks.

    attacks: names of the attacks that alone leave the lowest robust accuracy, in alphabetical order; empty where no
    attack beat an input. share: that robust accuracy in [0, 1], NaN where no attack ran.
    """

    attacks: tuple[str, ...]
    share: float

    @property
    def names(self) -> str:
        """Text with the names of at most two attacks and the number of the others, or that no attack succeeded."""
        if np.isnan(self.share):
            return NOT_RUN
        others = f" and {len(self.attacks) - 2} more" if len(self.attacks) > 2 else ""
        return ", ".join(self.attacks[:2]) + others or "no attack succeeded"


def strongest(summary: pd.DataFrame, eps: float) -> Strongest:
    """Return the strongest single attacks within ε.

    summary: rows of `summary` of one data set, defense and norm, with or without its clean row and worst cases. An
    attack counts at every ε' ≤ ε, because the smaller ball lies in the larger one.
    """
    ok = (summary["kind"] == ATTACK) & (summary["status"] == "ok") & (summary["eps"] <= eps)
    alone = summary.loc[ok, "robust_accuracy"].groupby(summary.loc[ok, "attack"]).min().dropna()
    if alone.empty:
        return Strongest((), np.nan)
    clean = summary.loc[summary["kind"] == CLEAN, "robust_accuracy"]
    if (clean <= alone.min()).any():
        return Strongest((), float(alone.min()))
    return Strongest(tuple(alone.index[alone == alone.min()]), float(alone.min()))


class Case(NamedTuple):
    """What a row of a summary is computed from.

    about: columns of the row that are known without computing figures. rows: records over which figures are computed;
    none where the status is failed or skipped.
    """

    about: dict[str, object]
    rows: pd.DataFrame


def cell_case(cell: pd.DataFrame) -> Case:
    """Return the case of one cell. cell: its records at one ε, all seeds."""
    statuses = cell["status"].to_numpy(dtype=object)
    first = int(statuses.argmin())  # `failed` sorts before `ok`, so that a cell is ok only if all of it is
    status = str(statuses[first])
    about: dict[str, object] = {name: cell[name].iloc[first] for name in (*CELL, "kind", "reason")}
    return _case(about, status, cell[:0] if status != "ok" else cell, cell)


def worst_case(records: pd.DataFrame, eps: float) -> Case:
    """Return the worst case over all attacks of one norm at one ε.

    records: all rows of one data set, defense and norm, with any status. The worst case uses every ok row at ε' ≤ ε,
    because an input beaten in a smaller ball is beaten in the larger one; `reason` names the attacks. Accuracy, error
    and rejection are those of each input's worst outcome; passes and seconds are sums over all attacks.

    The status is `partial` where an attack failed at some ε' ≤ ε, or where the attacks do not share all inputs, so that
    figures are computed over the shared ones; the reason says which. Skipped attacks do not apply to this defense and
    do not count. Where no attack is ok at ε itself, the status is `failed` (or `skipped` if all were skipped), and
    figures are NaN.
    """
    rows, status, reason = attacked_within(records, eps)
    about = {"attack": WORST_CASE, "kind": WORST_CASE, "norm": records["norm"].iloc[0], "eps": eps, "reason": reason}
    return _case(about, status, rows, records[records["eps"] == eps])


def worst_cases(records: pd.DataFrame) -> list[Case]:
    """Return the worst cases of one data set and defense: one for each norm and each ε of its attacks."""
    attacked = records[records["kind"] != CLEAN]
    return [worst_case(rows, eps) for _, rows in attacked.groupby("norm") for eps in sorted(rows["eps"].unique())]


def _case(about: dict[str, object], status: str, rows: pd.DataFrame, tried: pd.DataFrame) -> Case:
    """Return a case. tried: records whose inputs and seeds are counted if `rows` is empty."""
    counts = {} if len(rows) else {"n": inputs_of(tried).nunique(), "seeds": tried["seed"].nunique()}
    return Case(about | counts | {"status": status}, rows)


def attacked_within(records: pd.DataFrame, eps: float) -> tuple[pd.DataFrame, str, str]:
    """Return the rows over which a worst case is computed, its status and its reason; see worst_case.

    There are no rows where the status is failed or skipped.
    """
    sizes, statuses = records["eps"].to_numpy(), records["status"].to_numpy(dtype=object)
    within, here = sizes <= eps, sizes == eps
    states = {status: statuses == status for status in ("ok", "failed", "skipped")}
    if not (here & states["ok"]).any():
        status = "failed" if (here & states["failed"]).any() else "skipped"
        return records[:0], status, _named_reasons(records[here & states[status]])
    ok, failed = records[within & states["ok"]], records[within & states["failed"]]
    reason = f"over {', '.join(sorted(ok['attack'].unique()))}"
    if len(failed):
        reason += f"; failed: {_named_reasons(failed)}"
    parts = ["attack", "eps"] if is_fooling(ok) else ["attack", "eps", "seed"]
    cell, place = group_numbers(*(ok[part] for part in parts)), group_numbers(inputs_of(ok))
    count = place.max() + 1
    attacked = np.bincount(np.unique(cell * count + place) % count)  # number of cells of each input
    common = attacked == cell.max() + 1
    if not common.all():
        reason += f"; over the {common.sum()} inputs of {count} that all of them attacked"
        ok = ok[common[place]]
    return ok, "ok" if len(failed) == 0 and common.all() else "partial", reason


def with_figures(cases: Sequence[Case]) -> pd.DataFrame:
    """Return the columns SUMMARY_COLUMNS, a row for each case; figures are NaN for a case without rows."""
    table = pd.DataFrame([case.about for case in cases], columns=list(SUMMARY_COLUMNS))
    sizes = [len(case.rows) for case in cases]
    if sum(sizes):
        found = _figures(pd.concat([case.rows for case in cases]), np.repeat(np.arange(len(cases)), sizes))
        table.loc[found.index, list(found)] = found
    return table.astype({"n": int, "seeds": int})


def _figures(records: pd.DataFrame, group: np.ndarray) -> pd.DataFrame:
    """Return the figures of several groups of rows, indexed by the group's number.

    group: [N], number of each row's group.
    """
    inputs = per_inputs(records, group)
    found = pd.DataFrame({"n": inputs.groupby("group").size(), "seeds": records["seed"].groupby(group).nunique()})
    of_right = ["accuracy", "robust_accuracy", "strict_robust_accuracy"]
    hits = inputs.groupby("group")[["error", "rejection", *of_right]].sum()
    found = found.join(hits.div(found["n"], axis=0))
    intervals = [wilson(int(count), int(n)) for count, n in zip(hits["robust_accuracy"], found["n"], strict=True)]
    found["robust_low"], found["robust_high"] = ([one[end] for one in intervals] for end in (1, 2))
    # no answer to noise is right
    noise = pd.Series(records["norm"].to_numpy() == FOOLING).groupby(group).any()
    found.loc[noise, [*of_right, "robust_low", "robust_high"]] = np.nan
    found["robust_mean"], found["robust_sd"] = found["robust_accuracy"], np.nan
    for number in found.index[found["seeds"] > 1]:
        found.loc[number, ["robust_mean", "robust_sd"]] = over_seeds(records[group == number])[1:]
    found["median_distance"] = median_distances(records, group)
    found["valid"] = records["valid"].groupby(group).mean()
    passes = records[["forwards", "backwards"]].groupby(group).sum().div(found["n"], axis=0)
    return found.join([passes, records["seconds"].groupby(group).sum(), effort(records, group, inputs_of(records))])


def _named_reasons(records: pd.DataFrame) -> str:
    """Return the attacks in the rows with their reasons, each once: `fgsm, pgd (out of memory), cw (timed out)`."""
    pairs = records[["attack", "reason"]].drop_duplicates().sort_values(["attack", "reason"])
    attacks = pairs.groupby("reason", sort=False)["attack"].agg(", ".join)
    return ", ".join(f"{names} ({reason})" for reason, names in attacks.items())
