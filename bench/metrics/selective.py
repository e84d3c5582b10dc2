"""Figures of selective classification, for defenses that may reject inputs: functions of per-input records.

The score of an input says how suspicious it looks; at threshold t the inputs with scores ≤ t are accepted. A defense's
own threshold, called deployed, is 0, and the records hold its answers at this threshold.

Attacked figures at other thresholds use the same adversarial inputs, which were made against the deployed threshold. An
attacker who knows the other threshold can only do better, so these figures are lower bounds of the error and upper
bounds of the robust accuracy. To measure them, deploy the defense with that threshold and attack it again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from manifold_bench.bench.metrics import robustness as figures
from manifold_bench.bench.metrics.shares import MissingCells, wilson
from manifold_bench.bench.metrics.summary import SUMMARY_COLUMNS, Case, cell_cases, summary, with_figures, worst_cases
from manifold_bench.bench.records.schema import CALIBRATION, CLEAN, WORST_CASE, Row
from manifold_bench.bench.text import eps_text

DEPLOYED = "deployed"
"""The operating point at a defense's own threshold."""

RATES = (0.01, 0.05)
"""False-rejection rates (shares of clean inputs that a defense may reject) at which defenses are compared."""

MATCHED_COLUMNS = ("rate", "threshold", "coverage", *SUMMARY_COLUMNS)

IMPLAUSIBLE_COLUMNS = ("dataset", "defense", "norm", "eps", "figure", "value", "bound", "implausible", "evidence")


class Known(NamedTuple):
    """The robust accuracy at ε of a known classifier that rejects nothing. source: the classifier, as text."""

    eps: float
    robust_accuracy: float
    source: str


_GOWAL = Known(0.3, 0.9634, "Gowal et al. 2020, its public model under AutoAttack")

BEST_PUBLISHED = {("mnist", "linf"): _GOWAL, ("mnist5k", "linf"): _GOWAL}
"""(data set, norm) → best published classifier; mnist5k is a part of MNIST. Only figures from published texts."""


def risk_coverage(scores: ArrayLike, wrong: ArrayLike) -> pd.DataFrame:
    """Return the risk–coverage curve (El-Yaniv and Wiener 2010): columns coverage, risk, threshold.

    scores, wrong: [N], an input's score and whether its answer is wrong. There is a row for each distinct score t, in
    ascending order: `coverage` is the share of all inputs with scores ≤ t, `risk` the share of these that are wrong.
    Inputs with the same score are accepted together. There is no row at coverage 0, where the risk is undefined. Raises
    MissingCells where a score is NaN.
    """
    score, miss = np.asarray(scores, dtype=float), np.asarray(wrong, dtype=bool)
    if np.isnan(score).any():
        raise MissingCells(f"{np.isnan(score).sum()} of {len(score)} inputs have no score")
    threshold, counts = np.unique(score, return_counts=True)
    accepted = counts.cumsum()
    misses = miss[np.argsort(score, kind="stable")].cumsum()[accepted - 1]
    return pd.DataFrame({"coverage": accepted / len(score), "risk": misses / accepted, "threshold": threshold})


def area(curve: pd.DataFrame) -> float:
    """Return AURC, the area under a risk–coverage curve (Geifman, Uziel and El-Yaniv 2019); NaN for an empty curve.

    It is the mean risk over n = 1…N accepted inputs; inputs with the same score count with the risk of all of them.
    """
    return float((curve["risk"] * np.diff(curve["coverage"], prepend=0)).sum()) if len(curve) else np.nan


def clean_answers(records: pd.DataFrame) -> pd.DataFrame:
    """Return the columns `score` and `wrong` by sample, the arguments of risk_coverage, for unperturbed inputs.

    records: rows of one data set and defense, of which only the clean cell is used. With several seeds, in which a
    randomized defense answers differently, the worst answer of each input counts.
    """
    return attacked_answers(records[records["kind"] == CLEAN])


def attacked_answers(records: pd.DataFrame) -> pd.DataFrame:
    """Return the columns `score` and `wrong` by sample, the arguments of risk_coverage, for worst rows.

    records: attacked rows of one data set, defense and norm, all ok (summary.attacked_within). At threshold t an input
    is accepted and wrong if any of its outputs is, else rejected if any is, else right. As t rises, an input with wrong
    outputs changes from rejected to wrong at their smallest score, any other input from rejected to right at its
    largest score; this score is returned. The resulting curve is a lower bound of the risk, as said at the top of this
    module.
    """
    wrong = records["adv_label"] != records["label"]
    fooled = records["adv_score"].where(wrong).groupby(records["sample"]).min()
    held = records["adv_score"].groupby(records["sample"]).max()
    beaten = wrong.groupby(records["sample"]).any()
    # an input with a missing score has no score, although min and max would ignore the gap
    known = records["adv_score"].notna().groupby(records["sample"]).all()
    return pd.DataFrame({"score": fooled.where(beaten, held).where(known), "wrong": beaten})


