"""Figures that are computed only to compare them with claims of papers, each a function of per-input records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from manifold_bench.bench.metrics import robustness as figures
from manifold_bench.bench.metrics.shares import Estimate, MissingCells, wilson
from manifold_bench.bench.records.schema import CLEAN
from manifold_bench.bench.text import distance_text, eps_text, norm_text

OTHER_IMAGES = 0.01
"""Largest share of inputs that a comparison of two defenses may leave out, because they were shown different images."""


def pairs(records: pd.DataFrame) -> Estimate:
    """Return the share of (input, target class) pairs of a cell whose output is valid and accepted as the target class.

    Pairs whose clean input is already accepted as the target class are left out. With several seeds, one success is
    enough. Raises MissingCells where the rows are not ok or the attack is not targeted.
    """
    require_ok(records)
    if (records["aim"] < 0).any():
        raise MissingCells("this attack is not targeted")
    there = ~records["clean_rejected"] & (records["clean_label"] == records["aim"])
    tried = records[~there]
    hits = tried["valid"] & ~tried["adv_rejected"] & (tried["adv_label"] == tried["aim"])
    reached = hits.groupby([tried["sample"], tried["aim"]]).any()
    return wilson(int(reached.sum()), len(reached))


def fooled(records: pd.DataFrame) -> Estimate:
    """Return the share of noise images that were accepted; for a targeted attack, of (image, target class) pairs that
    were accepted as the target class.

    Each seed draws noise images of its own. Raises MissingCells where the rows are not ok.
    """
    require_ok(records)
    hits = records["success"].groupby([figures.inputs_of(records), records["aim"]]).any()
    return wilson(int(hits.sum()), len(hits))


def fallen(records: pd.DataFrame) -> Estimate:
    """Return the share of inputs that an attack in `records` made accepted and wrong.

    Inputs that are accepted and wrong without an attack do not count as made so; noise, which has no label, cannot be
    wrong without one. Raises MissingCells as per_input does.
    """
    figures.per_input(records)
    wrong = ~records["clean_rejected"] & (records["clean_label"] != records["label"]) & (records["label"] >= 0)
    hits = (records["success"] & ~wrong).groupby(figures.inputs_of(records)).any()
    return wilson(int(hits.sum()), len(hits))


def over_ladder(records: pd.DataFrame) -> pd.DataFrame:
    """Return the shares of outcomes at every ε of an attack, and those of its clean inputs at ε = 0.

    records: rows of one data set, defense, attack and norm. Columns of the result: eps (ascending), accuracy, rejection
    and error (shares in [0, 1]), n. Raises MissingCells where a row is not ok.
    """
    require_ok(records)
    ladder = sorted(records["eps"].unique())
    clean = records[records["eps"] == ladder[0]].assign(kind=CLEAN)
    points = [(0.0, clean), *((float(eps), records[records["eps"] == eps]) for eps in ladder)]
    rows = []
    for eps, there in points:
        inputs = figures.per_input(there)
        rows.append({"eps": eps, **inputs[list(figures.OUTCOMES)].mean(), "n": len(inputs)})
    return pd.DataFrame(rows, columns=["eps", *figures.OUTCOMES, "n"])


def peak_error(records: pd.DataFrame) -> tuple[float, Estimate]:
    """Return the ε at which the error is largest (0: without an attack), and the error there.

    Arguments and errors are those of over_ladder.
    """
    curve = over_ladder(records)
    peak = curve.iloc[int(curve["error"].argmax())]
    return float(peak["eps"]), wilson(round(peak["error"] * peak["n"]), int(peak["n"]))


def largest_drop(records: pd.DataFrame) -> float:
    """Return by how much the rejected share falls at most below its value at a smaller ε; 0 where it never falls.

    Arguments and errors are those of over_ladder.
    """
    rejection = over_ladder(records)["rejection"]
    return float((rejection.cummax() - rejection).max())


def reclassified_right(reclassifying: pd.DataFrame, rejecting: pd.DataFrame) -> Estimate:
    """Return the share of right answers among the inputs that one defense rejects and the other one accepts.

    reclassifying, rejecting: rows of one cell of each defense, all ok; they are joined by input and ε. Raises
    MissingCells where an input is missing on one side or the two defenses were shown different images.
    """
    both = _joined(reclassifying, rejecting)
    accepted = both[(both["other"] == figures.REJECTED) & (both["own"] != figures.REJECTED)]
    return wilson(int((accepted["own"] == figures.RIGHT).sum()), len(accepted))


def recovered(reclassifying: pd.DataFrame, rejecting: pd.DataFrame) -> Estimate:
    """Return the share of the inputs rejected by one defense that the other, which reclassifies them, gets right.

    Arguments and errors are those of reclassified_right.
    """
    both = _joined(reclassifying, rejecting)
    rejected = both[both["other"] == figures.REJECTED]
    return wilson(int((rejected["own"] == figures.RIGHT).sum()), len(rejected))


def _joined(own: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of two defenses on the same images, joined, with their outcomes as columns `own` and `other`.

    Of several seeds only the first is used, because a second answer to the same image is not a further input. An input
    is left out if the defenses were shown different images of it: where a rejected image was judged once more in whole
    grey levels and broke one defense, the other one was not shown that image. Raises MissingCells if that concerns more
    inputs than the share OTHER_IMAGES.
    """
    keys = ["sample", "aim", "eps"]
    own, other = (side[side["seed"] == side["seed"].min()] for side in (own, other))
    sides = []
    for side in (own, other):
        require_ok(side)
        sides.append(side[[*keys, "input_sha256", "linf", "l2"]].assign(outcome=figures.outcomes(side)))
    both = sides[0].merge(sides[1], on=keys, suffixes=("", "_other"))
    if not len(own) == len(other) == len(both):
        raise MissingCells(f"the defenses share {len(both)} of {max(len(own), len(other))} attacked inputs")
    shown = [np.isclose(both[name], both[f"{name}_other"], atol=1e-6) for name in ("linf", "l2")]
    same = np.logical_and(*shown) & (both["input_sha256"] == both["input_sha256_other"])
    if same.mean() < 1 - OTHER_IMAGES:
        raise MissingCells(f"the two defenses were not shown the same images of {(~same).sum()} of {len(same)} inputs")
    return both[same].rename(columns={"outcome": "own", "outcome_other": "other"})


