"""Comparisons of a system with the others of a run, on records small enough to count."""

from __future__ import annotations

import io

import numpy as np
import pytest
from handmade import REJECT, a_run, cell, run
from rich.console import Console

from manifold_bench.bench.metrics.optimality import attack_figures
from manifold_bench.bench.metrics.ranking import against_others, rank
from manifold_bench.bench.records.schema import CALIBRATION, CLEAN
from manifold_bench.bench.report.contents import Report
from manifold_bench.bench.report.ranking import (
    attack_lines,
    comparisons,
    new_attacks,
    own_defenses,
    ranking_lines,
    ranking_tables,
    reused_lines,
)
from manifold_bench.bench.report.screen import print_report

N = 20
SOME = [0] * N


def beaten(n: int, **more: object):
    """An attack that beats the first n of 20 inputs."""
    return cell(labels=SOME, adv=[1] * n + [0] * (N - n), **more)


# mine falls on 4 of 20 under a, strong on none, weak on 14, alike on 4 others
RECORDS = run(
    *(cell(CLEAN, labels=SOME, defense=name) for name in ("mine", "strong", "weak", "alike")),
    cell(CALIBRATION, labels=SOME, defense="mine"),
    cell("noise", labels=[-1] * N, norm="fooling", defense="mine"),
    beaten(4, defense="mine"),
    beaten(0, defense="strong"),
    beaten(14, defense="weak"),
    cell(labels=SOME, adv=[0] * 16 + [1] * 4, defense="alike"),
)


def row(table, other: str, eps: float = 0.1):
    (found,) = table[(table["other"] == other) & (table["eps"] == eps)].to_dict("records")
    return found


def test_every_other_defense_is_compared_input_by_input():
    table = against_others(RECORDS, "mine")
    assert len(table) == 6  # three others, clean and attacked
    weak, strong, alike = (row(table, other) for other in ("weak", "strong", "alike"))
    assert (weak["own_share"], weak["other_share"], weak["n"]) == (0.8, pytest.approx(0.3), N)
    assert (weak["gained"], weak["lost"], weak["sign"]) == (10, 0, "+")
    assert weak["p"] == pytest.approx(6 * 2 / 2**10)  # Holm: the smallest of six
    # four lost of four, p = 1/8 alone: more than chance allows in six comparisons
    assert (strong["gained"], strong["lost"], strong["sign"], strong["p"]) == (0, 4, "~", pytest.approx(5 / 8))
    assert (alike["gained"], alike["lost"], alike["sign"]) == (4, 4, "~")
    assert row(table, "weak", 0)["sign"] == "="
    attacked = table[table["eps"] == 0.1]
    assert rank(attacked) == (2, 4)  # strong is better; alike is no worse


def test_only_attacks_that_both_met_or_that_make_no_sense_for_one_count():
    more = [
        beaten(20, attack="only on weak", defense="weak"),
        cell("unsuited", labels=SOME, defense="mine", status="skipped", reason="no classifier"),
        beaten(16, attack="unsuited", defense="weak"),
    ]
    weak = row(against_others(run(RECORDS, *more), "mine"), "weak")
    assert (weak["own_share"], weak["other_share"]) == (0.8, pytest.approx(0.2))


def test_what_has_no_figures_is_not_compared_and_what_is_partial_says_so():
    failed = cell(labels=SOME, defense="broken", status="failed", reason="out of memory")
    table = against_others(run(RECORDS, failed), "mine")
    broken = row(table, "broken")
    assert (broken["sign"], broken["reason"]) == ("x", "broken: failed: a (out of memory)")
    assert rank(table[table["eps"] == 0.1]) == (2, 4)
    second = [
        beaten(0, attack="b", defense="mine"),
        cell("b", labels=SOME, defense="weak", status="failed", reason="timed out"),
    ]
    weak = row(against_others(run(RECORDS, *second), "mine"), "weak")
    assert (weak["sign"], weak["reason"]) == ("+", "weak: over a; failed: b (timed out)")
    (shown,) = ranking_tables(against_others(run(RECORDS, failed, *second), "mine"), "mine")
    texts = {line[0]: line[-1] for line in shown.rows}
    assert texts["broken"] == "not compared (2)" and texts["weak"].endswith("‡ (1)")
    assert len(shown.notes) == 2


