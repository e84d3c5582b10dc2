"""Every figure on tables small enough to check by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from handmade import REJECT, cell, run
from hypothesis import given, settings
from hypothesis import strategies as st

from manifold_bench.bench.metrics import robustness as figures
from manifold_bench.bench.metrics.shares import MissingCells, wilson
from manifold_bench.bench.metrics.summary import SUMMARY_COLUMNS, summary, with_figures
from manifold_bench.bench.metrics.summary import worst_cases as cases_of
from manifold_bench.bench.records.schema import CALIBRATION, WORST_CASE

# ten inputs of class 0; the defense is wrong on the first and rejects the second when clean
LABELS = [0] * 10
CLEAN_ANSWERS = [1, REJECT, 0, 0, 0, 0, 0, 0, 0, 0]
CLEAN_CELL = cell("clean", labels=LABELS, clean=CLEAN_ANSWERS)
# a beats inputs 2 and 3 and drives 4 into rejection; b beats 3 and 5
A = cell("a", labels=LABELS, clean=CLEAN_ANSWERS, adv=[1, REJECT, 1, 1, REJECT, 0, 0, 0, 0, 0])
B = cell("b", labels=LABELS, clean=CLEAN_ANSWERS, adv=[1, 0, 0, 1, 0, 1, 0, 0, 0, 0])


def row(table: pd.DataFrame, attack: str, eps: float = 0.1, norm: str = "linf") -> pd.Series:
    found = table[(table["attack"] == attack) & (table["eps"] == eps) & (table["norm"] == norm)]
    assert len(found) == 1
    return found.iloc[0]


def test_accuracy_error_and_rejection_of_clean_answers():
    assert figures.accuracy(CLEAN_CELL).value == 0.8
    assert figures.error(CLEAN_CELL).value == 0.1
    assert figures.rejection(CLEAN_CELL).value == 0.1


def test_accuracy_error_and_rejection_under_one_attack():
    assert figures.error(A).value == 0.3
    assert figures.rejection(A).value == 0.2
    assert figures.accuracy(A).value == 0.5


def test_robust_needs_the_clean_input_accepted_and_right():
    # of the 8 that are right when clean, a beats 2; b makes the rejected one right, which saves nothing
    assert figures.robust_accuracy(A).value == 0.6
    assert figures.robust_accuracy(B).value == 0.6
    assert figures.robust_accuracy(CLEAN_CELL).value == 0.8


def test_strict_robust_counts_a_rejected_adversarial_input_as_lost():
    assert figures.strict_robust_accuracy(A).value == 0.5
    assert figures.strict_robust_accuracy(B).value == 0.6


def test_worst_case_is_per_input_and_not_the_worst_mean():
    both = run(A, B)  # beaten by either: 2, 3, 5
    assert figures.robust_accuracy(both).value == 0.5
    assert figures.strict_robust_accuracy(both).value == 0.4
    assert figures.error(both).value == 0.4
    assert figures.rejection(both).value == 0.2


def test_an_invalid_output_is_no_success():
    cheating = cell("a", labels=LABELS, clean=CLEAN_ANSWERS, adv=[1] * 10, invalid=range(2, 10))
    assert figures.robust_accuracy(cheating).value == 0.8
    assert row(summary(cheating), "a")["valid"] == pytest.approx(0.2)


def test_wilson_interval_by_hand():
    # p = .5, n = 10, z = 1.96: centre .5, half width z / (n + z²) · sqrt(n / 4 + z² / 4) = .2634
    estimate = wilson(5, 10)
    assert estimate == pytest.approx((0.5, 0.2366, 0.7634, 10), abs=1e-4)
    assert wilson(0, 10).low == 0
    assert wilson(10, 10).high == 1
    assert wilson(0, 10).high == pytest.approx(1.96**2 / (10 + 1.96**2), abs=1e-4)


def test_no_inputs_give_no_figure():
    assert np.isnan(wilson(0, 0)[:3]).all()
    assert np.isnan(figures.robust_accuracy(A.iloc[:0]).value)
    assert np.isnan(figures.median_distance(A.iloc[:0]))


def test_median_distance_takes_wrong_as_zero_and_not_found_as_infinite():
    found = cell(labels=[0] * 5, distance=[0, 0.1, 0.2, math.inf, math.inf])
    assert figures.median_distance(found) == 0.2
    assert figures.median_distance(cell(labels=[0] * 4, distance=[0.1, 0.2, math.inf, math.inf])) == math.inf
    other = cell("b", labels=[0] * 5, distance=[0, math.inf, math.inf, 0.05, 0.15])
    assert figures.median_distance(run(found, other)) == pytest.approx(0.1)
    assert np.isnan(figures.median_distance(CLEAN_CELL))


def test_an_input_without_one_of_the_attacks_gives_no_worst_case():
    shorter = cell("b", labels=LABELS[:9], clean=CLEAN_ANSWERS[:9])
    with pytest.raises(MissingCells, match="1 of 10 inputs lack b linf"):
        figures.robust_accuracy(run(A, shorter))


@pytest.mark.parametrize("status", ["failed", "skipped"])
def test_a_cell_without_result_is_never_averaged_over(status):
    with pytest.raises(MissingCells, match=f"b linf ε = 0.1: {status}"):
        figures.robust_accuracy(run(A, cell("b", labels=LABELS, status=status, reason="why")))


LADDER = cell(
    "a",
    eps=(0.1, 0.2, 0.3),
    labels=[0] * 4,
    adv={0.1: [1, 0, 0, 0], 0.2: [0, 1, 0, 0], 0.3: [1, 1, 1, 0]},  # at 0.2 it lost what it had at 0.1
)


def test_the_worst_case_never_rises_with_eps():
    curve = worst_cases(LADDER)
    assert curve["eps"].tolist() == [0.1, 0.2, 0.3]
    assert curve["robust_accuracy"].tolist() == [0.75, 0.5, 0.25]
    assert (curve["n"] == 4).all()


def worst_cases(records: pd.DataFrame) -> pd.DataFrame:
    table = summary(records)
    return table[table["attack"] == WORST_CASE]


def test_distance_curve_agrees_with_the_ladder_of_a_minimal_distance_attack():
    answers = {0.1: [1, 0, 0, 0], 0.2: [1, 1, 0, 0]}
    minimal = cell(eps=(0.1, 0.2), labels=[0] * 4, adv=answers, distance=[0.05, 0.15, 0.25, math.inf])
    assert figures.distance_curve(minimal, [0.1, 0.2])["value"].tolist() == [0.75, 0.5]
    assert worst_cases(minimal)["robust_accuracy"].tolist() == [0.75, 0.5]
    assert figures.distance_curve(minimal, [0, 0.05, 1])["value"].tolist() == [1, 0.75, 0.25]


def test_summary_has_a_row_per_cell_and_the_worst_cases():
    table = summary(run(CLEAN_CELL, A, B))
    assert tuple(table.columns) == SUMMARY_COLUMNS
    assert table["attack"].tolist() == ["clean", "a", "b", WORST_CASE]
    worst = row(table, WORST_CASE)
    assert worst["robust_accuracy"] == 0.5
    assert (worst["status"], worst["reason"], worst["n"]) == ("ok", "over a, b", 10)
    assert (worst["forwards"], worst["backwards"], worst["seconds"]) == (20, 10, 10)
    clean = row(table, "clean", 0, "none")
    assert clean["strict_robust_accuracy"] == clean["robust_accuracy"] == clean["accuracy"] == 0.8
    assert np.isnan(clean["median_distance"])


def test_worst_case_counts_successes_in_smaller_balls():
    table = summary(LADDER)
    assert row(table, "a", 0.2)["robust_accuracy"] == 0.75
    assert row(table, WORST_CASE, 0.2)["robust_accuracy"] == 0.5
    # b was tried at 0.1 only: what it beat there counts at 0.3 too
    table = summary(run(LADDER, cell("b", labels=[0] * 4, adv=[0, 0, 0, 1])))
    assert row(table, WORST_CASE, 0.3)["robust_accuracy"] == 0


def test_a_failed_attack_makes_the_worst_case_partial_and_a_skipped_one_does_not():
    failed = cell("b", labels=LABELS, status="failed", reason="out of memory")
    skipped = cell("c", labels=LABELS, status="skipped", reason="no generator")
    table = summary(run(A, failed, skipped))
    worst = row(table, WORST_CASE)
    assert (worst["status"], worst["robust_accuracy"]) == ("partial", 0.6)
    assert worst["reason"] == "over a; failed: b (out of memory)"
    assert row(summary(run(A, skipped)), WORST_CASE)["status"] == "ok"
    for attack, reason in (("b", "out of memory"), ("c", "no generator")):
        lost = row(table, attack)
        assert (lost["n"], lost["reason"]) == (10, reason)
        assert lost[list(SUMMARY_COLUMNS[SUMMARY_COLUMNS.index("accuracy") : -1])].isna().all()


def test_no_attack_left_leaves_no_worst_case():
    failed = cell("b", labels=LABELS, status="failed", reason="out of memory")
    skipped = cell("c", labels=LABELS, status="skipped", reason="no generator")
    worst = row(summary(run(failed, skipped)), WORST_CASE)
    assert (worst["status"], worst["reason"]) == ("failed", "b (out of memory)")
    assert np.isnan(worst["robust_accuracy"])
    assert row(summary(skipped), WORST_CASE)["status"] == "skipped"


def test_an_attack_that_failed_at_one_strength_leaves_no_worst_case_there():
    # b got through 0.1 alone: the worst case at 0.2 would be that at 0.1 under another name
    table = summary(run(A, cell("b", eps=(0.2,), labels=LABELS, status="failed", reason="why")))
    assert row(table, WORST_CASE, 0.1)["status"] == "ok"
    assert row(table, WORST_CASE, 0.2)["status"] == "failed"
    assert np.isnan(row(table, WORST_CASE, 0.2)["robust_accuracy"])


def test_attacks_on_different_inputs_are_compared_on_the_common_ones():
    first = cell("a", labels=[0] * 4, adv=[1, 0, 0, 0], samples=[0, 1, 2, 3])
    second = cell("b", labels=[0] * 4, adv=[0, 0, 0, 1], samples=[2, 3, 4, 5])
    worst = row(summary(run(first, second)), WORST_CASE)
    assert (worst["status"], worst["n"], worst["robust_accuracy"]) == ("partial", 2, 1)
    assert worst["reason"] == "over a, b; over the 2 inputs of 6 that all of them attacked"


def test_norms_data_sets_and_defenses_stay_apart():
    cells = [cell(norm=n, defense=d, dataset=s, adv=[9] * 4) for n in ("l2", "linf") for d in "xy" for s in "pq"]
    table = summary(run(*cells))
    assert (table["attack"] == WORST_CASE).sum() == 8
    assert (table["n"] == 4).all()


# three inputs of class 0, each aimed at classes 1 and 2; the second falls for one aim, the third is rejected for one
AIMED = cell(
    "aimed", labels=[0] * 6, aims=[1, 2] * 3, samples=[0, 0, 1, 1, 2, 2], adv=[0, 0, 0, 2, REJECT, 0], passes=(7, 4)
)


def test_an_input_with_several_aims_counts_once_and_falls_with_any_of_them():
    inputs = figures.per_input(AIMED)
    assert inputs["worst"].tolist() == [figures.RIGHT, figures.WRONG, figures.REJECTED]
    assert figures.robust_accuracy(AIMED)[::3] == (pytest.approx(2 / 3), 3)
    assert figures.strict_robust_accuracy(AIMED).value == pytest.approx(1 / 3)
    of_cell = row(summary(AIMED), "aimed")
    assert (of_cell["n"], of_cell["forwards"], of_cell["backwards"]) == (3, 14, 8)
    assert worst_cases(AIMED)["n"].tolist() == [3]
    lost = AIMED.assign(status="failed", reason="why")
    assert row(summary(lost), "aimed")["n"] == 3


def test_the_worst_case_joins_attacks_with_and_without_aims():
    worst = row(summary(run(AIMED, cell("free", labels=[0] * 3, adv=[1, 0, 0]))), WORST_CASE)
    assert (worst["status"], worst["n"]) == ("ok", 3)
    assert worst["robust_accuracy"] == pytest.approx(1 / 3)


def test_an_input_that_lacks_one_of_the_aims_gives_no_figure():
    with pytest.raises(MissingCells, match="1 of 3 inputs lack aimed linf"):
        figures.robust_accuracy(AIMED[:-1])


# three seeds of one attack beat 1, 2 and 3 of the ten inputs, five of them altogether
SEEDS = [
    cell("a", labels=LABELS, clean=[0] * 10, adv=[int(i in beaten) for i in range(10)], seed=seed)
    for seed, beaten in ((0, {0}), (7, {0, 1}), (9, {2, 3, 4}))
]


def test_an_input_is_worth_its_worst_seed_and_the_mean_is_shown_too():
    of_cell = row(summary(run(CLEAN_CELL.assign(clean_label=0, clean_rejected=False), *SEEDS)), "a")
    assert (of_cell["n"], of_cell["seeds"], of_cell["robust_accuracy"]) == (10, 3, 0.5)
    assert of_cell["robust_mean"] == pytest.approx(0.8)
    assert of_cell["robust_sd"] == pytest.approx(0.1)  # of 0.9, 0.8 and 0.7
    assert (of_cell["forwards"], of_cell["backwards"], of_cell["seconds"]) == (30, 15, 15)
    (alone,) = (row(summary(SEEDS[0]), name) for name in ("a",))
    assert (alone["seeds"], alone["robust_mean"]) == (1, 0.9) and np.isnan(alone["robust_sd"])
    assert worst_cases(run(*SEEDS))["robust_accuracy"].tolist() == [0.5]


def test_the_worst_case_of_a_seed_is_over_the_attacks_with_that_seed():
    other = [
        cell("b", labels=LABELS, adv=[int(i == at) for i in range(10)], seed=seed) for seed, at in ((0, 9), (7, 0))
    ]
    worst = row(summary(run(*SEEDS[:2], *other)), WORST_CASE)
    assert (worst["status"], worst["seeds"], worst["robust_accuracy"]) == ("ok", 2, 0.7)
    assert worst["robust_mean"] == pytest.approx(0.8) and worst["robust_sd"] == pytest.approx(0)


def test_a_hole_in_one_seed_is_a_hole():
    with pytest.raises(MissingCells, match=r"2 of 10 inputs lack a linf ε = 0.1, seed 9"):
        figures.robust_accuracy(run(*SEEDS[:2], SEEDS[2][:8]))
    failed = cell("a", labels=LABELS, seed=11, status="failed", reason="why")
    table = summary(run(*SEEDS, failed))
    assert (row(table, "a")["status"], row(table, "a")["seeds"]) == ("failed", 4)
    assert row(table, WORST_CASE)["status"] == "partial" and row(table, WORST_CASE)["seeds"] == 3
    holed = run(*SEEDS[:2], SEEDS[2][:8])
    worst = with_figures(holed, cases_of(holed)).iloc[0]
    assert (worst["status"], worst["n"]) == ("partial", 8)
    assert "over the 8 inputs of 10" in worst["reason"]


def test_seeds_with_different_attacks_have_no_mean():
    worst = row(summary(run(*SEEDS[:2], cell("b", labels=LABELS, adv=[1] * 10))), WORST_CASE)
    assert (worst["seeds"], worst["robust_accuracy"]) == (2, 0)
    assert np.isnan([worst["robust_mean"], worst["robust_sd"]]).all()


# four noise images: the first is taken for a 3, the second for both classes aimed at, the third for another than those
NOISE = cell("noise", labels=[-1] * 4, adv=[3, REJECT, REJECT, REJECT], norm="fooling")
FOOLED = cell(
    "fool",
    labels=[-1] * 8,
    aims=[0, 1] * 4,
    samples=[0, 0, 1, 1, 2, 2, 3, 3],
    norm="fooling",
    adv=[REJECT, REJECT, 0, 1, 1, 0, REJECT, REJECT],
)


def test_noise_that_is_accepted_as_aimed_is_the_error_and_nothing_is_right():
    table = summary(run(NOISE, FOOLED, A))
    for attack, fooled in (("noise", 0.25), ("fool", 0.25), (WORST_CASE, 0.5)):
        of_cell = row(table, attack, math.inf, "fooling")
        assert (of_cell["status"], of_cell["n"]) == ("ok", 4)
        assert (of_cell["error"], of_cell["rejection"]) == (fooled, 1 - fooled)
        right = ["accuracy", "robust_accuracy", "robust_low", "strict_robust_accuracy", "median_distance"]
        assert of_cell[right].isna().all()
    assert figures.error(NOISE).value == 0.25
    for figure in (figures.accuracy, figures.robust_accuracy, figures.accuracy_without_rejection):
        assert np.isnan(figure(NOISE).value)
    assert figures.per_input(run(NOISE, FOOLED))["robust_accuracy"].tolist() == [False, False, True, True]


def test_every_seed_has_noise_of_its_own():
    again = cell("noise", labels=[-1] * 4, adv=[REJECT, 3, 3, REJECT], norm="fooling", seed=1)
    of_cell = row(summary(run(NOISE, again)), "noise", math.inf, "fooling")
    assert (of_cell["n"], of_cell["seeds"], of_cell["error"]) == (8, 2, 0.375)
    assert np.isnan(of_cell["robust_mean"])
    # an attack with one of the seeds alone shares the images of that seed
    worst = row(summary(run(NOISE, again, FOOLED)), WORST_CASE, math.inf, "fooling")
    assert (worst["status"], worst["n"], worst["error"]) == ("partial", 4, 0.5)


def test_noise_is_never_mixed_with_images_and_has_no_curve():
    assert row(summary(run(NOISE, A)), WORST_CASE)["reason"] == "over a"
    with pytest.raises(ValueError, match="fooling"):
        figures.error(run(NOISE, A))
    with pytest.raises(ValueError, match="fooling"):
        figures.distance_curve(NOISE, [1])


def test_the_calibration_enters_no_figure():
    held_out = cell(CALIBRATION, labels=LABELS, clean=[1] * 10)  # of another split: the numbers name other images
    pd.testing.assert_frame_equal(summary(run(held_out, CLEAN_CELL, A, B)), summary(run(CLEAN_CELL, A, B)))
    assert figures.accuracy(run(held_out, CLEAN_CELL)).value == 0.8
    assert figures.distance_curve(run(held_out, A), [0.1]).equals(figures.distance_curve(A, [0.1]))
    assert figures.median_distance(run(held_out, A)) == figures.median_distance(A)
    assert np.isnan(figures.accuracy(held_out).value)


def test_accuracy_without_rejection_goes_by_the_label_alone():
    # a rejected input's label is right in these tables
    assert figures.accuracy_without_rejection(CLEAN_CELL).value == 0.9
    assert figures.accuracy_without_rejection(A).value == 0.7
    assert figures.accuracy_without_rejection(run(A, B)).value == 0.6
    mistaken = CLEAN_CELL.assign(clean_label=[1, 1, *[0] * 8])
    assert figures.accuracy_without_rejection(mistaken).value == 0.8


ANSWERS = st.sampled_from([0, 1, REJECT])


@st.composite
def some_records(draw):
    n = draw(st.integers(1, 6))
    clean = draw(st.lists(ANSWERS, min_size=n, max_size=n))
    answers = st.lists(ANSWERS, min_size=n, max_size=n)
    cells = [cell("clean", labels=[0] * n, clean=clean)]
    for attack in "ab":
        adv = {eps: draw(answers) for eps in (0.1, 0.2)}
        invalid = draw(st.sets(st.integers(0, n - 1), max_size=2))
        cells.append(cell(attack, (0.1, 0.2), [0] * n, clean, adv, invalid=sorted(invalid)))
    return run(*cells)


@given(some_records())
@settings(max_examples=20, deadline=None)
def test_what_must_hold_of_every_summary(records):
    table = summary(records)
    np.testing.assert_allclose(table["accuracy"] + table["error"] + table["rejection"], 1)
    assert (table["strict_robust_accuracy"] <= table["robust_accuracy"]).all()
    assert (table["robust_accuracy"] <= row(table, "clean", 0, "none")["accuracy"]).all()
    assert (table["robust_low"] <= table["robust_accuracy"] + 1e-12).all()
    assert (table["robust_high"] >= table["robust_accuracy"] - 1e-12).all()
    for eps in (0.1, 0.2):
        worst = row(table, WORST_CASE, eps)
        for attack in "ab":
            one = row(table, attack, eps)
            assert worst["robust_accuracy"] <= one["robust_accuracy"]
            assert worst["strict_robust_accuracy"] <= one["strict_robust_accuracy"]
            assert worst["accuracy"] <= one["accuracy"]
            assert worst["error"] >= one["error"]
    assert row(table, WORST_CASE, 0.2)["robust_accuracy"] <= row(table, WORST_CASE, 0.1)["robust_accuracy"]
