"""Every figure of the benchmark, as a function of per-input records (bench.records)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from manifold_bench.bench.metrics.effort import EFFORT_COLUMNS, effort
from manifold_bench.bench.metrics.shares import Estimate, MissingCells, wilson
from manifold_bench.bench.records.schema import ATTACK, CALIBRATION, CLEAN, IMAGE_COLUMNS, WORST_CASE
from manifold_bench.bench.text import NOT_RUN, eps_text

RIGHT, REJECTED, WRONG = 0, 1, 2
"""What came of one answer, in the order in which it hurts: accepted and right, rejected, accepted and wrong."""


OUTCOMES = {"accuracy": RIGHT, "rejection": REJECTED, "error": WRONG}
"""The figure that is the share of inputs whose worst outcome it is."""


FOOLING = "fooling"
"""The norm in which the inputs are noise: no answer to them is right, and accepting them is the error."""


CELL = ("attack", "norm", "eps")
"""What tells the cells of a defense on a data set apart."""


SUMMARY_COLUMNS = (
    *("dataset", "defense", "attack", "kind", "norm", "eps"),  # which cell
    *("n", "seeds", "status"),  # what of it there is
    *("accuracy", "error", "rejection"),  # shares of outcomes
    *("robust_accuracy", "robust_low", "robust_high", "robust_mean", "robust_sd", "strict_robust_accuracy"),
    *("median_distance", "valid", "forwards", "backwards", "seconds", *EFFORT_COLUMNS, "reason"),
)


def outcomes(records: pd.DataFrame) -> np.ndarray:
    """RIGHT, REJECTED or WRONG, int [N], for each of N rows: the clean answer's in a clean cell, else the attacked.

    In norm "fooling" nothing is right: WRONG where the attack succeeded, REJECTED where it did not.
    """
    clean = records["kind"].to_numpy() == CLEAN
    label = np.where(clean, records["clean_label"], records["adv_label"])
    rejected = np.where(clean, records["clean_rejected"], records["adv_rejected"])
    outcome = np.where(rejected, REJECTED, np.where(label == records["label"], RIGHT, WRONG))
    return np.where(records["norm"] == FOOLING, np.where(records["success"], WRONG, REJECTED), outcome)


def per_input(records: pd.DataFrame) -> pd.DataFrame:
    """One row per input, indexed by sample, over all attacks and strengths in `records`.

    records: rows of one data set and defense, all with status ok; a single cell or several. An input may have several
    rows in a cell, one for each class it was to be taken for and each seed: any of them beats it. Rows of the
    calibration are left out; norm "fooling" has inputs of its own, so its rows stand alone (ValueError), and every seed
    draws others.
    Columns: `worst`, the worst outcome of any row (wrong > rejected > right); and by the figure that is their share of
    true ones: `accuracy`, `rejection`, `error`, which of these it is; `robust_accuracy`, the clean input is accepted
    and right and no valid output is accepted and wrong (fooling: no attack succeeded); `strict_robust_accuracy`, robust
    and no output is rejected; `accuracy_without_rejection`, the label is right in every row, whatever the detector
    says.
    Raises MissingCells where a row's status is not ok or an input lacks one of the cells, with one of its seeds, or
    rows of it: a figure over what is left would pass for a figure over all of it.
    """
    records = _without_calibration(records)
    _is_fooling(records)
    not_ok = (records["status"] != "ok").to_numpy()
    if not_ok.any():
        bad = records.loc[not_ok, [*CELL, "status"]].drop_duplicates().to_numpy()
        named = ", ".join(f"{attack} {norm} ε = {eps_text(eps)}: {status}" for attack, norm, eps, status in bad)
        raise MissingCells(f"no figure over cells that are not ok: {named}")
    return _per_input(records, np.zeros(len(records), dtype=int)).drop(columns="group").set_index("sample")


def _per_input(records: pd.DataFrame, group: np.ndarray) -> pd.DataFrame:
    """`per_input` for several groups of rows at once: group [N], its number for each row, is a further column."""
    sample = inputs_of(records).to_numpy()
    place = _numbered(group, sample)
    _, first = np.unique(place, return_index=True)
    inputs = pd.DataFrame({"group": group[first], "sample": sample[first]})
    seed = np.where(records["norm"] == FOOLING, 0, records["seed"])
    _check_complete(records, place, _numbered(group, *(records[name] for name in CELL), seed), group[first])
    outcome, is_robust = outcomes(records), robust(records).to_numpy()
    is_right = np.where(records["kind"] == CLEAN, records["clean_label"], records["adv_label"]) == records["label"]
    worst = np.full(len(first), RIGHT)
    np.maximum.at(worst, place, outcome)
    held = {"robust_accuracy": is_robust, "strict_robust_accuracy": is_robust & (outcome != REJECTED)}
    held |= {"accuracy_without_rejection": is_right}
    # an input holds where none of its rows breaks
    always = {name: np.bincount(place, ~holds, len(first)) == 0 for name, holds in held.items()}
    return inputs.assign(worst=worst, **{name: worst == one for name, one in OUTCOMES.items()}, **always)


def _check_complete(records: pd.DataFrame, place: np.ndarray, cell: np.ndarray, group: np.ndarray) -> None:
    """Raises MissingCells where an input lacks a cell of its group, or rows of it.

    place, cell: number of the input and of the cell (group, attack, norm, ε and seed) of each row, [N]. group: of each
    input.
    """
    pairs, counts = np.unique(cell * len(group) + place, return_counts=True)
    its_cell, its_input = np.divmod(pairs, max(len(group), 1))
    most = np.zeros(cell.max(initial=-1) + 1, dtype=int)
    np.maximum.at(most, its_cell, counts)
    whole = np.bincount(its_cell, counts == most[its_cell], len(most))
    lacking = np.bincount(group)[group[its_input]] - whole[its_cell]
    if lacking.any():
        worst = int(lacking.argmax())
        attack, norm, eps, seed = records.loc[cell == its_cell[worst], [*CELL, "seed"]].iloc[0]
        several = len(records["seed"].unique()) > 1 and norm != FOOLING
        named = f"{attack} {norm} ε = {eps_text(eps)}" + (f", seed {seed}" if several else "")
        inputs = int((group == group[its_input[worst]]).sum())
        raise MissingCells(f"{lacking[worst]:g} of {inputs} inputs lack {named}")


def inputs_of(records: pd.DataFrame) -> pd.Series:
    """Which input of a data set each row is of: its sample.

    In norm "fooling" a number for each seed and sample: every seed draws noise images of its own.
    """
    fooling = records["norm"] == FOOLING
    if not fooling.any():
        return records["sample"]
    return records["sample"].mask(fooling, _numbered(records["seed"], records["sample"]))


def _numbered(*columns: pd.Series | np.ndarray) -> np.ndarray:
    """Which combination of values each row has, as a number from 0 on: int [N]."""
    codes: np.ndarray = np.zeros(len(columns[0]), dtype=int)
    for column in columns:
        own, values = pd.Series(column).factorize()
        codes = codes * len(values) + own
    return np.unique(codes, return_inverse=True)[1]


def _without_calibration(records: pd.DataFrame) -> pd.DataFrame:
    """The rows on test inputs: thresholds are all that the calibration's are for."""
    test = (records["kind"] != CALIBRATION).to_numpy()
    return records if test.all() else records[test]