def test_only_shared_inputs_are_compared():
    few = run(
        cell(CLEAN, labels=SOME[:5], defense="few", samples=range(15, 20)),
        cell(labels=SOME[:5], adv=[1] * 5, defense="few", samples=range(15, 20)),
    )
    found = row(against_others(run(RECORDS, few), "mine"), "few")
    assert (found["n"], found["own_share"], found["other_share"], found["gained"]) == (5, 1, 0, 5)


def test_there_is_a_line_for_each_strength():
    assert ranking_lines(against_others(RECORDS, "mine")) == [
        "digits, clean: 100.0 % accepted and right, rank 1 of 4; no different from alike, strong, weak",
        "digits, L∞ ε = 0.1: 80.0 % robust, rank 2 of 4; better than weak; "
        "not significantly different from alike, strong",
    ]
    alone = RECORDS[RECORDS["defense"] == "mine"]
    assert ranking_lines(against_others(alone, "mine")) == []


def test_the_table_says_with_which_share_of_the_first_row_a_pair_was_compared():
    """One more attack, which only two of the defenses met, beats ten inputs of the first one."""
    more = [beaten(10, attack="more", defense="mine"), cell("more", labels=SOME, defense="strong")]
    (table,) = ranking_tables(against_others(run(RECORDS, *more), "mine"), "mine")
    own = table.rows[0][2].split(" ")[0]
    compared = {line[0]: line[2] for line in table.rows[1:]}
    assert {"80.0", "50.0"} > {own}
    for other, share in {"strong": "50.0", "alike": "80.0", "weak": "80.0"}.items():
        assert (f"(against {share}: " in compared[other]) == (share != own) == ("against" in compared[other])


def test_the_table_begins_with_the_defense_and_goes_on_with_the_best():
    (table,) = ranking_tables(against_others(RECORDS, "mine"), "mine")
    assert table.name == ("digits", "linf", "ranking-mine")
    assert table.header == ["defense", "clean", "robust, ε = 0.1"]
    assert [line[0] for line in table.rows] == ["mine", "strong", "alike", "weak"]
    assert table.rows[0][2] == "80.0 [58.4, 91.9], rank 2 of 4"
    assert table.rows[3][1:] == ["100.0 [83.9, 100.0] = (0/0, p = 1)", "30.0 [14.5, 51.9] + (10/0, p = 0.012)"]


def test_an_attack_is_compared_with_the_others():
    both = [beaten(n, attack="b", defense=defense, passes=(2, 0)) for defense, n in (("mine", 2), ("weak", 14))]
    lines = attack_lines(attack_figures(run(RECORDS, *both)), "b")
    assert lines[0] == (
        "digits, L∞, mine: success 10.0 [2.8, 30.1] % within ε = 0.1, 2 + 0 forward + backward passes per input, "
        "median distance ∞, optimality 50.0 %, rank 2 of 2; it beats 0 that no other attack beats, and misses 2 that "
        "others beat"
    )
    assert "%, rank 1 of 2; it beats " in lines[1]
    assert lines[2] == "digits, L∞: mean optimality over 2 defenses 75.0 %"
    failed = cell("b", labels=SOME, defense="mine", status="failed", reason="why")
    assert attack_lines(attack_figures(run(RECORDS, failed)), "b") == ["digits, L∞, mine: failed: why"]