def operating_point(row: Row) -> tuple[float, float]:
    """Return coverage and risk of the defense at its deployed threshold, a point of its risk–coverage curve.

    row: that of a clean cell or a worst case in a summary. The risk is NaN where nothing is accepted.
    """
    coverage = 1 - row["rejection"]
    return coverage, row["error"] / coverage if coverage > 0 else np.nan


def threshold_at(scores: ArrayLike, rate: float) -> float:
    """Return the threshold at which a new clean input is rejected with probability at most `rate`.

    scores: [M], scores of the calibration set, which are held-out clean inputs. rate: in (0, 1). The threshold is the
    k-th smallest score, k = ⌈(1 − rate)(M + 1)⌉: the split-conformal quantile (Papadopoulos et al. 2002), whose
    guarantee holds on average over calibration sets of any size. Raises MissingCells where there are no scores, or
    fewer than the rate needs, M ≥ 1/rate − 1.
    """
    score = np.sort(np.asarray(scores, dtype=float))
    if not len(score):
        raise MissingCells("no calibration records")
    if np.isnan(score).any():
        raise MissingCells(f"{np.isnan(score).sum()} of {len(score)} calibration records have no score")
    above = math.floor(rate * (len(score) + 1) + 1e-9)  # the small summand corrects rounding: 0.29 · 100 has to give 29
    if above < 1:
        raise MissingCells(f"{len(score)} calibration records are too few for a rate of {rate_text(rate)}")
    return float(score[-above])


def rate_text(rate: float) -> str:
    """Return a rate in percent as text: `1 %` for 0.01."""
    return f"{100 * rate:g} %"


