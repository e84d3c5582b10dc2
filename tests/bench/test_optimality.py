"""Comparisons of attacks, on tables small enough to check by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from handmade import REJECT, cell, run
from hypothesis import given
from hypothesis import strategies as st

from manifold_bench.bench.metrics.optimality import attack_figures, curve_end, mean_optimality, optimality
from manifold_bench.bench.records.schema import CALIBRATION, CLEAN, WORST_CASE
from manifold_bench.bench.report.attacks import attack_tables
from manifold_bench.bench.report.table import markdown

INF = math.inf


def test_optimality_by_hand():
    # areas up to 4 over four inputs: the ensemble 0 + 1 + 2 + 4 = 7, nothing found 0 + 4 + 4 + 4 = 12
    best = [0, 1, 2, 4]
    assert optimality(best, best, 4) == 1
    assert optimality([0, INF, INF, INF], best, 4) == 0
    assert optimality([0, 2, 2, INF], best, 4) == pytest.approx(1 - (8 - 7) / (12 - 7))
    assert optimality([0, 9, 2, 4], best, 4) == pytest.approx(1 - (10 - 7) / (12 - 7))  # beyond the end is not found


def test_what_nobody_beats_does_not_count():
    assert optimality([1, 3, INF], [1, 2, INF], 4) == optimality([1, 3], [1, 2], 4) == pytest.approx(1 - 1 / 5)


def test_where_there_is_nothing_to_find_there_is_no_optimality():
    assert np.isnan(optimality([INF, 0], [INF, 0], 1))
    assert np.isnan(optimality([], [], 0))


def test_curves_end_where_that_of_the_ensemble_reaches_zero():
    assert curve_end([0, 0.5, 1.7], [1, 2]) == 1.7
    assert curve_end([0, 0.5, 7], [1, 2]) == 7
    # not all fell, or the last at an ε: a step further, of the mean of the steps
    assert curve_end([0.5, 1.7, INF], [1, 2]) == 3
    assert curve_end([0.1, 0.3], [0.1, 0.2, 0.3]) == pytest.approx(0.4)
    assert curve_end([5, INF], [1, 2]) == 5
    # at a single ε optimality is the share of what the ensemble beat
    assert curve_end([0.3, 0.3], [0.3]) == pytest.approx(0.6)
    assert optimality([0.3, INF, INF, INF], [0.3, 0.3, 0.3, INF], 0.6) == pytest.approx(1 / 3)
    assert curve_end([5, INF], [INF]) == 5  # any image is allowed: there is no ε
    assert curve_end([INF, INF], [INF]) == curve_end([], []) == 0


# Of few digits: distances one bit apart have areas that round to the same
DISTANCES = st.one_of(st.just(0.0), st.floats(0.125, 10, width=16), st.just(INF))


@given(st.lists(st.tuples(DISTANCES, DISTANCES, DISTANCES), min_size=1, max_size=8))
def test_what_must_hold_of_every_ensemble(rows):
    found = np.array(rows).T
    found[:, (found == 0).any(0)] = 0  # wrong without an attack is so for every attack
    best = found.min(0)
    end = curve_end(best, [1.0, 2.0])
    scores = [optimality(one, best, end) for one in found]
    if np.isnan(scores[0]):
        assert (best[best > 0] >= end).all()
        return
    assert all(-1e-9 <= score <= 1 + 1e-9 for score in scores)
    assert optimality(best, best, end) == 1
    better = np.minimum(found[0], found[1])
    assert optimality(better, best, end) >= max(scores[:2]) - 1e-9


# six inputs of class 0: the first is wrong when clean, the second rejected; a and b each beat some of the others
LABELS, ANSWERS = [0] * 6, [1, REJECT, 0, 0, 0, 0]
A = cell(
    "a", (1, 2), LABELS, ANSWERS, {1: [1, REJECT, 1, 0, 0, 0], 2: [1, REJECT, 1, 1, 0, 0]}, norm="l2", passes=(3, 1)
)
B = cell("b", (1, 2), LABELS, ANSWERS, {1: [1, 1, 0, 0, 0, 0], 2: [1, 1, 0, 1, 1, 0]}, norm="l2")
RECORDS = run(
    cell(CLEAN, labels=LABELS, clean=ANSWERS),
    cell(CALIBRATION, labels=[0] * 9),
    A,
    B,
    cell("c", (1, 2), LABELS, norm="l2", status="failed", reason="out of memory"),
    cell("noise", labels=[-1] * 3, norm="fooling"),
)


def test_attacks_compared_with_each_other():
    table = attack_figures(RECORDS).set_index("attack")
    assert table.index.tolist() == ["a", "b", "c", WORST_CASE]
    # right when clean: four. The ensemble: 1, 2, 2, not; up to 3, a step beyond the largest ε: 8 of 12
    a, b, everything = table.loc["a"], table.loc["b"], table.loc[WORST_CASE]
    assert (a["n"], a["right"], a["success"], a["eps"]) == (6, 4, 0.5, 2)
    assert (a["forwards"], a["backwards"]) == (6, 2)  # three and one at each of two ε
    assert a["optimality"] == pytest.approx(1 - (9 - 8) / (12 - 8))  # 1, 2, 3, 3
    assert b["optimality"] == pytest.approx(1 - (10 - 8) / (12 - 8))  # 3, 2, 2, 3
    assert (everything["success"], everything["optimality"], everything["forwards"]) == (0.75, 1, 26)
    assert (a["median_distance"], everything["median_distance"]) == (INF, 1.5)
    assert (a["alone"], a["missed"], b["alone"], b["missed"]) == (1, 1, 1, 1)  # each beats two, one of them both
    assert table.loc["c", "status"] == "failed" and np.isnan(table.loc["c", "optimality"])


def test_several_seeds_find_what_any_of_them_finds():
    again = cell("a", (1, 2), LABELS, ANSWERS, [1, REJECT, 0, 0, 1, 0], norm="l2", passes=(3, 1), seed=1)
    table = attack_figures(run(RECORDS, again)).set_index("attack")
    assert (table.loc["a", "success"], table.loc["a", "forwards"], table.loc["a", "n"]) == (0.75, 12, 6)
    assert table.loc["a", "optimality"] == 1


def test_an_attack_on_fewer_inputs_is_compared_on_those():
    few = cell("few", (2,), LABELS[:4], ANSWERS[:4], [1, REJECT, 1, 0], norm="l2")
    table = attack_figures(run(A, few)).set_index("attack")
    # on inputs 2 and 3 the ensemble has 1 and 2, few 2 and nothing; up to 3
    assert table.loc["few", "optimality"] == pytest.approx(1 - (5 - 3) / (6 - 3))
    assert (table.loc["few", "n"], table.loc["few", "right"]) == (4, 2)


def test_the_mean_over_defenses_is_over_those_where_it_is_defined():
    strong = [cell(name, (1, 2), LABELS, norm="l2", defense="strong") for name in "ab"]
    weak = [cell(name, (1, 2), LABELS, adv=[1] * 6, norm="l2", defense="weak") for name in "ab"]
    means = mean_optimality(attack_figures(run(RECORDS, *strong, *weak)))
    assert means["attack"].tolist() == ["a", "b"]  # the best first
    assert means["optimality"].tolist() == [pytest.approx(0.875), pytest.approx(0.75)]
    assert means["defenses"].tolist() == [2, 2]


def test_the_table_says_all_of_it():
    weak = [cell(name, (1, 2), LABELS, adv=[1] * 6, norm="l2", defense="weak") for name in "ab"]
    (table,) = attack_tables(attack_figures(run(RECORDS, *weak)))
    assert table.name == ("digits", "l2", "optimality")
    assert table.rows[0] == ["d", "a", "50.0 [15.0, 85.0]", "2", "6 + 2", "∞", "75.0"]
    assert table.rows[2] == ["d", "c", "failed (1)", "–", "–", "–", "–"]
    assert table.rows[3][1] == WORST_CASE and table.notes == ["failed: out of memory"]
    assert table.rows[-2] == ["mean over 2 defenses", "a", "–", "–", "–", "–", "87.5"]
    assert "smallest distance" in markdown(table)


def test_one_attack_alone_has_nothing_to_be_compared_with():
    assert not attack_tables(attack_figures(A))
    assert attack_figures(RECORDS.iloc[:0]).empty


def test_an_attack_that_succeeds_within_its_largest_size_ranks_before_one_that_finds_small_distances_beyond():
    """One beats 3 of 50 inputs within ε and nothing else; the other 1, and 48 more just beyond."""
    labels = [0] * 50
    within = cell("within", (0.1,), labels, adv=[1] * 3 + [0] * 47)
    beyond = cell("beyond", (0.1,), labels, adv=[1] + [0] * 49, distance=[0.1] + [0.11] * 48 + [INF])
    table = attack_figures(run(within, beyond)).set_index("attack")
    assert table.loc["beyond", "optimality"] > table.loc["within", "optimality"]
    assert table.loc[["within", "beyond"], "rank"].tolist() == [1, 2]
    assert np.isnan(table.loc[WORST_CASE, "rank"])
    means = mean_optimality(attack_figures(run(within, beyond)))
    assert means["attack"].tolist() == ["within", "beyond"] and means["rank"].tolist() == [1, 2]
    (shown,) = attack_tables(attack_figures(run(within, beyond)))
    assert [row[1] for row in shown.rows] == ["within", "beyond", WORST_CASE]