def test_what_was_named_and_what_was_reused_is_shown():
    reused = [{"folder": "results/baselines/quick", "code": "abc", "started": "2026-01-01", "jobs": 7}]
    run_file = {"named": {"defenses": ["mine", "gone"], "attacks": ["a"]}, "reused": reused}
    named = comparisons(
        {name: against_others(RECORDS, name) for name in ("mine", "gone")}, attack_figures(RECORDS), run_file
    )
    found = {one.name: one.lines for one in named}
    assert found["mine"][0].startswith("digits, clean: 100.0 %")
    assert found["mine"][1].startswith("digits, L∞ ε = 0.1: 80.0 % robust, rank 2 of 4; better than weak")
    assert any(line.startswith("digits, L∞, weak: success 70.0") for line in found["a"])
    assert found["gone"] == []
    assert [one.name for one in named if one.about] == ["mine", "a"]  # "gone" has no lines
    assert reused_lines(run_file) == [
        "7 jobs from the baseline results/baselines/quick (code abc, 2026-01-01), not run again."
    ]
    console = Console(width=110, record=True, file=io.StringIO())
    print_report(Report(a_run(RECORDS, **run_file)), console)
    shown = " ".join(console.export_text().split())
    for one in named:
        assert one.title in shown and all(line.split(";")[0] in shown for line in one.lines)


def test_what_several_comparisons_have_in_common_is_said_once():
    named = comparisons({name: against_others(RECORDS, name) for name in ("mine", "weak")}, attack_figures(RECORDS), {})
    assert [bool(one.lines) for one in named] == [True, True] and [bool(one.about) for one in named] == [False, True]


@pytest.mark.parametrize(
    ("source", "compared"),
    [
        ("bench/matrices/quick.toml", ["square", "mine.py:A"]),  # `quick` has pgd already, and no square
        ("mine.toml", ["mine.py:A"]),  # that file may be gone
    ],
)
def test_an_attack_that_the_matrix_has_already_is_not_compared(source, compared):
    named = ["pgd", "pgd", "pgd(steps=9)", "square", "mine.py:A"]
    entries = [{"label": label, "name": label.partition("(")[0]} for label in named]
    assert new_attacks({"matrix": {"source": source, "attacks": entries}, "named": {"attacks": named}}) == compared


def test_a_defense_is_only_marked_as_named_beside_others():
    run_file = {"named": {"defenses": ["mine"]}}
    assert own_defenses(run_file, ["mine", "strong"]) == ["mine"]
    assert own_defenses(run_file, ["mine"]) == []


def test_the_line_says_with_which_defense_nothing_was_compared():
    elsewhere = run(cell(CLEAN, labels=SOME, defense="apart"), beaten(3, attack="other", defense="apart"))
    lines = ranking_lines(against_others(run(RECORDS, elsewhere), "mine"))
    assert [line.endswith("; not compared with apart") for line in lines] == [False, True]
    assert "rank 2 of 4" in lines[1]


def test_norms_have_the_same_order_everywhere():
    both = [
        cell(labels=SOME, norm=norm, defense=defense, attack=f"in {norm}")
        for norm in ("l0", "l1", "l2")
        for defense in ("mine", "weak")
    ]
    found = against_others(run(RECORDS, *both), "mine")
    order = ["L∞", "L2", "L1", "L0"]
    assert [line.split()[1].rstrip(":") for line in ranking_lines(found)] == ["clean", *order]
    assert [table.name[1] for table in ranking_tables(found, "mine")] == ["linf", "l2", "l1", "l0"]


def test_clean_rejections_are_no_right_answers():
    shy = cell(CLEAN, labels=SOME, clean=[REJECT] * 10 + [0] * 10, defense="shy")
    clean = row(against_others(run(RECORDS, shy), "mine"), "shy", 0)
    assert (clean["own_share"], clean["other_share"], clean["sign"]) == (1, 0.5, "+")
    assert np.isfinite(clean["p"])


def test_where_every_attack_of_one_failed_nothing_is_compared():
    failed = cell(labels=SOME, defense="broken", status="failed", reason="why")
    others = [cell(CLEAN, labels=SOME, defense="broken"), failed]
    for records in (run(RECORDS, *others), run(*others, RECORDS[RECORDS["defense"] == "mine"])):
        broken = row(against_others(records, "mine"), "broken")
        assert (broken["sign"], broken["n"], broken["reason"]) == ("x", 0, "broken: failed: a (why)")
        assert row(against_others(records, "broken"), "mine")["reason"] == "broken: failed: a (why)"
