"""Tables say what a figure stands on and never pass what is missing for a number."""

import io

import pytest
from handmade import REJECT, cell, run
from rich.console import Console

from bench.figures import summary
from bench.records import CLEAN
from bench.tables import Table, latex, latex_escaped, markdown, print_tables, tables

LABELS = [0] * 10
BEATEN = [1] * 4 + [REJECT] + [0] * 5
FIGURES = summary(
    run(
        cell(CLEAN, labels=LABELS, clean=[0] * 9 + [REJECT], defense="plain"),
        cell("pgd", (0.1, 0.2), LABELS, adv=BEATEN, defense="plain"),
        cell("cw_l2", (0.1, 0.2), LABELS, defense="plain", status="failed", reason="out of\nmemory | 100 %"),
        cell("noise", (0.1,), LABELS, adv=[1] * 10, invalid=[0, 1], defense="plain"),
        cell(CLEAN, labels=LABELS, defense="[odd]"),
        cell("pgd", (0.1, 0.2), LABELS, defense="[odd]", status="skipped", reason="it has no gradient"),
    )
)
ROBUST, ATTACKS = tables(FIGURES)


def line(table: Table, *start: str) -> dict[str, str]:
    """The row that starts like this, by column."""
    (found,) = (row for row in table.rows if tuple(row[: len(start)]) == start)
    return dict(zip(table.header, found, strict=True))


def test_a_robust_figure_has_its_interval_and_the_clean_rejection_beside_it():
    row = line(ATTACKS, "plain", "pgd")
    assert row["n"] == "10"
    assert row["robust, ε = 0.1"] == "60.0 [31.3, 83.2]"
    assert row["clean accuracy"] == "90.0 [59.6, 98.2]"
    assert row["clean rejection"] == "10.0 [1.8, 40.4]"


def test_worst_case_table_has_robust_and_strict_per_strength():
    assert ROBUST.header == [
        "defense", "n", "clean accuracy", "clean rejection",
        "robust, ε = 0.1", "strict, ε = 0.1", "robust, ε = 0.2", "strict, ε = 0.2",
    ]  # fmt: skip
    assert [row[0] for row in ROBUST.rows] == ["[odd]", "plain"]
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
    assert any("‡ partial" in note and "over noise, pgd; failed: cw_l2" in note for note in ROBUST.notes)


def test_invalid_outputs_are_marked_and_counted():
    row = line(ATTACKS, "plain", "noise")
    assert "†" in row["robust, ε = 0.1"]
    assert any("plain × noise: up to 20.0 % of the outputs are invalid" in note for note in ATTACKS.notes)


def test_what_was_not_run_is_no_zero():
    assert line(ATTACKS, "plain", "noise")["robust, ε = 0.2"] == "–"


def test_a_remark_on_the_clean_cell_is_shown():
    remarked = cell(CLEAN, labels=LABELS, reason="its answers depend on the batch")
    table = tables(summary(run(remarked, cell(labels=LABELS))))[0]
    assert line(table, "d")["clean accuracy"].endswith(" (1)")
    assert table.notes == ["note: d × clean: its answers depend on the batch"]


def test_a_defense_without_a_clean_cell_has_no_clean_figures():
    assert line(tables(summary(cell(labels=LABELS)))[0], "d")["clean accuracy"] == "–"


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
    print_tables(FIGURES, console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 100
    for expected in ("[odd]", "worst case over attacks", "under each attack", "clean", "rej.", "failed", "skipped"):
        assert expected in text
    assert "(1) " in text
