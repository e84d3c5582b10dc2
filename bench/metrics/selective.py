"""Selective classification: what the answers are worth of a defense that may decline. Functions of records.

A score says how suspicious an input looks; at threshold t the inputs with scores ≤ t are accepted. The deployed
threshold of a defense is 0, and what was recorded there are its own answers.

Attacked figures at any other threshold take the stored adversarial inputs, which were made against the deployed one. An
attacker who knows the other threshold can only do better: they bound the error from below and the robust accuracy from
above. To measure it, the defense is deployed with that threshold and attacked anew.
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
from manifold_bench.bench.metrics.summary import SUMMARY_COLUMNS, Case, cell_case, with_figures, worst_cases
from manifold_bench.bench.records.schema import CALIBRATION, CLEAN, WORST_CASE, Row
from manifold_bench.bench.text import eps_text

DEPLOYED = "deployed"
"""The operating point at a defense's own threshold."""


RATES = (0.01, 0.05)
"""Shares of clean inputs that a defense may reject, where defenses are compared at the same one."""


MATCHED_COLUMNS = ("rate", "threshold", "coverage", *SUMMARY_COLUMNS)


IMPLAUSIBLE_COLUMNS = ("dataset", "defense", "norm", "eps", "figure", "value", "bound", "implausible", "evidence")


class Known(NamedTuple):
    """The robust accuracy at ε of a classifier that rejects nothing, and whose it is."""

    eps: float
    robust_accuracy: float
    source: str


_GOWAL = Known(0.3, 0.9634, "Gowal et al. 2020, its public model under AutoAttack")


BEST_PUBLISHED = {("mnist", "linf"): _GOWAL, ("mnist5k", "linf"): _GOWAL}
"""By data set and norm; mnist5k is a part of MNIST. Only figures whose source gives them in print."""


def risk_coverage(scores: ArrayLike, wrong: ArrayLike) -> pd.DataFrame:
    """Risk over coverage as the threshold rises (El-Yaniv and Wiener 2010); columns coverage, risk, threshold.

    scores, wrong: [N], an input's suspicion and whether its answer is wrong. A row per distinct score t, ascending:
    `coverage` is the share of all inputs with scores ≤ t, `risk` the share of those that are wrong. Inputs with the
    same score are accepted together or not at all. Nothing accepted has no risk: no row at coverage 0, none for N = 0.
    Raises MissingCells where a score is NaN.
    """
    score, miss = np.asarray(scores, dtype=float), np.asarray(wrong, dtype=bool)
    if np.isnan(score).any():
        raise MissingCells(f"{np.isnan(score).sum()} of {len(score)} inputs have no score")
    threshold, counts = np.unique(score, return_counts=True)
    accepted = counts.cumsum()
    misses = miss[np.argsort(score, kind="stable")].cumsum()[accepted - 1]
    return pd.DataFrame({"coverage": accepted / len(score), "risk": misses / accepted, "threshold": threshold})


def area(curve: pd.DataFrame) -> float:
    """AURC, the area under a risk–coverage curve (Geifman, Uziel and El-Yaniv 2019): the mean over n accepted inputs,
    n = 1…N, of the risk among them; where scores tie, of the risk with all of them. NaN for an empty curve.
    """
    return float((curve["risk"] * np.diff(curve["coverage"], prepend=0)).sum()) if len(curve) else np.nan


def clean_answers(records: pd.DataFrame) -> pd.DataFrame:
    """Columns `score`, `wrong` by sample: the two arguments of risk_coverage, for unperturbed inputs.

    records: rows of one data set and defense, of which the clean cell is taken; of several seeds, which a randomized
    defense answers anew, the worst of each input.
    """
    return attacked_answers(records[records["kind"] == CLEAN])


