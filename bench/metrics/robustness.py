"""The robustness figures of the benchmark, as functions of per-input records (`records.schema`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from manifold_bench.bench.metrics.shares import Estimate, MissingCells, wilson
from manifold_bench.bench.records.schema import ATTACK, CALIBRATION, CLEAN
from manifold_bench.bench.text import eps_text

RIGHT, REJECTED, WRONG = 0, 1, 2
"""Outcomes of one answer, from best to worst: accepted and right, rejected, accepted and wrong."""

OUTCOMES = {"accuracy": RIGHT, "rejection": REJECTED, "error": WRONG}
"""Name of a figure → the outcome whose share it is."""

FOOLING = "fooling"
"""The norm of attacks that start from noise: no answer to noise is right, and accepting it is an error."""

CELL = ("attack", "norm", "eps")
"""Columns that identify a cell of one defense on one data set."""


def outcomes(records: pd.DataFrame) -> np.ndarray:
    """Return the outcome of each row, int [N]: RIGHT, REJECTED or WRONG.

    It is the outcome of the clean answer in a clean cell, and of the answer to the attacked input elsewhere. In norm
    "fooling", where no answer is right, it is WRONG if the attack succeeded, else REJECTED.
    """
    clean = records["kind"].to_numpy() == CLEAN
    label = np.where(clean, records["clean_label"], records["adv_label"])
    rejected = np.where(clean, records["clean_rejected"], records["adv_rejected"])
    outcome = np.where(rejected, REJECTED, np.where(label == records["label"], RIGHT, WRONG))
    return np.where(records["norm"] == FOOLING, np.where(records["success"], WRONG, REJECTED), outcome)


def per_input(records: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each input, indexed by sample, over all attacks and ε in `records`.

    records: rows of one data set and defense, all with status ok, of one cell or several. An input may have several
    rows in a cell, one for each target class and seed; a success in any of them beats it. Calibration rows are left
    out.

    Columns: `worst` is the worst outcome of any row (wrong > rejected > right). The others are bool and named after the
    figure that is their share of true values: `accuracy`, `rejection` and `error` say which outcome is the worst;
    `robust_accuracy`: the clean input is accepted and right, and no valid output is accepted and wrong (norm "fooling":
    no attack succeeded); `strict_robust_accuracy`: robust, and no output is rejected; `accuracy_without_rejection`: the
    label is right in every row, whether it was rejected or not.

    Raises MissingCells where a row's status is not ok, or where an input lacks a cell, a seed or rows of a cell,
    because a figure over part of the rows would look like a figure over all. Raises ValueError where only some rows
    have norm "fooling", whose inputs are noise images and not those of the data set.
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
    """Return `per_input` of several groups of rows, with the column `group`. group: [N], number of each row's group."""
    sample = inputs_of(records).to_numpy()
    place = group_numbers(group, sample)
    _, first = np.unique(place, return_index=True)
    inputs = pd.DataFrame({"group": group[first], "sample": sample[first]})
    seed = np.where(records["norm"] == FOOLING, 0, records["seed"])
    _check_complete(records, place, group_numbers(group, *(records[name] for name in CELL), seed), group[first])
    outcome, is_robust = outcomes(records), robust(records).to_numpy()
    is_right = np.where(records["kind"] == CLEAN, records["clean_label"], records["adv_label"]) == records["label"]
    worst = np.full(len(first), RIGHT)
    np.maximum.at(worst, place, outcome)
    held = {"robust_accuracy": is_robust, "strict_robust_accuracy": is_robust & (outcome != REJECTED)}
    held |= {"accuracy_without_rejection": is_right}
    # a column is true for an input if it is true in all of its rows
    always = {name: np.bincount(place, ~holds, len(first)) == 0 for name, holds in held.items()}
    return inputs.assign(worst=worst, **{name: worst == one for name, one in OUTCOMES.items()}, **always)