def at_threshold(records: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Return the records with rejections and successes as if the defense rejected scores > threshold.

    Distances and passes are not changed. Raises MissingCells where an ok row has no score.
    """
    clean, adv = records["clean_score"], records["adv_score"]
    lacking = (records["status"] == "ok") & (clean.isna() | adv.isna())
    if lacking.any():
        raise MissingCells(f"{lacking.sum()} of {len(records)} records have no score")
    as_aimed = (records["norm"] != figures.FOOLING) | (records["aim"] < 0) | (records["aim"] == records["adv_label"])
    success = records["valid"] & (adv <= threshold) & (records["adv_label"] != records["label"]) & as_aimed
    return records.assign(clean_rejected=clean > threshold, adv_rejected=adv > threshold, success=success.astype(bool))


def matched(
    records: pd.DataFrame, rates: Sequence[float] = RATES, deployed: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Return figures of every defense at the same false-rejection rates: the columns MATCHED_COLUMNS.

    `rate` is "deployed", for the defense's own threshold, or one of `rates` as text, whose `threshold` is set on the
    calibration records only. For each data set, defense and rate there are the clean row and the worst cases that
    summary.summary would have. `coverage` is 1 − rejection; in clean rows, 1 − coverage is the false-rejection rate on
    test inputs. The other columns are those of summary. deployed: result of summary.summary for these records, which is
    computed here where it is not given.

    The scores of a defense that rejects nothing get a threshold, too. A rate without a threshold has only a clean row
    with status "skipped", the reason, and NaN for the figures.
    """
    whole = summary(records) if deployed is None else deployed
    own = whole[whole["kind"].isin([CLEAN, WORST_CASE]) & (whole["norm"] != figures.FOOLING)]
    own_threshold = own.assign(rate=DEPLOYED, threshold=0.0)
    made = []
    for (dataset, defense), mine in records.groupby(["dataset", "defense"]):
        made.append(own_threshold[(own["dataset"] == dataset) & (own["defense"] == defense)])
        scores = mine.loc[(mine["kind"] == CALIBRATION) & (mine["status"] == "ok"), "clean_score"]
        test = mine[(mine["kind"] != CALIBRATION) & (mine["norm"] != figures.FOOLING)]
        for rate in rates:
            key = {"dataset": str(dataset), "defense": str(defense), "rate": rate_text(rate)}
            try:
                threshold = threshold_at(scores, rate)
                judged = at_threshold(test, threshold)
                cases = [one for one in cell_cases(judged) if one.about["kind"] == CLEAN] + worst_cases(judged)
            except MissingCells as missing:
                about = {"attack": CLEAN, "kind": CLEAN, "norm": "none", "eps": 0.0, "n": 0, "seeds": 0}
                threshold = np.nan
                judged, cases = test, [Case(about | {"status": "skipped", "reason": str(missing)}, np.array([], int))]
            made.append(with_figures(judged, cases).assign(**key, threshold=threshold))
    table = pd.concat(made, ignore_index=True) if made else pd.DataFrame(columns=list(MATCHED_COLUMNS))
    return table.assign(coverage=1 - table["rejection"])[list(MATCHED_COLUMNS)]


def implausible(summary: pd.DataFrame) -> pd.DataFrame:
    """Check every worst case for robustness beyond that of the best known classifiers: the columns IMPLAUSIBLE_COLUMNS.

    summary: result of summary.summary. Worst cases at finite ε are checked in two ways, named by `figure`:

    - "robust_accuracy" of a defense that rejects. If a defense is right on a share of inputs when clean and never
      accepted and wrong on them within ε, then a classifier without rejection exists, although perhaps a slow one, that
      is right on this share everywhere within ε/2 (Tramèr 2022). `bound` is the best known robust accuracy at ε/2: that
      of the run's defenses that reject nothing, interpolated linearly between its ε (0 has the clean accuracy), or that
      of BEST_PUBLISHED at any ε.
    - "strict_robust_accuracy" of any defense. Rejection counts as an error there, so the defense itself is such a
      classifier. `bound` is that of BEST_PUBLISHED if its ε is at most ε.

    `implausible` is true if the lower end of the value's 95 % Wilson interval is above the bound; most likely the
    attack is too weak then. `evidence` says what was compared. Worst cases without a bound have no row.
    """
    rows = []
    attacked = (summary["kind"] == WORST_CASE) & (summary["norm"] != figures.FOOLING) & np.isfinite(summary["eps"])
    for (dataset, norm), worst in summary[attacked & (summary["n"] > 0)].groupby(["dataset", "norm"]):
        clean = summary[(summary["dataset"] == dataset) & (summary["kind"] == CLEAN)]
        answers = pd.concat([clean, worst]).dropna(subset="robust_accuracy").sort_values("eps")
        curves = {str(name): curve for name, curve in answers.groupby("defense") if curve["rejection"].max() == 0}
        published = BEST_PUBLISHED.get((str(dataset), str(norm)))
        for cell in answers[answers["kind"] == WORST_CASE].to_dict("records"):
            eps, checks = cell["eps"], []
            if cell["defense"] not in curves:
                known = [_known_at(eps / 2, name, curve) for name, curve in curves.items()]
                known = [one for one in (*known, published) if one and not np.isnan(one.robust_accuracy)]
                checks.append(("robust_accuracy", eps / 2, known))
            if published and published.eps <= eps:
                checks.append(("strict_robust_accuracy", eps, [published]))
            for figure, radius, known in checks:
                if known:
                    best = max(known, key=lambda one: one.robust_accuracy)
                    key = {"dataset": dataset, "defense": cell["defense"], "norm": norm, "eps": eps, "figure": figure}
                    rows.append(key | _checked(cell, figure, radius, best))
    return pd.DataFrame(rows, columns=list(IMPLAUSIBLE_COLUMNS))


def _known_at(eps: float, name: str, curve: pd.DataFrame) -> Known:
    """Return the robust accuracy of a classifier of the run, interpolated linearly over ε; NaN beyond its largest ε."""
    share = float(np.interp(eps, curve["eps"], curve["robust_accuracy"], right=np.nan))
    return Known(eps, share, f"{name} in this run{'' if np.isclose(curve['eps'], eps).any() else ', interpolated'}")


def _checked(cell: Row, figure: str, radius: float, best: Known) -> dict[str, object]:
    """Return the columns from `value` on: a worst case's figure compared with the best known classifier at a radius."""
    share = wilson(round(cell[figure] * cell["n"]), cell["n"])
    evidence = (
        f"{figure.replace('_', ' ')} {100 * share.value:.1f} % [{100 * share.low:.1f}, {100 * share.high:.1f}] within "
        f"ε = {eps_text(cell['eps'])} implies a classifier as robust within {eps_text(radius)}; the best known one has "
        f"{100 * best.robust_accuracy:.1f} % ({best.source}, ε = {eps_text(best.eps)})"
    )
    flagged = share.low > best.robust_accuracy
    return {"value": share.value, "bound": best.robust_accuracy, "implausible": flagged, "evidence": evidence}
