"""What a run or a report shows on the screen."""

from __future__ import annotations

import textwrap
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from manifold_bench.bench.records.schema import WORST_CASE
from manifold_bench.bench.report.contents import Report
from manifold_bench.bench.report.diagnosis import diagnosis_lines
from manifold_bench.bench.report.tables import Marks, Panel, Row, fooling_table, keyed, panels
from manifold_bench.bench.text import NOT_RUN, distance_text, eps_text, percent

SCREEN_LEGEND = (
    "clean, rej.: share of clean inputs accepted and right, and rejected; robust: right when clean and never accepted "
    "and wrong under attack; strict: never rejected under attack either; median: distance that beats half of them; "
    "§ implausible; ‖ the attack stopped trying"
)


def print_report(report: Report, console: Console) -> None:
    """The tables, the diagnosis, and how the systems named on the command line compare."""
    _print_tables(report, console)
    for line in diagnosis_lines(report.diagnosis):
        console.print(line, markup=False, highlight=False)
    for name, lines in report.rankings.items():
        console.print(f"How {name} compares:", markup=False, highlight=False)
        for line in lines or ["there is nothing in this run to compare it with"]:
            console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
        console.print()


def _print_tables(report: Report, console: Console) -> None:
    """The tables per data set and norm, within 100 columns: worst cases, and every attack."""
    for panel in panels(report.summary):
        flags = {name: why for (there, name), why in report.flags.items() if there == panel.dataset}
        marks = Marks(panel.attacked, report.implausible, flags)
        make = _fooling_on_screen if panel.is_noise else _robustness_on_screen
        for table in make(panel, marks):
            console.print(table)
            console.print()
        for i, note in enumerate(marks.notes, 1):
            short = textwrap.shorten(note, 300, placeholder=" …")
            console.print(f"({i}) {short}", markup=False, highlight=False)
        console.print()
    console.print(SCREEN_LEGEND)


def _screen_table(title: str) -> Table:
    narrow: dict[str, Any] = {"box": SIMPLE_HEAD, "show_edge": False, "pad_edge": False, "padding": (0, 1, 0, 0)}
    return Table(title=title, title_justify="left", **narrow)


def _fooling_on_screen(panel: Panel, marks: Marks) -> list[Table]:
    """Which share of noise images fools each defense under each attack."""
    fooled = fooling_table(panel, marks)
    table = _screen_table(f"{fooled.title}, %")
    for column in fooled.header:
        table.add_column(column, overflow="fold")
    for row in fooled.rows:
        table.add_row(*map(Text, (marks.defense(row[0]), *row[1:])))
    return [table]


def _robustness_on_screen(panel: Panel, marks: Marks) -> list[Table]:
    """Two tables: the worst case at each ε, and robust accuracy under each attack."""

    def short(share: float, n: int) -> str:
        return percent(share)

    attacked = panel.attacked
    worst = _screen_table(f"{panel.title}: worst case over attacks, % of inputs")
    each = _screen_table(f"{panel.title}: robust accuracy under each attack, % of inputs")
    ladder = sorted(attacked["eps"].unique())
    worst.add_column("defense", overflow="fold")
    for column in ("ε", "n", "clean", "rej.", "robust", "95 %", "strict", "median"):
        worst.add_column(column, justify="right", no_wrap=True)
    each.add_column("defense", no_wrap=True)
    each.add_column("attack", overflow="fold")
    for column in ("clean", "rej.", *(f"ε={eps_text(eps)}" for eps in ladder)):
        each.add_column(column, justify="right", overflow="fold")
    clean, groups = keyed(panel.clean, "defense"), dict(iter(attacked.groupby("defense")))
    for defense in panel.defenses:
        before = [marks.cell(clean.get(defense), figure, short) for figure in ("accuracy", "rejection")]
        cells = groups.get(defense, attacked[:0])
        at = keyed(cells, "attack", "eps")
        for attack in cells["attack"].unique():
            row = [at.get((attack, eps)) for eps in ladder]
            robust = [marks.cell(one, "robust_accuracy", short) for one in row]
            if attack != WORST_CASE:
                each.add_row(*map(Text, (marks.defense(defense), str(attack), *before, *robust)))
                continue
            for one, text in zip(row, robust, strict=True):
                if one is not None:
                    figures = _worst_figures(one)
                    line = (marks.defense(defense), eps_text(one["eps"]), str(one["n"]), *before, text, *figures)
                    worst.add_row(*map(Text, line))
        worst.add_section()
        each.add_section()
    return [worst, each]


def _worst_figures(row: Row) -> list[str]:
    """Interval, strict robust accuracy and median distance of a worst case on the screen."""
    if row["status"] in ("failed", "skipped"):
        return [NOT_RUN] * 3
    interval = "undefined" if row["n"] == 0 else f"{100 * row['robust_low']:.1f}–{100 * row['robust_high']:.1f}"
    return [interval, percent(row["strict_robust_accuracy"]), distance_text(row["median_distance"])]