def _check_complete(records: pd.DataFrame, place: np.ndarray, cell: np.ndarray, group: np.ndarray) -> None:
    """Raise MissingCells where an input lacks a cell of its group, or rows of it.

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
    """Return the number of the input of each row: its sample.

    In norm "fooling" it is a number for each seed and sample, because every seed draws noise images of its own.
    """
    fooling = records["norm"] == FOOLING
    if not fooling.any():
        return records["sample"]
    return records["sample"].mask(fooling, group_numbers(records["seed"], records["sample"]))


def group_numbers(*columns: pd.Series | np.ndarray) -> np.ndarray:
    """Return int [N]: numbers, from 0 on, that are equal for rows with the same values in all columns."""
    codes: np.ndarray = np.zeros(len(columns[0]), dtype=int)
    for column in columns:
        own, values = pd.Series(column).factorize()
        codes = codes * len(values) + own
    return np.unique(codes, return_inverse=True)[1]


def without_calibration(records: pd.DataFrame) -> pd.DataFrame:
    """Return the rows without those of calibration, which serve only to set thresholds."""
    test = (records["kind"] != CALIBRATION).to_numpy()
    return records if test.all() else records[test]


def is_fooling(records: pd.DataFrame) -> bool:
    """Return whether the rows are of norm "fooling"; raises ValueError where only some are."""
    fooling = records["norm"] == FOOLING
    if fooling.any() and not fooling.all():
        raise ValueError('norm "fooling" has noise images as inputs; no figure combines it with other norms')
    return bool(fooling.any())


def clean_right(records: pd.DataFrame) -> pd.Series:
    """Return, for each row, whether the clean input is accepted and right."""
    return ~records["clean_rejected"] & (records["clean_label"] == records["label"])


def robust(records: pd.DataFrame) -> pd.Series:
    """Return, for each row, whether the clean input is accepted and right (noise: always) and the attack failed."""
    return ~records["success"] & (clean_right(records) | (records["norm"] == FOOLING))


def _share(records: pd.DataFrame, figure: str) -> Estimate:
    """Return the share of inputs for which a column of per_input is true; NaN for right answers to noise."""
    hits = per_input(records)[figure]
    if figure not in ("rejection", "error") and (records["norm"] == FOOLING).any():
        return Estimate(np.nan, np.nan, np.nan, len(hits))
    return wilson(int(hits.sum()), len(hits))


def accuracy(records: pd.DataFrame) -> Estimate:
    """Return the share of inputs whose worst answer in `records` is accepted and right.

    Arguments and errors are those of per_input. NaN in norm "fooling", like all figures on right answers.
    """
    return _share(records, "accuracy")


def accuracy_without_rejection(records: pd.DataFrame) -> Estimate:
    """Return the share of inputs whose label is right in every row of `records`, whether it was rejected or not.

    Arguments and errors are those of accuracy. For attacked rows it is an upper bound of the robust accuracy of the
    defense without its detector, because the attacks were made against the defense with it.
    """
    return _share(records, "accuracy_without_rejection")


def error(records: pd.DataFrame) -> Estimate:
    """Return the share of inputs whose worst answer in `records` is accepted and wrong.

    In norm "fooling" it is the share of noise images with which an attack succeeded. Arguments and errors are those of
    per_input.
    """
    return _share(records, "error")


def rejection(records: pd.DataFrame) -> Estimate:
    """Return the share of inputs whose worst answer in `records` is a rejection: 1 − accuracy − error.

    In norm "fooling" it is 1 − error. Arguments and errors are those of per_input.
    """
    return _share(records, "rejection")


def robust_accuracy(records: pd.DataFrame) -> Estimate:
    """Return the share of inputs that are accepted and right when clean and never accepted and wrong under attack.

    The worst over all attacks in `records` is taken for each input ('per-example', Carlini et al. 2019), then the mean
    over inputs. Rejecting an adversarial input counts as correct. Arguments and errors are those of per_input.
    """
    return _share(records, "robust_accuracy")


def strict_robust_accuracy(records: pd.DataFrame) -> Estimate:
    """Return the share of inputs that are robust and never rejected under attack: here a rejection counts as an error.

    Arguments and errors are those of robust_accuracy.
    """
    return _share(records, "strict_robust_accuracy")


def over_seeds(records: pd.DataFrame) -> tuple[int, float, float]:
    """Return the number of seeds, and the mean and sample standard deviation over seeds of robust accuracy.

    In contrast, robust_accuracy of several seeds uses the worst seed of each input, as an attacker with restarts does.
    The deviation is NaN for one seed; both are NaN where the seeds differ in their attacks or ε. Arguments and errors
    are those of per_input.
    """
    seeds = [rows for _, rows in records.groupby("seed")]
    cells = {frozenset(rows[["attack", "norm", "eps"]].itertuples(index=False, name=None)) for rows in seeds}
    if len(cells) != 1:
        return len(seeds), np.nan, np.nan
    values = [robust_accuracy(rows).value for rows in seeds]
    return len(seeds), float(np.mean(values)), float(np.std(values, ddof=1)) if len(seeds) > 1 else np.nan


def median_distance(records: pd.DataFrame) -> float:
    """Return the median over inputs of the smallest distance, in the cells' norm, at which an attack beat them.

    An input that is wrong without an attack counts as 0, one that was never beaten as ∞, so the median is ∞ where fewer
    than half were beaten. NaN for a clean cell, for no rows, and in norm "fooling".
    """
    return float(median_distances(records, np.zeros(len(records), dtype=int)).get(0, np.nan))


def median_distances(records: pd.DataFrame, group: np.ndarray) -> pd.Series:
    """Return `median_distance` of several groups of rows, by group. group: [N], number of each row's group."""
    attacked = ((records["kind"] == ATTACK) & (records["norm"] != FOOLING)).to_numpy()
    rows = pd.DataFrame({"group": group, "sample": records["sample"], "distance": records["distance"]})[attacked]
    return rows.groupby(["group", "sample"])["distance"].min().groupby("group").median()


def distance_curve(records: pd.DataFrame, eps: Sequence[float]) -> pd.DataFrame:
    """Return robust accuracy at each of these ε, computed from the distances that attacks found.

    Columns of the result: eps, value, low, high, n. records: rows of one data set, defense and norm, all ok. An input
    is robust at ε if it is accepted and right when clean and no attack beat it at a distance ≤ ε. Raises ValueError for
    norm "fooling", because noise has no distance.
    """
    records = without_calibration(records)
    if is_fooling(records):
        raise ValueError('norm "fooling" has no curve: noise has no right answer and no distance')
    columns = pd.DataFrame({"right": clean_right(records), "distance": records["distance"]})
    inputs = columns.groupby(records["sample"]).min()
    reach = np.sort(inputs.loc[inputs["right"], "distance"])
    held = len(reach) - np.searchsorted(reach, list(eps), side="right")
    points = [(value, *wilson(int(count), len(inputs))) for value, count in zip(eps, held, strict=True)]
    return pd.DataFrame(points, columns=["eps", *Estimate._fields])