def require_ok(records: pd.DataFrame) -> None:
    """Raise MissingCells with the reason where the status of a row is not ok."""
    bad = records[records["status"] != "ok"]
    if len(bad):
        raise MissingCells(f"{bad['status'].iloc[0]}: {bad['reason'].iloc[0]}")


def detection_auc(records: pd.DataFrame) -> tuple[float, float, float]:
    """Return the area under the ROC curve of detecting attacked inputs by their scores, and its 95 % interval.

    The area is the share of pairs (clean, attacked) in which the attacked input has the higher score; ties count half.
    The interval is that of the percentile bootstrap over inputs, which keeps an input's two scores together. records:
    rows of one cell. Raises MissingCells where a row is not ok or the defense gives no scores.
    """
    # late: takes a second, and worker processes do not need it
    from scipy.stats import bootstrap, mannwhitneyu

    require_ok(records)
    if records[["clean_score", "adv_score"]].isna().any(axis=None):
        raise MissingCells("this defense gives no scores")

    def area(clean: np.ndarray, attacked: np.ndarray) -> float:
        return float(mannwhitneyu(attacked, clean).statistic) / (len(clean) * len(attacked))

    scores = (records["clean_score"].to_numpy(), records["adv_score"].to_numpy())
    interval = bootstrap(
        scores, area, paired=True, vectorized=False, n_resamples=999, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return area(*scores), float(interval.low), float(interval.high)


@dataclass(frozen=True)
class Measured:
    """A figure that was measured for a claim.

    text: the figure as tables show it. share: the same with its interval, where it is a share. remark: note on it.
    scope: attacks and inputs that it was computed over, where these are not all. doubts: why the attacks look too weak
    for it, as pairs (reason, evidence).
    """

    text: str
    share: Estimate | None = None
    remark: str = ""
    scope: str = ""
    doubts: tuple[tuple[str, str], ...] = ()


class Strongest(NamedTuple):
    """A figure of the worst case over all attacks.

    name: name of the figure. measure: function of records that computes it. worst: share that no attack can worsen;
    None where the figure is no share.
    """

    name: str
    measure: Callable[[pd.DataFrame], Measured]
    worst: float | None


@dataclass(frozen=True)
class Rule:
    """How the figure of a claim is computed and compared with the published value.

    kind: kind of the published value. measure: function of the rows that the claim is about that returns the figure;
    where `joins`, it also takes the rows of the claim's `rejected_by`. strongest: figure that is shown under the
    strongest attack. better: whether high or low shares are good for the defense; None where the figure cannot
    contradict a claim. ladder: whether the figure uses every ε of the attack.
    """

    kind: Literal["share", "trend", "number"]
    measure: Callable[..., Measured]
    strongest: Strongest
    better: Literal["high", "low"] | None = None
    joins: bool = False
    ladder: bool = False


def share_text(share: Estimate, counted: bool) -> str:
    """Return a share in percent with its interval: `97.97 [97.67, 98.23], n = 10,000`.

    counted: whether the text begins with the counts: `110 of 181: 60.77 [53.51, 67.60]`.
    """
    if share.n == 0:
        return "undefined, n = 0"
    text = f"{100 * share.value:.2f} [{100 * share.low:.2f}, {100 * share.high:.2f}]"
    return f"{round(share.value * share.n):,} of {share.n:,}: {text}" if counted else f"{text}, n = {share.n:,}"


def _share(function: Callable[..., Estimate], counted: bool = False) -> Callable[..., Measured]:
    def measure(*rows: pd.DataFrame) -> Measured:
        share = function(*rows)
        return Measured(share_text(share, counted), share)

    return measure


def _peak(records: pd.DataFrame) -> Measured:
    eps, share = peak_error(records)
    return Measured(f"{share_text(share, False)}, at ε = {eps_text(eps)}", share)


def _monotone(records: pd.DataFrame) -> Measured:
    drop, n = largest_drop(records), records["sample"].nunique()
    return Measured(f"yes, n = {n:,}" if drop == 0 else f"no: falls by up to {100 * drop:.2f}, n = {n:,}")


def _distance(records: pd.DataFrame) -> Measured:
    require_ok(records)
    norm, n = records["norm"].iloc[0], records["sample"].nunique()
    return Measured(f"{distance_text(figures.median_distance(records))} ({norm_text(norm)}), n = {n:,}")


def _detection(records: pd.DataFrame) -> Measured:
    area, low, high = detection_auc(records)
    return Measured(f"{area:.3f} [{low:.3f}, {high:.3f}], n = {records['sample'].nunique():,}")


ACCURACY = Strongest("accepted and right", _share(figures.accuracy), 0.0)
RIGHT_LABEL = Strongest("right", _share(figures.accuracy_without_rejection), 0.0)
ROBUST = Strongest("robust", _share(figures.robust_accuracy), 0.0)
STRICT = Strongest("robust, strict", _share(figures.strict_robust_accuracy), 0.0)
ERROR = Strongest("accepted and wrong", _share(figures.error), 1.0)
FALLEN = Strongest("made accepted and wrong", _share(fallen), 1.0)
DISTANCE = Strongest("median distance", _distance, None)

RULES: dict[str, Rule] = {
    "accuracy": Rule("share", ACCURACY.measure, ACCURACY, "high"),
    "accuracy_without_rejection": Rule("share", RIGHT_LABEL.measure, RIGHT_LABEL, "high"),
    "error": Rule("share", ERROR.measure, ERROR, "low"),
    "rejection": Rule("share", _share(figures.rejection), ERROR),
    "robust_accuracy": Rule("share", ROBUST.measure, ROBUST, "high"),
    "strict_robust_accuracy": Rule("share", STRICT.measure, STRICT, "high"),
    "pairs": Rule("share", _share(pairs, counted=True), FALLEN, "low"),
    "fooled": Rule("share", _share(fooled, counted=True), FALLEN, "low"),
    "reclassified_right": Rule("share", _share(reclassified_right), ERROR, joins=True),
    "recovered": Rule("share", _share(recovered, counted=True), ERROR, joins=True),
    "peak_error": Rule("share", _peak, ERROR, ladder=True),
    "rejection_monotone": Rule("trend", _monotone, ERROR, ladder=True),
    "distance": Rule("number", DISTANCE.measure, DISTANCE, ladder=True),
    "detection_auc": Rule("number", _detection, ACCURACY),
}
"""Name that a claim gives as its `figure` → its rule."""

MEASUREMENT = Rule("number", Measured, ERROR)
"""Rule of a claim about the headline value of a measurement, which needs no records."""