def _is_fooling(records: pd.DataFrame) -> bool:
    """Whether the rows are of norm "fooling"; raises ValueError where only some are."""
    fooling = records["norm"] == FOOLING
    if fooling.any() and not fooling.all():
        raise ValueError('norm "fooling" has inputs of its own: no figure is taken over it together with others')
    return bool(fooling.any())


def clean_right(records: pd.DataFrame) -> pd.Series:
    """Per row, whether the clean input is accepted and right."""
    return ~records["clean_rejected"] & (records["clean_label"] == records["label"])


def robust(records: pd.DataFrame) -> pd.Series:
    """Per row, whether the clean input is accepted and right and the attack had no success; of noise, the latter."""
    return ~records["success"] & (clean_right(records) | (records["norm"] == FOOLING))


def _share(records: pd.DataFrame, figure: str) -> Estimate:
    """The share of inputs for which a column of per_input is true; undefined in norm "fooling" for right answers."""
    hits = per_input(records)[figure]
    if figure not in ("rejection", "error") and (records["norm"] == FOOLING).any():
        return Estimate(np.nan, np.nan, np.nan, len(hits))
    return wilson(int(hits.sum()), len(hits))


def accuracy(records: pd.DataFrame) -> Estimate:
    """Share of inputs whose worst answer in `records` is accepted and right. Arguments and errors as in per_input.

    NaN in norm "fooling", as are all figures that speak of right answers.
    """
    return _share(records, "accuracy")


def accuracy_without_rejection(records: pd.DataFrame) -> Estimate:
    """Share of inputs whose label is right in every row of `records`, whatever the detector says. As in accuracy.

    The attacked rows are outputs made against the whole defense: they bound from above what is left of the accuracy
    where an attacker knows that nothing is rejected.
    """
    return _share(records, "accuracy_without_rejection")


