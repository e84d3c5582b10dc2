"""Tables show what their figures are based on, and never a number for a cell that is missing."""

import io

import pandas as pd
import pytest
from handmade import REJECT, a_run, cell, run
from rich.console import Console

from manifold_bench.bench.metrics.selective import matched
from manifold_bench.bench.metrics.summary import summary
from manifold_bench.bench.records.schema import CALIBRATION, CLEAN
from manifold_bench.bench.report.contents import Report
from manifold_bench.bench.report.screen import print_report
from manifold_bench.bench.report.table import Table, latex, latex_escaped, markdown
from manifold_bench.bench.report.tables import (
    INVALID,
    Doubt,
    implausible_cells,
    panels,
    selective_tables,
    tables,
)

LABELS = [0] * 10
BEATEN = [1] * 4 + [REJECT] + [0] * 5
RECORDS = run(
    cell(CLEAN, labels=LABELS, clean=[0] * 9 + [REJECT], defense="plain"),
    cell("pgd", (0.1, 0.2), LABELS, adv=BEATEN, defense="plain"),
    cell("cw_l2", (0.1, 0.2), LABELS, defense="plain", status="failed", reason="out of\nmemory | 100 %"),
    cell("noise", (0.1,), LABELS, adv=[1] * 10, invalid=[0, 1], defense="plain"),
    cell(CLEAN, labels=LABELS, defense="[odd]"),
    cell("pgd", (0.1, 0.2), LABELS, defense="[odd]", status="skipped", reason="it has no gradient"),
)
FIGURES = summary(RECORDS)


def made(figures: pd.DataFrame) -> list[Table]:
    """The tables of a summary."""
    return tables(figures, implausible_cells(figures))


ROBUST, ATTACKS = made(FIGURES)


def line(table: Table, *start: str) -> dict[str, str]:
    """The row that starts like this, by column."""
    (found,) = (row for row in table.rows if tuple(row[: len(start)]) == start)
    return dict(zip(table.header, found, strict=True))


def test_a_robust_figure_has_its_interval_and_the_clean_rejection_in_its_row():
    row = line(ATTACKS, "plain", "pgd")
    assert row["n"] == "10"
    assert row["robust, ε = 0.1"] == "60.0 [31.3, 83.2]"
    assert row["clean accuracy"] == "90.0 [59.6, 98.2]"
    assert row["clean rejection"] == "10.0 [1.8, 40.4]"


def test_worst_case_table_has_robust_and_strict_per_strength():
    assert ROBUST.header == [
        "defense",
        "n",
        "clean accuracy",
        "clean rejection",
        "robust, ε = 0.1",
        "strict, ε = 0.1",
        "robust, ε = 0.2",
        "strict, ε = 0.2",
    ]
    assert [row[0] for row in ROBUST.rows] == ["plain", "[odd]"]  # equally robust, and accurate 90 % and 0 %
    # noise beat all but the two inputs for which its output was invalid, and those pgd beats
    row = line(ROBUST, "plain")
    assert row["robust, ε = 0.1"].startswith("0.0 [0.0, 27.8]")
    assert "‡" in row["robust, ε = 0.1"]
    assert "†" in row["robust, ε = 0.1"]


def test_cells_without_figures_are_marked_and_explained():
    failed, skipped = line(ATTACKS, "plain", "cw_l2"), line(ATTACKS, "[odd]", "pgd")
    number = failed["robust, ε = 0.1"].removeprefix("failed (").removesuffix(")")
    assert ATTACKS.notes[int(number) - 1] == "failed: out of\nmemory | 100 %"
    assert failed["robust, ε = 0.2"] == failed["robust, ε = 0.1"]
    assert skipped["robust, ε = 0.1"].startswith("skipped (")
    assert "skipped: it has no gradient" in ATTACKS.notes
    assert line(ROBUST, "[odd]")["robust, ε = 0.1"].startswith("skipped (")
    (partial,) = (note for note in ROBUST.notes if note.startswith("‡ partial"))
    assert "over noise, pgd; failed: cw_l2" in partial


