"""The tables that a run shows on the screen."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from manifold_bench.bench.metrics.robustness import FOOLING
from manifold_bench.bench.metrics.selective import implausible
from manifold_bench.bench.records.schema import WORST_CASE
from manifold_bench.bench.report.tables import Marks, defenses_of, find, fooling_table, panels
from manifold_bench.bench.text import NOT_RUN, distance_text, eps_text, norm_text, percent

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as ScreenTable


SCREEN_LEGEND = (
    "clean, rej.: share of clean inputs accepted and right, and rejected; robust: right when clean and never accepted "
    "and wrong under attack; strict: never rejected under attack either; median: distance that beats half of them; "
    "§ implausible"
)


def print_tables(summary: pd.DataFrame, console: Console, flags: Mapping[tuple[str, str], str] = {}) -> None:
    """The tables per data set and norm on the screen, within 100 columns: worst cases, and every attack.

    flags: as `flagged` takes them.
    """
    from rich.text import Text

    checks = implausible(summary)
    for dataset, norm, clean, attacked in panels(summary):
        marks = Marks(attacked, checks, flags={name: why for (there, name), why in flags.items() if there == dataset})
        make = _fooling_on_screen if norm == FOOLING else _robustness_on_screen
        for table in make(dataset, norm, clean, attacked, marks):
            console.print(table)
            console.print()
        for i, note in enumerate(marks.notes, 1):
            short = textwrap.shorten(note, 300, placeholder=" …")
            console.print(Text(f"({i}) {short}"))
        console.print()
    console.print(SCREEN_LEGEND)


def _screen_table(title: str) -> ScreenTable:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as ScreenTable

    narrow: dict[str, Any] = {"box": SIMPLE_HEAD, "show_edge": False, "pad_edge": False, "padding": (0, 1, 0, 0)}
    return ScreenTable(title=title, title_justify="left", **narrow)


def _fooling_on_screen(
    dataset: str, norm: str, clean: pd.DataFrame, attacked: pd.DataFrame, marks: Marks
) -> list[ScreenTable]:
    """Which share of noise images fools each defense under each attack."""
    from rich.text import Text

    fooled = fooling_table(dataset, norm, clean, attacked, marks)
    table = _screen_table(f"{fooled.title}, %")
    for column in fooled.header:
        table.add_column(column, overflow="fold")
    for row in fooled.rows:
        table.add_row(*map(Text, (marks.defense(row[0]), *row[1:])))
    return [table]


def _robustness_on_screen(
    dataset: str, norm: str, clean: pd.DataFrame, attacked: pd.DataFrame, marks: Marks
) -> list[ScreenTable]:
    """Two tables: the worst case at each ε, and robust accuracy under each attack."""
    from rich.text import Text

    def short(share: float, n: int) -> str:
        return percent(share)

    where = f"{dataset}, {norm_text(norm)}"
    worst = _screen_table(f"{where}: worst case over attacks, % of inputs")
    each = _screen_table(f"{where}: robust accuracy under each attack, % of inputs")
    ladder = sorted(attacked["eps"].unique())
    worst.add_column("defense", overflow="fold")
    for column in ("ε", "n", "clean", "rej.", "robust", "95 %", "strict", "median"):
        worst.add_column(column, justify="right", no_wrap=True)
    each.add_column("defense", no_wrap=True)
    each.add_column("attack", overflow="fold")
    for column in ("clean", "rej.", *(f"ε={eps_text(eps)}" for eps in ladder)):
        each.add_column(column, justify="right", overflow="fold")
    for defense in defenses_of(clean, attacked):
        unattacked = find(clean, defense=defense)
        before = [marks.cell(unattacked, figure, short) for figure in ("accuracy", "rejection")]
        for attack, cells in attacked[attacked["defense"] == defense].groupby("attack", sort=False):
            at = [find(cells, eps=eps) for eps in ladder]
            robust = [marks.cell(row, "robust_accuracy", short) for row in at]
            if attack != WORST_CASE:
                each.add_row(*map(Text, (marks.defense(defense), str(attack), *before, *robust)))
                continue
            for row, text in zip(at, robust, strict=True):
                if row is not None:
                    figures = _worst_figures(row)
                    line = (marks.defense(defense), eps_text(row["eps"]), str(row["n"]), *before, text, *figures)
                    worst.add_row(*map(Text, line))
        worst.add_section()
        each.add_section()
    return [worst, each]


def _worst_figures(row: pd.Series) -> list[str]:
    """Interval, strict robust accuracy and median distance of a worst case on the screen."""
    if row["status"] in ("failed", "skipped"):
        return [NOT_RUN] * 3
    interval = "undefined" if row["n"] == 0 else f"{100 * row['robust_low']:.1f}–{100 * row['robust_high']:.1f}"
    return [interval, percent(row["strict_robust_accuracy"]), distance_text(row["median_distance"])]