def error(records: pd.DataFrame) -> Estimate:
    """Share of inputs whose worst answer in `records` is accepted and wrong; in norm "fooling", the share of noise
    images with which an attack succeeded. Arguments and errors as in per_input.
    """
    return _share(records, "error")


def rejection(records: pd.DataFrame) -> Estimate:
    """Share of inputs whose worst answer in `records` is a rejection: 1 − accuracy − error. As in per_input.

    In norm "fooling", 1 − error.
    """
    return _share(records, "rejection")


def robust_accuracy(records: pd.DataFrame) -> Estimate:
    """Share of inputs accepted and right when clean and never accepted and wrong under any attack in `records`.

    The mean over inputs of the worst over attacks ('per-example', Carlini et al. 2019), never the worst over attacks
    of the mean. Rejecting an adversarial input counts as a win. Arguments and errors as in per_input.
    """
    return _share(records, "robust_accuracy")


def strict_robust_accuracy(records: pd.DataFrame) -> Estimate:
    """As robust_accuracy, and every adversarial input is accepted too: rejecting one counts as a loss."""
    return _share(records, "strict_robust_accuracy")


def over_seeds(records: pd.DataFrame) -> tuple[int, float, float]:
    """Number of seeds, and mean and sample standard deviation over them of the robust accuracy with each alone.

    robust_accuracy over several seeds is the worst of them on each input, what an attacker with restarts has; this says
    how much chance there is in one. The deviation is NaN for one seed; both are NaN where not every seed has the same
    attacks and strengths. Arguments and errors as in per_input.
    """
    seeds = [rows for _, rows in records.groupby("seed")]
    cells = {frozenset(rows[["attack", "norm", "eps"]].itertuples(index=False, name=None)) for rows in seeds}
    if len(cells) != 1:
        return len(seeds), np.nan, np.nan
    values = [robust_accuracy(rows).value for rows in seeds]
    return len(seeds), float(np.mean(values)), float(np.std(values, ddof=1)) if len(seeds) > 1 else np.nan


def median_distance(records: pd.DataFrame) -> float:
    """Median over inputs of the smallest distance, in the cells' norm, at which any attack in `records` beat them.

    0 for an input that is wrong without an attack, ∞ for one that was never beaten, so the median is ∞ where fewer
    than half were. NaN for a clean cell, for no rows, and in norm "fooling".
    """
    return float(_median_distances(records, np.zeros(len(records), dtype=int)).get(0, np.nan))


def _median_distances(records: pd.DataFrame, group: np.ndarray) -> pd.Series:
    """`median_distance` of several groups of rows at once, by the group's number; group: [N], of each row."""
    attacked = ((records["kind"] == ATTACK) & (records["norm"] != FOOLING)).to_numpy()
    rows = pd.DataFrame({"group": group, "sample": records["sample"], "distance": records["distance"]})[attacked]
    return rows.groupby(["group", "sample"])["distance"].min().groupby("group").median()


def distance_curve(records: pd.DataFrame, eps: Sequence[float]) -> pd.DataFrame:
    """Robust accuracy at any ε from the distances of attacks that find minimal perturbations; columns eps,
    value, low, high, n.

    records: rows of one data set, defense and norm, all ok. An input is robust at ε where it is accepted and right
    when clean and no attack beat it at a distance ≤ ε (already wrong = 0, not found = ∞). Norm "fooling" has no curve
    (ValueError).
    """
    records = _without_calibration(records)
    if _is_fooling(records):
        raise ValueError('norm "fooling" has no curve: noise has no right answer and no distance')
    right = clean_right(records).groupby(records["sample"]).min()
    distance = records.groupby("sample")["distance"].min()
    points = [(value, *wilson(int((right & (distance > value)).sum()), len(right))) for value in eps]
    return pd.DataFrame(points, columns=["eps", *Estimate._fields])