@pytest.mark.parametrize(("norm", "added"), [("linf", "square"), ("l0", "sparse-rs"), ("unrestricted", "")])
def test_the_note_on_a_zero_gradient_names_its_cure(norm, added):
    blind = cell("pgd", (2.0,), LABELS, norm=norm).assign(blind=1.0)
    stuck = cell("apgd", (2.0,), LABELS, norm=norm, defense="stuck").assign(blind=0.0, improved=False)
    notes = [note for table in made(summary(run(cell(CLEAN, labels=LABELS), blind, stuck))) for note in table.notes]
    assert {"mb.bpda" in note for note in notes if "gradient was" in note} == {True}
    assert all(added in note for note in notes if "gradient was" in note)
    assert {"mb.bpda" in note for note in notes if note.startswith("‖ stuck")} == {False}


def test_the_note_on_a_worst_case_says_which_attacks_it_is_about():
    clean, silent = cell(CLEAN, labels=LABELS), cell("mine", (2.0,), LABELS).assign(forwards=0.0)
    silent, noise = silent.assign(success=False), cell("yours", (2.0,), LABELS).assign(forwards=0.0, success=False)
    notes = [note for table in made(summary(run(clean, silent, noise))) for note in table.notes]
    assert any("every attack stopped trying" in note and "no attack queried the model" in note for note in notes)


def test_each_failure_is_explained_in_one_note():
    for table in (ROBUST, ATTACKS):
        (number,) = (i for i, note in enumerate(table.notes, 1) if "memory" in note)
        assert table.notes[number - 1] == "failed: out of\nmemory | 100 %"
        assert any(f"failed: cw_l2 ({number})" in note for note in table.notes)
    alone = [cell(CLEAN, labels=LABELS), cell("cw", labels=LABELS, status="failed", reason="out of memory")]
    for table in made(summary(run(*alone))):
        assert table.rows[-1][-1] == "failed (1)" and table.notes == ["failed: out of memory"]


def test_invalid_outputs_are_marked_and_counted():
    row = line(ATTACKS, "plain", "noise")
    assert "†" in row["robust, ε = 0.1"]
    (note,) = (note for note in ATTACKS.notes if note.startswith("† plain × noise: "))
    assert "up to 20.0 % of the outputs are invalid" in note and INVALID in note


def test_what_was_not_run_is_no_zero():
    assert line(ATTACKS, "plain", "noise")["robust, ε = 0.2"] == "–"


def test_a_remark_on_the_clean_cell_is_shown():
    remarked = cell(CLEAN, labels=LABELS, reason="its answers depend on the batch")
    table = made(summary(run(remarked, cell(labels=LABELS))))[0]
    assert line(table, "d")["clean accuracy"].endswith(" (1)")
    assert table.notes == ["note: d × clean: its answers depend on the batch"]


def test_a_defense_without_a_clean_cell_has_no_clean_figures():
    assert line(made(summary(cell(labels=LABELS)))[0], "d")["clean accuracy"] == "–"


NOISE = run(
    cell(CLEAN),
    cell("gaussian", labels=[-1] * 4, adv=[3, REJECT, REJECT, REJECT], norm="fooling"),
    cell("aimed", labels=[-1] * 4, adv=[REJECT, 1, 1, 1], norm="fooling"),
    cell("evolved", labels=[-1] * 4, norm="fooling", status="skipped", reason="it has no classes"),
)
FOOLED = summary(NOISE)


