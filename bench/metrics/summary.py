"""Computes the summary of a run: the figures of each cell, and of the worst case over attacks."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
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
from manifold_bench.bench.records.results import Results
from manifold_bench.bench.records.schema import ATTACK, CLEAN, WORST_CASE
from manifold_bench.bench.text import NOT_RUN

SUMMARY_COLUMNS = (
    *("dataset", "defense", "attack", "kind", "norm", "eps"),  # which cell
    *("n", "seeds", "status"),  # how much of it has results
    *("accuracy", "error", "rejection"),  # shares of outcomes
    *("robust_accuracy", "robust_low", "robust_high", "robust_mean", "robust_sd", "strict_robust_accuracy"),
    *("median_distance", "valid", "forwards", "backwards", "seconds", *EFFORT_COLUMNS, "reason"),
)

FIGURED = (
    *(*CELL, "kind", "seed", "sample", "status"),
    *("label", "clean_label", "clean_rejected", "adv_label", "adv_rejected", "success", "valid", "distance"),
    *("forwards", "backwards", "seconds", "blind", "moved", "improved"),
)
"""Columns of the records from which figures are computed; to leave out the others saves time."""


def summary_of(results: Results) -> pd.DataFrame:
    """Return the summary of a run's records: see `summary`.

    Where all attacked images of a defense were made elsewhere, nothing is said of effort, because nobody saw it.
    """
    found = summary(results.records)
    for (dataset, defense), rows in found.groupby(["dataset", "defense"]):
        if results.made_elsewhere(str(dataset), str(defense)):
            found.loc[rows.index, list(EFFORT_COLUMNS)] = np.nan
    return found


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
    - `valid` is the share of valid outputs; `forwards` and `backwards` are means per input of the passes at this ε, in
      a worst case of those of all its attacks at every ε up to this one; `seconds` is the sum. A figure that is
      undefined is NaN, never 0.
    - `attacked` is the number of attacked inputs at the largest ε, and `given_up` the share of them on which the attack
      stopped trying; `blind`, `unmoved`, `stalled` and `unqueried` say how. In a worst case this holds for every
      gradient-based attack. `masked` is the share on which an attack had no gradient and nothing succeeded: see
      effort.effort.
    - In norm "fooling" `error` is the share of noise images with which an attack succeeded and `rejection` the rest.
    - Calibration records have no rows.
    """
    records = without_calibration(records)[["dataset", "defense", "reason", *FIGURED]]
    made = []
    for (dataset, defense), rows in records.groupby(["dataset", "defense"]):
        found = with_figures(rows, cell_cases(rows) + worst_cases(rows))
        made.append(found.assign(dataset=str(dataset), defense=str(defense)))
    table = pd.concat(made, ignore_index=True) if made else with_figures(records, [])
    table = table.astype({"n": int, "seeds": int})
    # the clean cell comes first within its defense, the worst case last within its norm
    order = pd.DataFrame({"clean": table["kind"] != CLEAN, "last": table["kind"] == WORST_CASE})
    keys = ["dataset", "defense", "clean", "norm", "last", "attack", "eps"]
    return table.assign(**order).sort_values(keys, ignore_index=True)[list(SUMMARY_COLUMNS)]