def summary(records: pd.DataFrame) -> pd.DataFrame:
    """The columns SUMMARY_COLUMNS, one row per cell and ε, clean cells and worst cases included.

    - `kind` is clean, attack, or worst-case.
    - A clean cell has norm "none" and ε 0; its robust accuracy is the share accepted and right.
    - A cell that failed or was skipped has n = its number of inputs, its reason, and NaN for every figure. The reason
      of a cell that is ok is what its records remark on it, mostly nothing.
    - A worst case has one row per data set, defense, norm and ε: see worst_case.
    - `n` counts inputs, also where an attack has several rows for each.
    - `seeds` counts seeds; with several, figures are those of the worst over seeds on each input, passes and seconds
      those of all of them together; `robust_mean` and `robust_sd` are over the seeds: see over_seeds.
    - `valid` is the share of valid outputs; `forwards` and `backwards` are means per input of the passes at this ε;
      `seconds` is the sum. A figure that is undefined is NaN, never 0.
    - `given_up` is the share of attacked inputs on which the attack stopped trying; `blind`, `unmoved` and `stalled`
      say how; of a worst case every attack by gradients: see effort.effort.
    - In norm "fooling" `error` is the share of noise images with which an attack succeeded and `rejection` the rest.
    - The calibration has no rows.
    """
    records = _without_calibration(records.drop(columns=list(IMAGE_COLUMNS), errors="ignore"))
    made = []
    for (dataset, defense), of_defense in records.groupby(["dataset", "defense"]):
        cases = [cell_case(cell) for _, cell in of_defense.groupby(["norm", "attack", "eps"])]
        made.append(with_figures(cases + worst_cases(of_defense)).assign(dataset=str(dataset), defense=str(defense)))
    table = pd.concat(made, ignore_index=True) if made else with_figures([])
    # the clean cell leads its defense, the worst case closes its norm
    order = pd.DataFrame({"clean": table["kind"] != CLEAN, "last": table["kind"] == WORST_CASE})
    keys = ["dataset", "defense", "clean", "norm", "last", "attack", "eps"]
    return table.assign(**order).sort_values(keys, ignore_index=True)[list(SUMMARY_COLUMNS)]


class Strongest(NamedTuple):
    """The attacks that alone leave the least robust accuracy, in order of their names, and the share that they leave.

    Without a name no attack was successful on an input that is right without one; the share is NaN where none ran.
    """

    attacks: tuple[str, ...]
    share: float

    @property
    def names(self) -> str:
        """At most two attacks by name and the number of the others, or that there is none."""
        if np.isnan(self.share):
            return NOT_RUN
        others = f" and {len(self.attacks) - 2} more" if len(self.attacks) > 2 else ""
        return ", ".join(self.attacks[:2]) + others or "no attack succeeded"


def strongest(summary: pd.DataFrame, eps: float) -> Strongest:
    """Return the strongest single attacks within ε.

    summary: rows of `summary` of one data set, defense and norm, with or without its clean row and worst cases. An
    attack counts at every ε' ≤ ε, because the smaller ball lies in the larger one.
    """
    ok = summary[(summary["kind"] == ATTACK) & (summary["status"] == "ok") & (summary["eps"] <= eps)]
    alone = ok.groupby("attack")["robust_accuracy"].min().dropna()
    if alone.empty:
        return Strongest((), np.nan)
    clean = summary.loc[summary["kind"] == CLEAN, "robust_accuracy"]
    if (clean <= alone.min()).any():
        return Strongest((), float(alone.min()))
    return Strongest(tuple(alone.index[alone == alone.min()]), float(alone.min()))


class Case(NamedTuple):
    """What a row of a summary is about: its texts, counts of a row without figures, and the rows that figures are over.

    There are no rows where the status is failed or skipped.
    """

    about: dict[str, object]
    rows: pd.DataFrame


def cell_case(cell: pd.DataFrame) -> Case:
    """The rows of one cell at one ε."""
    statuses = cell["status"].to_numpy(dtype=object)
    first = int(statuses.argmin())  # failed before ok: a cell is ok where all of it is
    status = str(statuses[first])
    about = {name: cell[name].iloc[0] for name in (*CELL, "kind")} | {"reason": str(cell["reason"].iloc[first])}
    return _case(about, status, cell[:0] if status != "ok" else cell, cell)


def worst_case(records: pd.DataFrame, eps: float) -> Case:
    """The worst case over all attacks of one norm at one ε.

    records: all rows of one data set, defense and norm, of whatever status. Taken over every ok row at ε' ≤ ε, because
    an input beaten in a smaller ball is beaten in the larger one; `reason` names the attacks. Accuracy, error and
    rejection are those of each input's worst outcome; passes and seconds are those of all the attacks together.

    Status is `partial` where an attack failed at some ε' ≤ ε, or where the attacks do not share all inputs and the
    figures are over the common ones; the reason says which. Skipped attacks make no sense for this defense and take
    nothing away. Where no attack is ok at ε itself, status is `failed` (or `skipped` if all were) and figures are NaN.
    """
    rows, status, reason = attacked_within(records, eps)
    about = {"attack": WORST_CASE, "kind": WORST_CASE, "norm": records["norm"].iloc[0], "eps": eps, "reason": reason}
    return _case(about, status, rows, records[records["eps"] == eps])