def attacked_answers(records: pd.DataFrame) -> pd.DataFrame:
    """Columns `score`, `wrong` by sample: the two arguments of risk_coverage, for the worst of an input's rows.

    records: attacked rows of one data set, defense and norm, all ok (robustness.attacked_within). At threshold t an
    input is accepted and wrong if any of its outputs is; else rejected if any is; else right. As t rises it goes from
    rejected to wrong at the least score of its wrong outputs; without any, to right at the greatest score of all. So
    that one score stands for it. What was said of other thresholds holds: the curve bounds the risk from below.
    """
    wrong = records["adv_label"] != records["label"]
    fooled = records["adv_score"].where(wrong).groupby(records["sample"]).min()
    held = records["adv_score"].groupby(records["sample"]).max()
    beaten = wrong.groupby(records["sample"]).any()
    # a row without a score leaves its input without one: min and max would pass over it
    known = records["adv_score"].notna().groupby(records["sample"]).all()
    return pd.DataFrame({"score": fooled.where(beaten, held).where(known), "wrong": beaten})


def operating_point(records: pd.DataFrame) -> tuple[float, float]:
    """Coverage and risk of the deployed defense, by its recorded answers: a point of the curves above.

    records: as in robustness.per_input, the clean cell or attacked rows. The risk is NaN where nothing is accepted.
    """
    worst = figures.per_input(records)["worst"]
    accepted = worst[worst != figures.REJECTED]
    return (len(accepted) / len(worst) if len(worst) else np.nan), float((accepted == figures.WRONG).mean())


def threshold_at(scores: ArrayLike, rate: float) -> float:
    """The threshold at which a new clean input is rejected with probability at most `rate`.

    scores: [M] of held-out clean inputs, the calibration's and no others. rate: in (0, 1). The threshold is the k-th
    least score, k = ⌈(1 − rate)(M + 1)⌉: the split-conformal quantile (Papadopoulos et al. 2002), whose promise holds
    on average over calibration sets and not only in the limit of many. Raises MissingCells where there are no scores,
    or too few for the rate: it takes M ≥ 1/rate − 1.
    """
    score = np.sort(np.asarray(scores, dtype=float))
    if not len(score):
        raise MissingCells("no calibration records")
    if np.isnan(score).any():
        raise MissingCells(f"{np.isnan(score).sum()} of {len(score)} calibration records have no score")
    above = math.floor(rate * (len(score) + 1) + 1e-9)  # 0.29 · 100 must count as 29
    if above < 1:
        raise MissingCells(f"{len(score)} calibration records are too few for a rate of {rate_text(rate)}")
    return float(score[-above])


def rate_text(rate: float) -> str:
    """0.01 → 1 %."""
    return f"{100 * rate:g} %"


