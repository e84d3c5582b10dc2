"""Selective classification on tables small enough to check by hand."""

import numpy as np
import pandas as pd
import pytest
from handmade import REJECT, cell, run
from hypothesis import given, settings
from hypothesis import strategies as st

from manifold_bench.bench.metrics.selective import (
    DEPLOYED,
    MATCHED_COLUMNS,
    area,
    at_threshold,
    attacked_answers,
    clean_answers,
    implausible,
    matched,
    operating_point,
    risk_coverage,
    threshold_at,
)
from manifold_bench.bench.metrics.shares import MissingCells
from manifold_bench.bench.metrics.summary import Case, summary, with_figures
from manifold_bench.bench.records.schema import CALIBRATION, CLEAN


def test_risk_and_coverage_by_hand_with_a_tie():
    curve = risk_coverage([0.9, 0.2, 0.1, 0.2], [False, True, False, False])
    assert curve["threshold"].tolist() == [0.1, 0.2, 0.9]
    assert curve["coverage"].tolist() == [0.25, 0.75, 1]
    np.testing.assert_allclose(curve["risk"], [0, 1 / 3, 1 / 4])
    # a quarter at risk 0, a half at 1/3, a quarter at 1/4
    assert area(curve) == pytest.approx(0.25 * 0 + 0.5 / 3 + 0.25 / 4)


def test_the_tied_are_accepted_together_whatever_their_order():
    for wrong in ([True, False], [False, True]):
        assert risk_coverage([1, 1], wrong).to_numpy().tolist() == [[1, 0.5, 1]]


def test_nothing_has_no_curve_and_no_area():
    assert risk_coverage([], []).empty
    assert np.isnan(area(risk_coverage([], [])))


def test_an_input_without_score_is_not_passed_over():
    with pytest.raises(MissingCells, match="1 of 2 inputs have no score"):
        risk_coverage([0.1, np.nan], [False, False])


SCORES = st.sampled_from([-2.0, -1.0, -0.5, 0.5, 1.0])


@given(st.lists(st.tuples(SCORES, st.booleans()), min_size=1, max_size=8))
def test_what_must_hold_of_every_curve(inputs):
    scores, wrong = map(np.array, zip(*inputs, strict=True))
    curve = risk_coverage(scores, wrong)
    assert (np.diff(curve["coverage"]) > 0).all()
    assert curve.iloc[-1].tolist() == pytest.approx([1, wrong.mean(), scores.max()])
    for point in curve.itertuples():
        accepted = scores <= point.threshold
        assert point.coverage == pytest.approx(accepted.mean())
        assert point.risk == pytest.approx(wrong[accepted].mean())


@given(st.permutations(range(6)), st.lists(st.booleans(), min_size=6, max_size=6))
def test_without_ties_the_area_is_the_mean_risk_of_the_first_n(scores, wrong):
    ordered = np.array(wrong)[np.argsort(scores)]
    assert area(risk_coverage(scores, wrong)) == pytest.approx(np.mean(ordered.cumsum() / np.arange(1, 7)))


# three inputs of class 0. The first: right at -1, wrong at -2 and at 2; the second: rejected at 1 and right; the third:
# right at -3 under either attack
A = cell("a", labels=[0] * 3, adv=[0, REJECT, 0], clean_scores=[-4.0] * 3, adv_scores=[-1.0, 1.0, -3.0])
B = cell("b", labels=[0] * 3, adv=[5, 0, 0], clean_scores=[-4.0] * 3, adv_scores=[-2.0, -3.0, -3.0])
C = cell("c", labels=[0] * 3, adv=[5, 0, 0], clean_scores=[-4.0] * 3, adv_scores=[2.0, -3.0, -3.0]).assign(
    adv_rejected=[True, False, False], success=False
)


def test_an_attacked_input_is_wrong_from_its_least_wrong_score_on_and_else_accepted_from_its_greatest():
    answers = attacked_answers(run(A, B, C))
    assert answers["score"].tolist() == [-2, 1, -3]
    assert answers["wrong"].tolist() == [True, False, False]
    curve = risk_coverage(answers["score"], answers["wrong"])
    assert curve.to_numpy().tolist() == [[1 / 3, 0, -3], [2 / 3, 1 / 2, -2], [1, 1 / 3, 1]]
    assert deployed(run(A, B, C)) == pytest.approx((2 / 3, 1 / 2))


def test_clean_answers_are_those_of_the_clean_cell_alone():
    clean = cell(CLEAN, labels=[0, 1], clean=[0, 2], clean_scores=[-2, -1])
    held_out = cell(CALIBRATION, labels=[0, 1], clean=[9, 9], clean_scores=[7, 7])
    answers = clean_answers(run(clean, held_out, A))
    assert answers["score"].tolist() == [-2, -1]
    assert answers["wrong"].tolist() == [False, True]
    assert deployed(run(clean, held_out)) == (1, 0.5)


