"""Published, measured and under the strongest attack: tables and plots of claims."""

from __future__ import annotations

import pytest
from claimed import AT, CLEAN_CELL, LADDER, LATE, STRONG, WEAK, claim
from handmade import REJECT, RUN, a_run, cell, run
from hypothesis import given, settings
from hypothesis import strategies as st

from manifold_bench.bench.metrics.shares import MissingCells, wilson
from manifold_bench.bench.metrics.summary import attacked_within, with_figures, worst_cases
from manifold_bench.bench.metrics.unconverged import FELL_LATE
from manifold_bench.bench.planning.claims import Budget
from manifold_bench.bench.report.claims import (
    claims_plots,
    claims_tables,
    measured,
    published_text,
    under_strongest,
)
from manifold_bench.bench.report.contents import Report
from manifold_bench.bench.report.tables import Doubt, Doubts


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"published": 0.9797}, "97.97"),
        ({"published": 0.041, "recalled": True}, "4.10 (recalled)"),
        ({"published": (110, 181), "figure": "recovered"}, "110 of 181"),
        ({"published": (0, 9000), "figure": "pairs"}, "0 of 9,000"),
        ({"published": True, "figure": "rejection_monotone"}, "yes"),
        ({"published": 50.4, "figure": None, "measurement": "fid"}, "50.4"),
        ({"published": None}, "–"),
    ],
)
def test_published_numbers_stand_as_in_the_paper(values, text):
    assert published_text(claim(**values)) == text


def test_a_figure_of_the_named_cell():
    assert measured(claim(), CLEAN_CELL).text == "50.00 [15.00, 85.00], n = 4"
    assert measured(claim(published=(1, 4)), CLEAN_CELL).text == "2 of 4: 50.00 [15.00, 85.00]"
    assert measured(claim(defense="other"), CLEAN_CELL) is None


def test_a_cell_that_failed_has_a_reason_and_no_number():
    failed = cell("weak", status="failed", reason="out of memory")
    with pytest.raises(MissingCells, match="failed: out of memory"):
        measured(claim(attack="weak"), failed)
    unseen = Budget(norm="l2", eps=1)
    (table,) = claims_tables(run(CLEAN_CELL, failed), [claim(attack="weak", strongest=(AT, unseen))])
    assert table.rows[0][3] == "no figure (1)"
    assert table.rows[0][4] == "L∞ ε = 0.1: accepted and right no figure (2); L2 ε = 1: accepted and right –"
    assert table.notes[0] == "failed: out of memory"


def test_the_strongest_attack_is_the_worst_case_per_input():
    found = under_strongest(claim(figure="error"), AT, run(CLEAN_CELL, WEAK, STRONG))
    assert found.share == wilson(3, 4)
    assert "strongest single attack: strong, 75.00" in found.remark


@settings(deadline=None, max_examples=10)
@given(st.lists(st.lists(st.sampled_from([REJECT, 0, 1]), min_size=5, max_size=5), min_size=1, max_size=3))
def test_the_strongest_attack_agrees_with_the_tables_of_the_run(answers):
    rows = run(*(cell(f"a{i}", labels=[0, 0, 0, 1, 1], adv=adv) for i, adv in enumerate(answers)))
    table = with_figures(rows, worst_cases(rows)).iloc[0]
    for figure in ("accuracy", "error", "robust_accuracy", "strict_robust_accuracy"):
        share = under_strongest(claim(figure=figure), AT, rows).share
        assert share is not None and share.value == table[figure]
    assert attacked_within(rows, 0.1)[1] == "ok"


def test_a_table_per_source_with_claimed_and_measured_figures():
    entries = [
        claim(strongest=(AT,)),
        claim(source="figure 3", figure="error", attack="weak", published=None, text="wrong"),
        claim(text="elsewhere", dataset="mnist"),
    ]
    first, second = claims_tables(run(CLEAN_CELL, WEAK, STRONG), entries)
    assert first.title.startswith("a paper, table 1") and second.title.startswith("figure 3")
    assert first.rows[0] == [
        "right",
        "digits, d",
        "90.00",
        "50.00 [15.00, 85.00], n = 4",
        "L∞ ε = 0.1: accepted and right 25.00 [4.56, 69.94], n = 4 (1)",
    ]
    assert "strongest single attack: strong" in first.notes[0]
    assert first.rows[1][3:] == ["–", "–"]
    assert second.rows[0][1:4] == ["digits, d × weak, L∞ ε = 0.1", "–", "25.00 [4.56, 69.94], n = 4"]