class Strongest(NamedTuple):
    """The attacks that alone leave the lowest robust accuracy, and that accuracy.

    attacks: names of these attacks, in alphabetical order; empty where no attack beat an input. share: that robust
    accuracy in [0, 1], NaN where no attack ran.
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
    rows = list(zip(*(summary[name] for name in ("kind", "attack", "status", "eps", "robust_accuracy")), strict=True))
    alone = {
        (share, attack)
        for kind, attack, status, size, share in rows
        if kind == ATTACK and status == "ok" and size <= eps and not np.isnan(share)
    }
    if not alone:
        return Strongest((), np.nan)
    least = min(share for share, _ in alone)
    if any(kind == CLEAN and share <= least for kind, _, _, _, share in rows):
        return Strongest((), least)
    return Strongest(tuple(sorted(attack for share, attack in alone if share == least)), least)


class Case(NamedTuple):
    """One row of a summary before its figures are computed.

    about: columns of the row that are known without computing figures. rows: positions of the records over which
    figures are computed; none where the status is failed or skipped.
    """

    about: dict[str, object]
    rows: np.ndarray


def cell_cases(records: pd.DataFrame) -> list[Case]:
    """Return the case of each cell, of all its seeds. records: those of one data set and defense."""
    known = {name: records[name].to_numpy(dtype=object) for name in (*CELL, "kind", "reason", "status")}
    made = []
    for rows in map(np.asarray, records.groupby(list(CELL)).indices.values()):
        first = rows[known["status"][rows].argmin()]  # `failed` sorts before `ok`: a cell is ok only if all of it is
        about = {name: values[first] for name, values in known.items()}
        made.append(_case(about, rows if about["status"] == "ok" else rows[:0], records, rows))
    return made


def worst_cases(records: pd.DataFrame) -> list[Case]:
    """Return the worst cases over all attacks of a norm: one for each norm and each ε of its attacks.

    records: all rows of one data set and defense, with any status. The worst case uses every ok row at ε' ≤ ε,
    because an input beaten in a smaller ball is beaten in the larger one; `reason` names the attacks. Accuracy, error
    and rejection are those of each input's worst outcome; passes and seconds are sums over all attacks.

    The status is `partial` where an attack failed at some ε' ≤ ε, or where the attacks do not share all inputs, so that
    figures are computed over the shared ones; the reason says which. Skipped attacks do not apply to this defense and
    do not count. Where no attack is ok at ε itself, the status is `failed` (or `skipped` if all were skipped), and
    figures are NaN.
    """
    made = []
    attacked = np.flatnonzero(records["kind"] != CLEAN)
    for norm, places in records.iloc[attacked].groupby("norm").indices.items():
        where = attacked[places]
        of_norm = records.iloc[where]
        ladder = np.unique(of_norm["eps"])
        for eps, (rows, status, reason) in zip(ladder, _within(of_norm, ladder), strict=True):
            about = {"attack": WORST_CASE, "kind": WORST_CASE, "norm": norm, "eps": eps}
            tried = where[of_norm["eps"] == eps]
            made.append(_case(about | {"reason": reason, "status": status}, where[rows], records, tried))
    return made


def _case(about: dict[str, object], rows: np.ndarray, records: pd.DataFrame, tried: np.ndarray) -> Case:
    """Return a case. tried: positions of the records whose inputs and seeds are counted if `rows` is empty."""
    if not len(rows):
        lost = records.iloc[tried]
        about |= {"n": inputs_of(lost).nunique(), "seeds": lost["seed"].nunique()}
    return Case(about, rows)


def attacked_within(records: pd.DataFrame, eps: float) -> tuple[pd.DataFrame, str, str]:
    """Return the rows over which a worst case is computed, its status and its reason; see worst_cases.

    records: all rows of one data set, defense and norm, with any status. There are no rows where the status is failed
    or skipped.
    """
    ((rows, status, reason),) = _within(records, [eps])
    return records.iloc[rows], status, reason


def _within(records: pd.DataFrame, ladder: Sequence[float] | np.ndarray) -> Iterator[tuple[np.ndarray, str, str]]:
    """Yield the result of attacked_within for each of these ε, with positions in place of rows."""
    sizes = records["eps"].to_numpy()
    statuses, attacks = (records[name].to_numpy(dtype=object) for name in ("status", "attack"))
    states = {status: statuses == status for status in ("ok", "failed", "skipped")}
    seeds = [] if is_fooling(records) else [records["seed"]]
    cell, place = group_numbers(records["attack"], records["eps"], *seeds), group_numbers(inputs_of(records))
    count = place.max(initial=-1) + 1
    for eps in ladder:
        within, here = sizes <= eps, sizes == eps
        if not (here & states["ok"]).any():
            status = "failed" if (here & states["failed"]).any() else "skipped"
            yield np.array([], dtype=int), status, _named_reasons(records[here & states[status]])
            continue
        ok, failed = np.flatnonzero(within & states["ok"]), within & states["failed"]
        reason = f"over {', '.join(sorted(set(attacks[ok])))}"
        if failed.any():
            reason += f"; failed: {_named_reasons(records[failed])}"
        cells, inputs = np.divmod(np.unique(cell[ok] * count + place[ok]), count)
        attacked = np.bincount(inputs, minlength=count)  # number of cells of each input
        common, some = attacked == len(np.unique(cells)), attacked > 0
        whole = (common == some).all()
        if not whole:
            reason += f"; over the {common.sum()} inputs of {some.sum()} that all of them attacked"
        yield ok[common[place[ok]]], "ok" if whole and not failed.any() else "partial", reason


def with_figures(records: pd.DataFrame, cases: Sequence[Case]) -> pd.DataFrame:
    """Return the columns SUMMARY_COLUMNS, a row for each case; figures are NaN for a case without rows.

    records: those whose positions the cases hold.
    """
    figures: dict[Hashable, dict[Hashable, object]] = {}
    sizes = [len(case.rows) for case in cases]
    if sum(sizes):
        rows = records[list(FIGURED)].iloc[np.concatenate([case.rows for case in cases])]
        worst = {number for number, case in enumerate(cases) if case.about.get("kind") == WORST_CASE}
        figures = _figures(rows, np.repeat(np.arange(len(cases)), sizes), worst).to_dict("index")
    return pd.DataFrame(
        [{**case.about, **figures.get(number, {})} for number, case in enumerate(cases)], columns=list(SUMMARY_COLUMNS)
    )


def _figures(records: pd.DataFrame, group: np.ndarray, worst: set[int]) -> pd.DataFrame:
    """Return the figures of several groups of rows, indexed by the group's number.

    group: [N], number of each row's group. worst: numbers of the groups that are worst cases.
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
    tried = effort(records, group, inputs_of(records), worst - set(noise.index[noise]))
    return found.join([passes, records["seconds"].groupby(group).sum(), tried])


def _named_reasons(records: pd.DataFrame) -> str:
    """Return the attacks in the rows with their reasons, each once: `fgsm, pgd (out of memory), cw (timed out)`."""
    pairs = records[["attack", "reason"]].drop_duplicates().sort_values(["attack", "reason"])
    attacks = pairs.groupby("reason", sort=False)["attack"].agg(", ".join)
    return ", ".join(f"{names} ({reason})" for reason, names in attacks.items())