def test_a_defense_that_rejects_everything_has_no_risk():
    coverage, risk = deployed(cell(CLEAN, labels=[0], clean=[REJECT]))
    assert coverage == 0
    assert np.isnan(risk)


def deployed(records):
    """Coverage and risk at the deployed threshold, over these rows together."""
    rows = np.flatnonzero(records["kind"] != CALIBRATION)
    return operating_point(with_figures(records, [Case({}, rows)]).iloc[0])


@st.composite
def scored_attacks(draw):
    n = draw(st.integers(1, 4))
    cells = []
    for attack in "ab":
        scores, labels = (draw(st.lists(of, min_size=n, max_size=n)) for of in (SCORES, st.sampled_from([0, 1])))
        invalid = draw(st.sets(st.integers(0, n - 1), max_size=1))
        made = cell(attack, labels=[0] * n, adv=labels, clean_scores=[-4] * n, adv_scores=scores, invalid=invalid)
        cells.append(at_threshold(made, 0.0))
    return run(*cells)


@given(scored_attacks())
@settings(max_examples=30, deadline=None)
def test_the_attacked_curve_is_what_the_defense_would_do_at_each_threshold(records):
    answers = attacked_answers(records)
    curve = risk_coverage(answers["score"], answers["wrong"])
    for point in curve.itertuples():
        assert deployed(at_threshold(records, point.threshold)) == pytest.approx((point.coverage, point.risk))


def test_a_threshold_by_hand():
    scores = range(1, 100)  # 99 of them: a hundredth one is as likely to fall into any of the 100 gaps
    assert threshold_at(scores, 0.01) == 99
    assert threshold_at(scores, 0.05) == 95
    assert threshold_at(range(1, 100), 0.29) == 71


@given(st.integers(9, 40), st.sampled_from([0.1, 0.2, 0.29, 0.5]))
def test_a_new_clean_input_is_rejected_no_more_often_than_stated(size, rate):
    # any of them may be the new one: leave out each in turn
    scores = np.arange(size + 1.0)
    rejected = [new > threshold_at(np.delete(scores, new), rate) for new in range(size + 1)]
    assert np.mean(rejected) <= rate + 1e-12
    assert np.mean(rejected) > rate - 1 / (size + 1)


@pytest.mark.parametrize(
    ("scores", "says"),
    [
        ([], "no calibration records"),
        ([0.0] * 98, "98 calibration records are too few for a rate of 1 %"),
        ([0.0] * 99 + [np.nan], "1 of 100 calibration records have no score"),
    ],
)
def test_without_enough_held_out_scores_there_is_no_threshold(scores, says):
    with pytest.raises(MissingCells, match=says):
        threshold_at(scores, 0.01)


# nine held-out scores: at 10 % the threshold is the greatest, at 20 % the one before
HELD_OUT = [-9.0, -8, -7, -6, -5, -4, -3, -2, -1]
CLEAN_CELL = cell(CLEAN, labels=[0] * 5, clean=[0, 0, 1, 0, REJECT], clean_scores=[-8, -1.5, -1.5, -0.5, 1])
ATTACK = cell(
    labels=[0] * 5,
    clean=[0, 0, 1, 0, REJECT],
    clean_scores=[-8, -1.5, -1.5, -0.5, 1],
    adv=[1, 1, 1, 0, REJECT],
    adv_scores=[-3, -0.1, -1.5, -0.5, 1],
)
RECORDS = run(CLEAN_CELL, ATTACK, cell(CALIBRATION, labels=[0] * 9, clean_scores=HELD_OUT))


def point(table: pd.DataFrame, rate: str, norm: str = "none", **where: object) -> pd.Series:
    found = table[(table["rate"] == rate) & (table["norm"] == norm)]
    for column, value in where.items():
        found = found[found[column] == value]
    assert len(found) == 1
    return found.iloc[0]


def test_matched_rates_by_hand():
    table = matched(RECORDS, (0.1, 0.2))
    assert tuple(table.columns) == MATCHED_COLUMNS
    figured = ["threshold", "coverage", "error", "robust_accuracy", "strict_robust_accuracy"]
    # deployed: one rejected, one wrong; two fooled of the three that are right
    assert point(table, DEPLOYED)[figured].tolist() == pytest.approx([0, 0.8, 0.2, 0.6, 0.6])
    assert point(table, DEPLOYED, "linf")[figured].tolist() == pytest.approx([0, 0.8, 0.6, 0.2, 0.2])
    # at -1 the fourth is rejected too when clean; the second's attack is caught
    assert point(table, "10 %")[figured].tolist() == pytest.approx([-1, 0.6, 0.2, 0.4, 0.4])
    assert point(table, "10 %", "linf")[figured].tolist() == pytest.approx([-1, 0.4, 0.4, 0.2, 0])
    # at -2 only the first is accepted when clean, and fooled
    assert point(table, "20 %")[figured].tolist() == pytest.approx([-2, 0.2, 0, 0.2, 0.2])
    assert point(table, "20 %", "linf")[figured].tolist() == pytest.approx([-2, 0.2, 0.2, 0, 0])


