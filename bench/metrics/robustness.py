"""Every figure of the benchmark, as a function of per-input records (bench.records)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from manifold_bench.bench.metrics.shares import Estimate, MissingCells, wilson
from manifold_bench.bench.records.schema import ATTACK, CALIBRATION, CLEAN
from manifold_bench.bench.text import eps_text

RIGHT, REJECTED, WRONG = 0, 1, 2
"""What came of one answer, in the order in which it hurts: accepted and right, rejected, accepted and wrong."""


OUTCOMES = {"accuracy": RIGHT, "rejection": REJECTED, "error": WRONG}
"""The figure that is the share of inputs whose worst outcome it is."""


FOOLING = "fooling"
"""The norm in which the inputs are noise: no answer to them is right, and accepting them is the error."""


CELL = ("attack", "norm", "eps")
"""What tells the cells of a defense on a data set apart."""


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
    records = without_calibration(records)
    is_fooling(records)
    not_ok = (records["status"] != "ok").to_numpy()
    if not_ok.any():
        bad = records.loc[not_ok, [*CELL, "status"]].drop_duplicates().to_numpy()
        named = ", ".join(f"{attack} {norm} ε = {eps_text(eps)}: {status}" for attack, norm, eps, status in bad)
        raise MissingCells(f"no figure over cells that are not ok: {named}")
    return per_inputs(records, np.zeros(len(records), dtype=int)).drop(columns="group").set_index("sample")


def per_inputs(records: pd.DataFrame, group: np.ndarray) -> pd.DataFrame:
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


def without_calibration(records: pd.DataFrame) -> pd.DataFrame:
    """The rows on test inputs: thresholds are all that the calibration's are for."""
    test = (records["kind"] != CALIBRATION).to_numpy()
    return records if test.all() else records[test]


def is_fooling(records: pd.DataFrame) -> bool:
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
    return float(median_distances(records, np.zeros(len(records), dtype=int)).get(0, np.nan))


def median_distances(records: pd.DataFrame, group: np.ndarray) -> pd.Series:
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
    records = without_calibration(records)
    if is_fooling(records):
        raise ValueError('norm "fooling" has no curve: noise has no right answer and no distance')
    right = clean_right(records).groupby(records["sample"]).min()
    distance = records.groupby("sample")["distance"].min()
    points = [(value, *wilson(int((right & (distance > value)).sum()), len(right))) for value in eps]
    return pd.DataFrame(points, columns=["eps", *Estimate._fields])