def worst_cases(records: pd.DataFrame) -> list[Case]:
    """Every worst case of one data set and defense: for each norm, at each ε that an attack has."""
    attacked = records[records["kind"] != CLEAN]
    return [worst_case(rows, eps) for _, rows in attacked.groupby("norm") for eps in sorted(rows["eps"].unique())]


def _case(about: dict[str, object], status: str, rows: pd.DataFrame, tried: pd.DataFrame) -> Case:
    """tried: the rows whose inputs and seeds are counted where there are no figures."""
    counts = {} if len(rows) else {"n": inputs_of(tried).nunique(), "seeds": tried["seed"].nunique()}
    return Case(about | counts | {"status": status}, rows)


def attacked_within(records: pd.DataFrame, eps: float) -> tuple[pd.DataFrame, str, str]:
    """What a worst case is taken over: its rows, its status and its reason, arguments and meaning as in worst_case.

    There are no rows where the status is failed or skipped.
    """
    within = records[records["eps"] <= eps]
    here = within[within["eps"] == eps]
    failed = within[within["status"] == "failed"]
    if not (here["status"] == "ok").any():
        status = "failed" if (here["status"] == "failed").any() else "skipped"
        return within[:0], status, _named_reasons(here[here["status"] == status])
    ok = within[within["status"] == "ok"]
    reason = f"over {', '.join(sorted(ok['attack'].unique()))}"
    if len(failed):
        reason += f"; failed: {_named_reasons(failed)}"
    parts = ["attack", "eps"] if _is_fooling(ok) else ["attack", "eps", "seed"]
    inputs = inputs_of(ok)
    pairs = ok[parts].assign(input=inputs).drop_duplicates()
    cells = pairs.groupby("input").size()
    common = cells.index[cells == len(pairs[parts].drop_duplicates())]
    if len(common) < len(cells):
        reason += f"; over the {len(common)} inputs of {len(cells)} that all of them attacked"
    whole = len(failed) == 0 and len(common) == len(cells)
    return ok[inputs.isin(common)], "ok" if whole else "partial", reason


def with_figures(cases: Sequence[Case]) -> pd.DataFrame:
    """The columns SUMMARY_COLUMNS, a row for each case; figures are NaN for a case without rows."""
    table = pd.DataFrame([case.about for case in cases], columns=list(SUMMARY_COLUMNS))
    sizes = [len(case.rows) for case in cases]
    if sum(sizes):
        found = _figures(pd.concat([case.rows for case in cases]), np.repeat(np.arange(len(cases)), sizes))
        table.loc[found.index, list(found)] = found
    return table.astype({"n": int, "seeds": int})


def _figures(records: pd.DataFrame, group: np.ndarray) -> pd.DataFrame:
    """The figures of several groups of rows at once, indexed by the group's number; group: [N], of each row."""
    inputs = _per_input(records, group)
    found = pd.DataFrame({"n": inputs.groupby("group").size(), "seeds": records["seed"].groupby(group).nunique()})
    of_right = ["accuracy", "robust_accuracy", "strict_robust_accuracy"]
    hits = inputs.groupby("group")[["error", "rejection", *of_right]].sum()
    found = found.join(hits.div(found["n"], axis=0))
    intervals = [wilson(int(count), int(n)) for count, n in zip(hits["robust_accuracy"], found["n"], strict=True)]
    found["robust_low"], found["robust_high"] = ([one[end] for one in intervals] for end in (1, 2))
    # nothing is right in norm "fooling"
    noise = pd.Series(records["norm"].to_numpy() == FOOLING).groupby(group).any()
    found.loc[noise, [*of_right, "robust_low", "robust_high"]] = np.nan
    found["robust_mean"], found["robust_sd"] = found["robust_accuracy"], np.nan
    for number in found.index[found["seeds"] > 1]:
        found.loc[number, ["robust_mean", "robust_sd"]] = over_seeds(records[group == number])[1:]
    found["median_distance"] = _median_distances(records, group)
    found["valid"] = records["valid"].groupby(group).mean()
    passes = records[["forwards", "backwards"]].groupby(group).sum().div(found["n"], axis=0)
    return found.join([passes, records["seconds"].groupby(group).sum(), effort(records, group, inputs_of(records))])


def _named_reasons(records: pd.DataFrame) -> str:
    """`pgd (out of memory), cw (timed out)` for the attacks in the rows."""
    pairs = records[["attack", "reason"]].drop_duplicates().sort_values(["attack", "reason"])
    return ", ".join(f"{attack} ({reason})" for attack, reason in pairs.itertuples(index=False))