def test_the_deployed_point_is_that_of_the_summary():
    table, rows = matched(RECORDS), summary(RECORDS)
    for norm, attack in (("none", CLEAN), ("linf", "worst-case")):
        row = rows[(rows["norm"] == norm) & (rows["attack"] == attack)].iloc[0]
        for figure in ("n", "error", "robust_accuracy", "strict_robust_accuracy", "status", "reason"):
            assert point(table, DEPLOYED, norm)[figure] == row[figure]


def test_thresholds_see_the_held_out_inputs_and_nothing_else():
    shifted = RECORDS.assign(clean_score=RECORDS["clean_score"].where(RECORDS["attack"] == CALIBRATION, -50.0))
    assert point(matched(shifted, (0.2,)), "20 %")["threshold"] == -2
    moved = RECORDS.assign(clean_score=RECORDS["clean_score"].where(RECORDS["attack"] != CALIBRATION, -50.0))
    assert point(matched(moved, (0.2,)), "20 %")["threshold"] == -50


def test_a_defense_that_rejects_nothing_is_given_a_threshold_on_its_score():
    plain = run(
        cell(CLEAN, labels=[0, 0], clean_scores=[-0.9, -0.4], defense="plain"),
        cell(labels=[0, 0], adv=[1, 0], clean_scores=[-0.9, -0.4], adv_scores=[-0.5, -0.4], defense="plain"),
        cell(CALIBRATION, labels=[0] * 4, clean_scores=[-0.9, -0.8, -0.7, -0.6], defense="plain"),
    )
    table = matched(plain, (0.2,))
    assert point(table, DEPLOYED)["coverage"] == 1
    assert point(table, "20 %")["coverage"] == 0.5
    assert point(table, DEPLOYED, "linf")["robust_accuracy"] == 0.5
    assert point(table, "20 %", "linf")["robust_accuracy"] == 0.5
    assert point(table, "20 %", "linf")["strict_robust_accuracy"] == 0


@pytest.mark.parametrize(
    ("records", "says"),
    [
        (run(CLEAN_CELL, ATTACK), "no calibration records"),
        (RECORDS, "9 calibration records are too few for a rate of 1 %"),
        (
            run(CLEAN_CELL, ATTACK, cell(CALIBRATION, labels=[0], status="failed", reason="why")),
            "no calibration records",
        ),
        (
            run(cell(CLEAN, labels=[0]), cell(CALIBRATION, labels=[0] * 99, clean_scores=[0] * 99)),
            "1 of 1 records have no score",
        ),
    ],
)
def test_a_rate_without_threshold_has_a_reason_and_no_figures(records, says):
    table = matched(records, (0.01,))
    missing = table[table["rate"] == "1 %"]
    assert missing["status"].tolist() == ["skipped"]
    assert missing["reason"].tolist() == [says]
    assert missing[["threshold", "coverage", "error", "robust_accuracy"]].isna().all(axis=None)
    assert point(table, DEPLOYED)["status"] == "ok"


def test_another_threshold_rejects_and_beats_by_the_same_rules():
    assert at_threshold(ATTACK, 0.0).equals(ATTACK)
    stricter = at_threshold(ATTACK, -1)
    assert stricter["clean_rejected"].tolist() == [False, False, False, True, True]
    assert stricter["adv_rejected"].tolist() == [False, True, False, True, True]
    assert stricter["success"].tolist() == [True, False, True, False, False]
    broken = cell(labels=[0], clean=[1], clean_scores=[-1], invalid=[0])
    assert not at_threshold(broken, 5)["success"].any()
    noise = cell("a", labels=[-1] * 3, aims=[-1, 1, 2], adv=[1] * 3, clean_scores=[0.5] * 3, norm="fooling")
    assert at_threshold(noise, 1)["success"].tolist() == [True, True, False]
    assert not at_threshold(noise, 0)["success"].any()


def test_noise_is_not_matched():
    noise = cell("noise", labels=[-1] * 2, adv=[1, REJECT], norm="fooling")
    assert set(matched(run(RECORDS, noise))["norm"]) == {"none", "linf"}