def test_noise_has_a_table_of_its_own():
    (table,) = made(FOOLED)
    assert table.name == ("digits", "fooling", "accepted")
    assert [row[1] for row in table.rows] == ["aimed", "evolved", "gaussian", "worst-case"]
    assert line(table, "d", "gaussian")["accepted"] == "25.0 [4.6, 69.9]"
    assert line(table, "d", "worst-case")["accepted"].startswith("100.0")
    assert line(table, "d", "evolved")["accepted"] == "skipped (1)"
    assert "noise images with which the attack succeeded" in markdown(table)
    console = Console(width=100, record=True, file=io.StringIO())
    print_report(Report(a_run(NOISE)), console)
    assert "25.0 [4.6, 69.9]" in console.export_text()


def test_several_seeds_are_a_mean_a_deviation_and_their_worst():
    seeds = [cell("pgd", labels=LABELS, adv=[1] * n + [0] * (10 - n), seed=n) for n in (1, 3)]
    robust, attacks = made(summary(run(cell(CLEAN, labels=LABELS), *seeds)))
    for table, start in ((robust, ("d",)), (attacks, ("d", "pgd")), (attacks, ("d", "worst-case"))):
        assert line(table, *start)["robust, ε = 0.1"] == "80.0 ± 14.1 (70.0 [39.7, 89.2])"
        assert table.legend.endswith("with its interval).")
    console = Console(width=100, record=True, file=io.StringIO())
    print_report(Report(a_run(run(cell(CLEAN, labels=LABELS), *seeds))), console)
    assert "80.0 ± 14.1 (70.0)" in console.export_text()
    assert "seeds" not in ROBUST.legend


SELECTIVE = run(
    cell(CLEAN, labels=LABELS, clean=[REJECT] + [0] * 9, clean_scores=[1] + [-2] * 9),
    cell(CALIBRATION, labels=[0] * 20, clean_scores=[-2] * 20),
    cell(
        "pgd",
        labels=LABELS,
        clean=[REJECT] + [0] * 9,
        clean_scores=[1] + [-2] * 9,
        adv=[REJECT] + [1] * 9,
        adv_scores=[1] + [-1] * 9,
    ),
    cell(CLEAN, labels=LABELS, defense="plain", clean_scores=[-1] * 10),
    cell("pgd", labels=LABELS, defense="plain", adv=[1] * 10, clean_scores=[-1] * 10),
)


def test_the_selective_table_has_a_row_per_operating_point():
    (table,) = selective_tables(matched(SELECTIVE), implausible_cells(summary(SELECTIVE)))
    assert table.name == ("digits", "linf", "selective")
    assert table.header[3:] == ["clean coverage", "clean error", "robust, ε = 0.1", "strict, ε = 0.1"]
    assert [row[:2] for row in table.rows] == [["d", "deployed (1)"], ["d", "5 %"], ["plain", "deployed (2)"]]
    deployed, stricter = line(table, "d", "deployed (1)"), line(table, "d", "5 %")
    assert deployed["clean coverage"] == stricter["clean coverage"] == "90.0 [59.6, 98.2]"
    assert deployed["robust, ε = 0.1"].startswith("0.0")
    # made against the deployed threshold, so no more than a bound for another
    assert stricter["robust, ε = 0.1"].startswith("≤ 90.0 [")
    assert stricter["strict, ε = 0.1"].startswith("≤ 0.0 [")
    assert table.notes == [
        "note: no threshold at 1 %: 20 calibration records are too few for a rate of 1 %",
        "note: no threshold at 1 %, 5 %: no calibration records",
    ]
    assert "upper bound" in latex(table)


def test_where_nothing_is_calibrated_there_is_no_selective_table():
    plain = SELECTIVE[SELECTIVE["defense"] == "plain"]
    assert not selective_tables(matched(plain), implausible_cells(summary(plain)))
    rejecting = SELECTIVE[SELECTIVE["attack"] != CALIBRATION]
    assert not selective_tables(matched(rejecting), implausible_cells(summary(rejecting)))


