"""What a run or a report shows on the screen."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from itertools import groupby
from operator import itemgetter
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from manifold_bench.bench.records.schema import WORST_CASE
from manifold_bench.bench.report.contents import Report
from manifold_bench.bench.report.diagnosis import diagnosis_lines
from manifold_bench.bench.report.tables import Marks, Panel, Row, attacks_table, fooling_table, keyed, panels
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


def _screen_table(title: str, columns: Iterable[Column], groups: Iterable[list[list[str]]]) -> Table:
    """groups: rows that stand together."""
    look: dict[str, Any] = {"box": SIMPLE_HEAD, "show_edge": False, "pad_edge": False, "padding": (0, 1, 0, 0)}
    table = Table(*columns, title=title, title_justify="left", **look)
    for rows in groups:
        for row in rows:
            table.add_row(*map(Text, row))
        table.add_section()
    return table


def _fooling_on_screen(panel: Panel, marks: Marks) -> list[Table]:
    """Which share of noise images fools each defense under each attack."""
    fooled = fooling_table(panel, marks)
    columns = [Column(head, overflow="fold") for head in fooled.header]
    return [_screen_table(f"{fooled.title}, %", columns, [fooled.rows])]


def _robustness_on_screen(panel: Panel, marks: Marks) -> list[Table]:
    """Two tables: the worst case at each ε, and robust accuracy under each attack."""
    of_attacks = attacks_table(panel, marks, _short)
    rows = [[defense, attack, *cells] for defense, attack, _, *cells in of_attacks.rows if attack != WORST_CASE]
    heads = ["clean", "rej.", *(f"ε={eps_text(eps)}" for eps in sorted(panel.attacked["eps"].unique()))]
    columns = [Column(head, justify="right", overflow="fold") for head in heads]
    columns = [Column("defense", no_wrap=True), Column("attack", overflow="fold"), *columns]
    each = _screen_table(f"{of_attacks.title}, % of inputs", columns, _by_defense(rows))
    clean = keyed(panel.clean, "defense")
    worst = []
    for row in panel.worst.to_dict("records"):
        before = [marks.cell(clean.get(row["defense"]), figure, _short) for figure in ("accuracy", "rejection")]
        robust = [marks.cell(row, "robust_accuracy", _short), *_worst_figures(row)]
        worst.append([marks.defense(row["defense"]), eps_text(row["eps"]), str(row["n"]), *before, *robust])
    heads = ["ε", "n", "clean", "rej.", "robust", "95 %", "strict", "median"]
    columns = [Column("defense", overflow="fold"), *(Column(head, justify="right", no_wrap=True) for head in heads)]
    title = f"{panel.title}: worst case over attacks, % of inputs"
    return [_screen_table(title, columns, _by_defense(worst)), each]


def _by_defense(rows: list[list[str]]) -> list[list[list[str]]]:
    return [list(same) for _, same in groupby(rows, key=itemgetter(0))]


def _short(share: float, n: int) -> str:
    return percent(share)


def _worst_figures(row: Row) -> list[str]:
    """Interval, strict robust accuracy and median distance of a worst case on the screen."""
    if row["status"] in ("failed", "skipped"):
        return [NOT_RUN] * 3
    interval = "undefined" if row["n"] == 0 else f"{100 * row['robust_low']:.1f}–{100 * row['robust_high']:.1f}"
    return [interval, percent(row["strict_robust_accuracy"]), distance_text(row["median_distance"])]