def at_threshold(records: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """The records as they would be if the defense rejected scores > threshold: rejections and successes anew.

    Distances and passes stay those of the attack as it ran. Raises MissingCells where an ok row has no score.
    """
    clean, adv = records["clean_score"], records["adv_score"]
    lacking = (records["status"] == "ok") & (clean.isna() | adv.isna())
    if lacking.any():
        raise MissingCells(f"{lacking.sum()} of {len(records)} records have no score")
    as_aimed = (records["norm"] != figures.FOOLING) | (records["aim"] < 0) | (records["aim"] == records["adv_label"])
    success = records["valid"] & (adv <= threshold) & (records["adv_label"] != records["label"]) & as_aimed
    return records.assign(clean_rejected=clean > threshold, adv_rejected=adv > threshold, success=success.astype(bool))


def matched(records: pd.DataFrame, rates: Sequence[float] = RATES) -> pd.DataFrame:
    """Every defense at the same false-rejection rates: the columns MATCHED_COLUMNS.

    For each data set and defense an operating point `rate`: "deployed", and each of `rates` as text, its `threshold`
    set on the calibration's records alone. At each, the clean row and the worst case of each norm and ε that
    summary.summary would have: `coverage` is 1 − rejection, and on clean inputs 1 − coverage is the false
    rejection as it turns out on test inputs; the other columns are summary's.

    A defense that rejects nothing has its scores thresholded like any other's. A rate for which there is no threshold
    has a clean row alone, status "skipped", with the reason and NaN for the figures.
    """
    made = []
    for (dataset, defense), mine in records.groupby(["dataset", "defense"]):
        scores = mine.loc[(mine["kind"] == CALIBRATION) & (mine["status"] == "ok"), "clean_score"]
        test = mine[(mine["kind"] != CALIBRATION) & (mine["norm"] != figures.FOOLING)]
        points = [(DEPLOYED, None), *((rate_text(rate), rate) for rate in rates)]
        for name, rate in points:
            key = {"dataset": str(dataset), "defense": str(defense), "rate": name}
            try:
                threshold = 0.0 if rate is None else threshold_at(scores, rate)
                judged = test if rate is None else at_threshold(test, threshold)
                clean = judged[judged["kind"] == CLEAN]
                cases = ([cell_case(clean)] if len(clean) else []) + worst_cases(judged)
            except MissingCells as missing:
                about = {"attack": CLEAN, "kind": CLEAN, "norm": "none", "eps": 0.0, "n": 0, "seeds": 0}
                threshold = np.nan
                cases = [Case(about | {"status": "skipped", "reason": str(missing)}, test[:0])]
            made.append(with_figures(cases).assign(**key, threshold=threshold))
    table = pd.concat(made, ignore_index=True) if made else pd.DataFrame(columns=list(MATCHED_COLUMNS))
    return table.assign(coverage=1 - table["rejection"])[list(MATCHED_COLUMNS)]


def implausible(summary: pd.DataFrame) -> pd.DataFrame:
    """Checks for results that would be records among robust classifiers: the columns IMPLAUSIBLE_COLUMNS.

    summary: summary.summary. Each worst case at a finite ε is checked in two ways, by `figure`:

    - "robust_accuracy" of a defense that rejects. If it is right on a share of inputs when clean and never accepted and
      wrong within ε, then a classifier without rejection exists, slow as it may be, that is right on that share
      everywhere within ε/2 (Tramèr 2022). `bound` is the best known at ε/2: of the run's defenses that reject nothing,
      on the straight line between the two ε next to ε/2 (0 has the clean accuracy); and the BEST_PUBLISHED one, at
      whatever ε it is: what holds at a larger ε holds at a smaller one.
    - "strict_robust_accuracy" of any defense. Rejection counts as an error there, so the defense is such a classifier
      itself. `bound` is the published one, where its ε is no larger.

    `implausible`: the lower end of the value's 95 % Wilson interval is above the bound. Most likely the attack is too
    weak. `evidence` says what was compared. Where nothing is known there is no bound and no row.
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
    """Robust accuracy of a classifier of the run at any ε, between measured ones on a line; NaN beyond the largest."""
    share = float(np.interp(eps, curve["eps"], curve["robust_accuracy"], right=np.nan))
    return Known(eps, share, f"{name} in this run{'' if np.isclose(curve['eps'], eps).any() else ', interpolated'}")


def _checked(cell: Row, figure: str, radius: float, best: Known) -> dict[str, object]:
    """The columns from `value` on: a worst case's figure against the best classifier known at that radius."""
    share = wilson(round(cell[figure] * cell["n"]), cell["n"])
    evidence = (
        f"{figure.replace('_', ' ')} {100 * share.value:.1f} % [{100 * share.low:.1f}, {100 * share.high:.1f}] within "
        f"ε = {eps_text(cell['eps'])} takes a classifier as robust within {eps_text(radius)}; the best known has "
        f"{100 * best.robust_accuracy:.1f} % ({best.source}, ε = {eps_text(best.eps)})"
    )
    flagged = share.low > best.robust_accuracy
    return {"value": share.value, "bound": best.robust_accuracy, "implausible": flagged, "evidence": evidence}