def test_an_implausible_figure_is_marked_in_every_table():
    some = [0] * 50
    weak = run(
        cell(CLEAN, labels=some, clean=[REJECT] + [0] * 49, clean_scores=[1] + [-1] * 49),
        cell(CALIBRATION, labels=[0] * 99, clean_scores=[-1] * 99),
        cell("pgd", (0.2,), some, clean=[REJECT] + [0] * 49, clean_scores=[1] + [-1] * 49),
        cell(CLEAN, labels=some, defense="plain"),
        cell("pgd", (0.1, 0.2), some, defense="plain", adv={0.1: [1] * 25 + [0] * 25, 0.2: [1] * 50}),
    )
    robustness, attacks = made(summary(weak))
    (selective,) = selective_tables(matched(weak, (0.01,)), implausible_cells(summary(weak)))
    assert selective.notes.pop() == "note: no threshold at 1 %: no calibration records"  # on the other defense
    for table, start in ((robustness, ("d",)), (attacks, ("d", "worst-case")), (selective, ("d", "deployed"))):
        assert line(table, *start)["robust, ε = 0.2"] == "98.0 [89.5, 99.6] §(1)"
        (note,) = table.notes
        assert note.startswith("§ the attacks look too weak: ") and ": d, robust accuracy 98.0 %" in note
        assert "50.0 % (plain in this run, ε = 0.1)" in note
    assert "§" not in line(attacks, "d", "pgd")["robust, ε = 0.2"]
    assert "§" not in line(robustness, "plain")["robust, ε = 0.2"]


def test_markdown_rows_have_as_many_cells_as_the_header():
    for table in (ROBUST, ATTACKS):
        rows = [text for text in markdown(table).splitlines() if text.startswith("|")]
        assert len(rows) == len(table.rows) + 2
        assert {text.replace("\\|", "").count("|") for text in rows} == {len(table.header) + 1}
    assert "- (1) " in markdown(ATTACKS)


def test_latex_is_booktabs_with_special_characters_escaped():
    text = latex(ATTACKS)
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert rule in text
    assert r"cw\_l2 & 10 & " in text
    assert r"failed: out of memory \textbar{} 100 \%" in text
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")].splitlines()[1:]
    assert all(row.count(" & ") == len(ATTACKS.header) - 1 for row in body)
    assert body[0].startswith("{[}odd]")


@pytest.mark.parametrize(
    ("plain", "escaped"),
    [("a_b", r"a\_b"), ("50 %", r"50 \%"), ("\\", r"\textbackslash{}"), ("ε → ∞", r"$\varepsilon$ $\to$ $\infty$")],
)
def test_latex_escapes(plain, escaped):
    assert latex_escaped(plain) == escaped


def test_the_screen_shows_both_tables_within_100_columns():
    console = Console(width=100, record=True, file=io.StringIO())
    print_report(Report(a_run(RECORDS)), console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 100
    for expected in ("[odd]", "worst case over attacks", "under each attack", "clean", "rej.", "failed", "skipped"):
        assert expected in text
    assert "(1) " in text


def test_defenses_are_ranked_by_robust_accuracy_and_a_shared_note_lists_their_cells():
    some = [0] * 50
    left = {"strong": 40, "weak": 10, "middle": 25}
    attacked = [
        cell("pgd", (0.2,), some, adv=[0] * n + [1] * (50 - n), defense=name, passes=(100.0, 100.0))
        for name, n in left.items()
    ]
    records = run(*(cell(CLEAN, labels=some, defense=name) for name in left), *attacked)
    (panel,) = panels(summary(records))
    assert panel.ranked == ["strong", "middle", "weak"]
    doubts = {("digits", name, "linf", 0.2, "robust_accuracy"): Doubt("why", "some") for name in left}
    robustness, _ = tables(summary(records), doubts)
    assert [row[0] for row in robustness.rows] == ["strong", "middle", "weak"]
    assert robustness.notes == ["§ the attacks look too weak: why: strong, some; middle, some; weak, some"]