LATE_AT = {("digits", "d", "linf", 0.1, "robust_accuracy"): Doubt(FELL_LATE, "L∞ ε = 0.1: 2 of 4")}


def doubts(doubts: Doubts, figure: str = "robust_accuracy") -> dict[float, tuple[tuple[str, str], ...]]:
    """The doubts on a claim's figure within each of four budgets."""
    sizes = (0.05, 0.1, 0.2, 0.3)
    found = {eps: under_strongest(claim(figure=figure), Budget(norm="linf", eps=eps), LATE, doubts) for eps in sizes}
    return {eps: one.doubts for eps, one in found.items()}


@pytest.mark.parametrize("figure", ["error", "accuracy", "robust_accuracy", "strict_robust_accuracy", "fooled"])
def test_a_late_fall_is_doubtful_at_its_size_and_beyond_as_long_as_inputs_are_left(figure):
    (late,) = LATE_AT.values()
    assert doubts(LATE_AT, figure) == {0.05: (), 0.1: (late,), 0.2: (late,), 0.3: ()}


def test_other_doubts_concern_their_own_size_alone():
    other = Doubt("none of them is made for it", "L∞ ε = 0.1")
    assert doubts(dict.fromkeys(LATE_AT, other)) == {0.05: (), 0.1: (other,), 0.2: (), 0.3: ()}


def test_doubts_about_another_worst_case_are_left_alone():
    for key in [("mnist", "d", "linf"), ("digits", "other", "linf"), ("digits", "d", "l2")]:
        moved = {(*key, 0.1, "robust_accuracy"): one for one in LATE_AT.values()}
        assert not any(doubts(moved).values())


def test_a_run_marks_claims_whose_worst_case_fell_late():
    budgets = tuple(Budget(norm="linf", eps=eps) for eps in (0.05, 0.1, 0.2, 0.3))
    stored = claim(figure="error", published=0.0, strongest=budgets, central=True).model_dump(mode="json")
    report = Report(a_run(run(CLEAN_CELL, LATE), **RUN | {"matrix": RUN["matrix"] | {"claims": [stored]}}))
    (table,) = report.claim_tables
    marked = [text.partition("§")[2] for text in table.rows[0][4].split("; ")]
    assert marked[0] == marked[3] == "" and marked[1] == marked[2] != ""
    number = int(marked[1].strip("()"))
    assert table.notes[number - 1] == f"§ the attacks look too weak: {FELL_LATE}: digits, d, L∞ ε = 0.1: 2 of 4"
    (text, _) = report.conclusions
    assert text.count("n = 4 §") == 2 and text.count(f"§ The attacks look too weak: {FELL_LATE}: ") == 1


def test_a_measurement_is_in_the_row_of_its_publication():
    result = {
        "dataset": "digits",
        "defense": "d",
        "measurement": "fid",
        "status": "ok",
        "reason": "",
        "headline": "fid",
        "values": {"fid": 51.23456, "other": 1.0},
    }
    claimed = claim(figure=None, measurement="fid", published=50.4)
    assert measured(claimed, CLEAN_CELL, [result]).text == "51.23"
    assert measured(claimed, CLEAN_CELL, []) is None
    with pytest.raises(MissingCells, match="skipped: no generator"):
        measured(claimed, CLEAN_CELL, [{**result, "status": "skipped", "reason": "no generator"}])


def test_a_plot_for_every_ladder_that_a_claim_is_about():
    claimed = [
        claim(figure="peak_error", attack="fgsm", eps=None, source="a paper, figure 3"),
        claim(figure="rejection_monotone", attack="fgsm", eps=None, published=True),
        claim(figure="peak_error", attack="fgsm", eps=None, defense="absent"),
        claim(),
    ]
    ((parts, figure, _),) = claims_plots(run(CLEAN_CELL, LADDER), claimed)
    assert parts == ("digits", "d", "fgsm", "linf", "outcomes")
    (axes,) = figure.axes
    assert "a paper, figure 3" in axes.get_title(loc="left")
    labels = [line.get_label() for line in axes.lines]
    assert labels == ["accepted and right", "rejected", "accepted and wrong"]
    assert [list(line.get_ydata()) for line in axes.lines] == [[75, 25, 0, 25], [0, 50, 50, 75], [25, 25, 50, 0]]
