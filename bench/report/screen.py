"""Prints the tables, the diagnosis and the assessments of a report on the screen."""

from __future__ import annotations

import textwrap
from itertools import groupby
from operator import itemgetter

from rich.console import Console
from rich.text import Text

from manifold_bench.bench.records.schema import WORST_CASE, Row
from manifold_bench.bench.report.assessment import Assessment
from manifold_bench.bench.report.contents import Report
from manifold_bench.bench.report.diagnosis import diagnosis_lines
from manifold_bench.bench.report.tables import Marks, Panel, attacks_table, fooling_table, panels, rows_by
from manifold_bench.bench.terminal import Line, print_grid, print_text
from manifold_bench.bench.text import NOT_RUN, distance_text, eps_text, percent

SCREEN_LEGEND = (
    "clean: clean inputs accepted and right; rej.: clean inputs rejected; robust: accepted and right when clean, and "
    "never accepted and wrong under attack; strict: robust, and never rejected under attack; median: distance at which "
    "half of the inputs are beaten (of attacks within a fixed ε, one of these); a number in parentheses: see the note "
    "with that number; § attacks look too weak; ‖ the attack stopped trying"
)


def print_report(report: Report, console: Console) -> None:
    """Print the tables, the diagnosis, the comparisons of systems named on the command line, and the assessments."""
    for panel in panels(report.summary):
        flags = {name: why for (there, name), why in report.flags.items() if there == panel.dataset}
        marks = Marks(panel.attacked, report.doubts, flags)
        (_print_fooling if panel.is_noise else _print_robustness)(panel, marks, console)
        for i, note in enumerate(marks.notes, 1):
            print_text(console, f"({i}) {textwrap.shorten(note, 400, placeholder=' …')}")
        console.print()
    print_text(console, SCREEN_LEGEND)
    for line in diagnosis_lines(report.diagnosis):
        print_text(console, line)
    for comparison in report.comparisons:
        print_text(console, f"{comparison.title}:")
        for line in comparison.sentences:
            print_text(console, line, indent="  ")
        if comparison.about:
            print_text(console, comparison.about, indent="  ")
        console.print()
    for assessment in report.assessments:
        print_assessment(assessment, console)


def print_assessment(assessment: Assessment, console: Console) -> None:
    """Print an assessment within the width of the console; its command stays on one line, so that it can be copied."""
    print_text(console, assessment.title, style="bold")
    for sentence in assessment.sentences:
        print_text(console, sentence, indent="  ")
    if assessment.command:
        console.print(Text(f"  {assessment.command}"), soft_wrap=True)
    console.print()


def _print_fooling(panel: Panel, marks: Marks, console: Console) -> None:
    """Print the share of noise images that each defense accepts under each attack."""
    fooled = fooling_table(panel, marks)
    lines = [Line(f"{defense} × {attack}", figures) for defense, attack, *figures in fooled.rows]
    print_grid(console, f"{fooled.title}, %", ["defense × attack", *fooled.header[2:]], lines)


def _print_robustness(panel: Panel, marks: Marks, console: Console) -> None:
    """Print two tables: the worst case at each ε, and robust accuracy under each attack."""
    clean = rows_by(panel.clean, "defense")
    worst: list[Line] = []
    at = rows_by(panel.worst, "defense", "eps")
    sizes = sorted(panel.worst["eps"].unique())
    for row in filter(None, (at.get((defense, eps)) for defense in panel.ranked for eps in sizes)):
        before = [marks.cell(clean.get(row["defense"]), figure, _short) for figure in ("accuracy", "rejection")]
        robust = [marks.cell(row, "robust_accuracy", _short), *_worst_figures(row)]
        if worst and worst[-1].label.rpartition(" ")[0] != marks.defense(row["defense"]):
            worst.append(Line())
        label = f"{marks.defense(row['defense'])} ε={eps_text(row['eps'])}"
        worst.append(Line(label, [str(row["n"]), *before, *robust]))
    header = ["defense", "n", "clean", "rej.", "robust", "95 %", "strict", "median"]
    print_grid(console, f"{panel.title}: worst case over attacks, % of inputs", header, worst)
    of_attacks = attacks_table(panel, marks, _short)
    each: list[Line] = []
    for defense, rows in groupby(of_attacks.rows, key=itemgetter(0)):
        each += [Line(), Line(defense)] if each else [Line(defense)]
        each += [
            Line(f"  {attack}", list(map(_number_alone, cells)))
            for _, attack, _, _, _, *cells in rows
            if attack != WORST_CASE
        ]
    header = ["attack", *(f"ε={eps_text(eps)}" for eps in sorted(panel.attacked["eps"].unique()))]
    print_grid(console, f"{of_attacks.title}, % of inputs", header, each)


def _number_alone(cell: str) -> str:
    """Shorten `skipped (2)` to `(2)`, the number of the note with the reason; other texts stay as they are."""
    return cell.removeprefix("skipped ")


def _short(share: float, n: int) -> str:
    return percent(share)


def _worst_figures(row: Row) -> list[str]:
    """Return interval, strict robust accuracy and median distance of a worst case as texts for the screen."""
    if row["status"] in ("failed", "skipped"):
        return [NOT_RUN] * 3
    interval = "undefined" if row["n"] == 0 else f"{100 * row['robust_low']:.1f}–{100 * row['robust_high']:.1f}"
    return [interval, percent(row["strict_robust_accuracy"]), distance_text(row["median_distance"])]