def many(share: float, reject: bool = False) -> list[int]:
    """Answers to 1000 inputs of class 0: that share right, the others wrong or rejected."""
    right = round(1000 * share)
    return [0] * right + [REJECT if reject else 1] * (1000 - right)


def answered(
    defense: str, robust: dict[float, float], clean: float = 1.0, reject: bool = False, **more
) -> pd.DataFrame:
    """A defense with a share of clean inputs right, the others rejected, and its robust accuracy over ε."""
    first, labels = many(clean, reject=True), [0] * 1000
    adv = {eps: many(share, reject) for eps, share in robust.items()}
    clean_cell = cell(CLEAN, labels=labels, clean=first, defense=defense, **more)
    return run(clean_cell, cell("a", tuple(robust), labels, first, adv, defense=defense, **more))


CLASSIFIER = answered("classifier", {0.1: 0.9, 0.2: 0.5})


def checks(*records: pd.DataFrame, **where: object) -> pd.DataFrame:
    found = implausible(summary(run(*records)))
    for column, value in where.items():
        found = found[found[column] == value]
    return found


def test_a_detector_better_than_the_best_classifier_at_half_the_strength_is_flagged():
    detector = answered("detector", {0.1: 0.96, 0.2: 0.95}, clean=0.98)
    found = checks(CLASSIFIER, detector).set_index("eps")
    assert set(found["defense"]) == {"detector"}
    # at 0.2 the classifier at 0.1 is the measure; at 0.1 half way between its clean accuracy and that at 0.1
    assert found["bound"].to_dict() == pytest.approx({0.1: 0.95, 0.2: 0.9})
    assert found["implausible"].to_dict() == {0.1: False, 0.2: True}  # 96 % of 1000: from 94.6 %
    assert "95.0 % [93.5, 96.2] within ε = 0.2" in found.loc[0.2, "evidence"]
    assert "90.0 % (classifier in this run, ε = 0.1)" in found.loc[0.2, "evidence"]
    assert "95.0 % (classifier in this run, interpolated, ε = 0.05)" in found.loc[0.1, "evidence"]


def test_a_detector_that_some_classifier_could_equal_is_not():
    assert not checks(CLASSIFIER, answered("detector", {0.2: 0.9}, clean=0.98))["implausible"].any()
    # 91 % of 1000 may as well be 90 %
    assert not checks(CLASSIFIER, answered("detector", {0.2: 0.91}, clean=0.98))["implausible"].any()


def test_without_a_classifier_to_compare_with_there_is_no_verdict():
    detector = answered("detector", {0.2: 0.95}, clean=0.98)
    assert checks(detector).empty
    assert checks(detector, answered("classifier", {0.05: 0.9})).empty  # nothing known at 0.1 and beyond
    assert checks(detector, CLASSIFIER.assign(norm=CLASSIFIER["norm"].replace("linf", "l2"))).empty


def test_a_published_classifier_raises_the_bar():
    mnist = {"dataset": "mnist"}
    detector = answered("detector", {0.3: 0.95}, clean=0.98, **mnist)
    undefended = answered("undefended", {0.1: 0.3, 0.3: 0.0}, **mnist)
    assert checks(undefended, detector, figure="robust_accuracy")["bound"].tolist() == [0.9634]
    assert not checks(undefended, detector)["implausible"].any()
    better = answered("detector", {0.3: 0.98}, clean=0.98, **mnist)
    assert checks(better, figure="robust_accuracy")["implausible"].tolist() == [True]


def test_strictly_a_defense_is_itself_the_classifier():
    holds = answered("holds", {0.1: 0.99, 0.3: 0.99}, dataset="mnist")
    assert checks(holds)[["figure", "eps", "implausible"]].to_numpy().tolist() == [
        ["strict_robust_accuracy", 0.3, True]
    ]
    # rejecting what is attacked costs nothing in the one figure and everything in the other
    rejects = checks(answered("rejects", {0.3: 0.1}, reject=True, dataset="mnist")).set_index("figure")
    assert rejects["value"].to_dict() == {"robust_accuracy": 1, "strict_robust_accuracy": 0.1}
    assert rejects["implausible"].to_dict() == {"robust_accuracy": True, "strict_robust_accuracy": False}


def test_failed_unbounded_and_fooling_cells_are_not_checked():
    labels, cells = [0] * 1000, []
    cells.append(cell("b", (0.4,), labels, defense="detector", status="failed", reason="why"))
    cells.append(cell("c", (np.inf,), labels, many(0.9, reject=True), defense="detector", norm="unrestricted"))
    cells.append(cell("d", labels=[-1] * 9, adv=[REJECT] * 9, defense="detector", norm="fooling"))
    found = checks(CLASSIFIER, answered("detector", {0.2: 0.95}, clean=0.98), *cells)
    assert found["eps"].tolist() == [0.2]
