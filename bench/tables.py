"""Tables of a summary (bench.figures.summary): Markdown, LaTeX, and the screen."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bench.figures import FOOLING, wilson
from bench.records import CLEAN, WORST_CASE
from bench.selective import DEPLOYED, implausible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as ScreenTable

NORM_NAMES = {"linf": "L∞", "l2": "L2", "l0": "L0"}

NOT_RUN = "–"
"""Stands where the run has no such cell: neither 0 nor robust."""

LEGEND = (
    "Percent of inputs, with 95 % Wilson intervals. Robust: accepted and right when clean, never accepted and wrong "
    "under attack; strict: never rejected under attack either. † some outputs invalid; ‡ partial; § implausible; "
    f"{NOT_RUN} not in this run."
)

SEEDS_LEGEND = (
    " Robust over several seeds: mean ± standard deviation of one (the worst of them on each input, with its interval)."
)

SELECTIVE_LEGEND = (
    "Percent of inputs, with 95 % Wilson intervals. Rate: share of clean inputs that may be rejected, the threshold "
    "set on held-out clean inputs; deployed: the defense's own threshold. A defense that rejects nothing is given a "
    "threshold on its score, such as the largest softmax probability. Coverage: clean inputs accepted; error: clean "
    "inputs accepted and wrong; robust: accepted and right when clean, never accepted and wrong under attack; strict: "
    "never rejected under attack either. ≤: the adversarial inputs were made against the deployed threshold, so this "
    f"is an upper bound. ‡ partial; § implausible; {NOT_RUN} not in this run."
)

FOOLING_LEGEND = (
    "Percent of noise images with which the attack succeeded, with 95 % Wilson intervals: accepted, and with the class "
    "aimed at where it aims at one; of several aims, any. Worst-case: fooled by any attack. † some outputs invalid; ‡ "
    "partial."
)

SCREEN_LEGEND = (
    "clean, rej.: share of clean inputs accepted and right, and rejected; robust: right when clean and never accepted "
    "and wrong under attack; strict: never rejected under attack either; median: distance that beats half of them; "
    "§ implausible"
)


@dataclass(frozen=True)
class Table:
    """A table as text: `notes` are the numbered reasons its cells point to as (1), (2), …"""

    name: tuple[str, str, str]  # data set, norm and kind: parts of its file's name
    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str]
    legend: str = LEGEND


def flagged(table: Table, flags: Mapping[tuple[str, str], str]) -> Table:
    """The table with a mark at every row of a defense that the diagnosis fails, and a note that says why.

    flags: (data set, defense) → the checks it fails. Rows are those of the data set in the table's name, by the column
    `defense`; where a claim is about one, by the column `on`.
    """
    rows, notes = [], list(table.notes)
    for row in table.rows:
        for column, cell in enumerate(row):
            place = {"defense": f"{table.name[0]}, {cell}", "on": cell}.get(table.header[column], "")
            for (dataset, defense), reason in flags.items():
                named = f"{dataset}, {defense}"
                if place == named or place.startswith((f"{named} ×", f"{named},")):
                    note = flag_note(defense, reason)
                    notes += [note] if note not in notes else []
                    row = [*row[:column], f"{cell} ¶({notes.index(note) + 1})", *row[column + 1 :]]
        rows.append(row)
    return dataclasses.replace(table, rows=rows, notes=notes)


def flag_note(defense: str, reason: str) -> str:
    """Why the figures of a defense are not to be trusted."""
    return f"¶ {defense}: its figures are not to be trusted, the diagnosis fails: {reason} (docs/diagnosis.md)"


def eps_text(eps: float) -> str:
    """0.1 → 0.1, inf → ∞."""
    return "∞" if np.isinf(eps) else f"{eps:g}"


def norm_text(norm: str) -> str:
    """linf → L∞; a name without a symbol stays as it is."""
    return NORM_NAMES.get(norm, norm)


def percent(value: float) -> str:
    """0.8612 → 86.1; NaN → undefined."""
    return "undefined" if np.isnan(value) else f"{100 * value:.1f}"


def percent_interval(value: float, n: int) -> str:
    """The share of n inputs in percent with its Wilson interval: 86.1 [78.0, 91.5]."""
    if np.isnan(value):
        return "undefined"
    share = wilson(round(value * n), n)
    return f"{100 * share.value:.1f} [{100 * share.low:.1f}, {100 * share.high:.1f}]"


def distance_text(value: float) -> str:
    """1.2345 → 1.234, inf → ∞ (fewer than half the inputs were beaten)."""
    return "undefined" if np.isnan(value) else "∞" if np.isinf(value) else f"{value:.3f}"


@dataclass
class Marks:
    """The reasons a table's cells point to, numbered as they first appear."""

    attacked: pd.DataFrame
    checks: pd.DataFrame  # bench.selective.implausible
    notes: list[str] = field(default_factory=list)
    flags: Mapping[str, str] = field(default_factory=dict)  # defense → the checks of the diagnosis that it fails

    def number(self, note: str) -> str:
        if note not in self.notes:
            self.notes.append(note)
        return f"({self.notes.index(note) + 1})"

    def defense(self, name: str) -> str:
        """The defense's name, marked where the diagnosis fails it."""
        return f"{name} ¶{self.number(flag_note(name, self.flags[name]))}" if name in self.flags else name

    def cell(self, row: pd.Series | None, figure: str, text: Callable[[float, int], str] = percent_interval) -> str:
        """What stands in the table for a figure of a summary row: its text with marks, or why there is none.

        text: the share and its number of inputs → text.
        """
        if row is None:
            return NOT_RUN
        status, reason, attack = row["status"], row["reason"], row["attack"]
        if status in ("failed", "skipped"):
            return f"{status} {self.number(f'{status}: {reason}')}"
        shown = text(row[figure], row["n"])
        if figure == "robust_accuracy" and row.get("seeds", 1) > 1:
            shown = f"{percent(row['robust_mean'])} ± {percent(row['robust_sd'])} ({shown})"
        who = f"{row['defense']} × {attack}"
        if row["valid"] < 1:
            same = self.attacked[(self.attacked["defense"] == row["defense"]) & (self.attacked["attack"] == attack)]
            share = f"{100 * (1 - same['valid'].min()):.1f} %"
            shown += " †" + self.number(f"† {who}: up to {share} of the outputs are invalid and count as no success")
        if status == "partial":
            shown += " ‡" + self.number(f"‡ partial: {who}: {reason}")
        elif reason and attack != WORST_CASE:
            shown += " " + self.number(f"note: {who}: {reason}")
        if attack == WORST_CASE and row.get("rate", DEPLOYED) == DEPLOYED:
            same_cell = {key: row[key] for key in ("dataset", "defense", "norm", "eps")}
            check = find(self.checks, figure=figure, implausible=True, **same_cell)
            if check is not None:
                evidence = f"{row['defense']}: {check['evidence']}"
                shown += " §" + self.number(f"§ implausible, strengthen the attack: {evidence}")
        return shown


def panels(summary: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame, pd.DataFrame]]:
    """Data set, norm, the clean rows of that data set, and the attacked rows: one table or plot each."""
    for dataset, rows in summary.groupby("dataset"):
        clean = rows[rows["attack"] == CLEAN]
        for norm, attacked in rows[rows["attack"] != CLEAN].groupby("norm"):
            yield str(dataset), str(norm), clean, attacked


def find(rows: pd.DataFrame, **where: object) -> pd.Series | None:
    """The one row with these values, or None where there is none."""
    for column, value in where.items():
        rows = rows[rows[column] == value]
    return rows.iloc[0] if len(rows) else None


def tables(summary: pd.DataFrame) -> list[Table]:
    """Two tables per data set and norm: what the defenses are worth, and what each attack does to each.

    In norm "fooling" one: how much noise each defense accepts.
    """
    made = []
    checks = implausible(summary)
    for dataset, norm, clean, attacked in panels(summary):
        kinds = (_fooling,) if norm == FOOLING else (_robustness, _attacks)
        made += [kind(dataset, norm, clean, attacked, Marks(attacked, checks)) for kind in kinds]
    return made


def _robustness(dataset: str, norm: str, clean: pd.DataFrame, attacked: pd.DataFrame, marks: Marks) -> Table:
    """Rows: defenses. Columns: clean accuracy and rejection, then the worst case over attacks at each ε."""
    worst = attacked[attacked["attack"] == WORST_CASE]
    ladder = sorted(worst["eps"].unique())
    rows = []
    for defense in _defenses(clean, attacked):
        row = [defense, *_clean_cells(clean, defense, marks)]
        for eps in ladder:
            at = find(worst, defense=defense, eps=eps)
            row += [marks.cell(at, "robust_accuracy"), marks.cell(at, "strict_robust_accuracy")]
        rows.append(row)
    header = ["defense", "n", "clean accuracy", "clean rejection", *_per_strength(ladder)]
    title = f"{dataset}, {norm_text(norm)}: robust accuracy, worst case over attacks"
    return Table((dataset, norm, "robustness"), title, header, rows, marks.notes, robust_legend(attacked))


def _per_strength(ladder: list[float]) -> list[str]:
    return [f"{figure}, ε = {eps_text(eps)}" for eps in ladder for figure in ("robust", "strict")]


def _attacks(dataset: str, norm: str, clean: pd.DataFrame, attacked: pd.DataFrame, marks: Marks) -> Table:
    """Rows: defense and attack. Columns: clean accuracy and rejection, then robust accuracy at each ε."""
    ladder = sorted(attacked["eps"].unique())
    rows = []
    for defense, attack in _pairs(clean, attacked):
        at = [find(attacked, defense=defense, attack=attack, eps=eps) for eps in ladder]
        row = [defense, attack, *_clean_cells(clean, defense, marks)]
        rows.append(row + [marks.cell(one, "robust_accuracy") for one in at])
    header = ["defense", "attack", "n", "clean accuracy", "clean rejection"]
    header += [f"robust, ε = {eps_text(eps)}" for eps in ladder]
    title = f"{dataset}, {norm_text(norm)}: robust accuracy under each attack"
    return Table((dataset, norm, "attacks"), title, header, rows, marks.notes, robust_legend(attacked))


def robust_legend(attacked: pd.DataFrame) -> str:
    """What the figures of these summary rows mean."""
    return LEGEND + SEEDS_LEGEND if (attacked["seeds"] > 1).any() else LEGEND


def _fooling(dataset: str, norm: str, clean: pd.DataFrame, attacked: pd.DataFrame, marks: Marks) -> Table:
    """Rows: defense and attack. Columns: noise images, and the share of them that fooled it."""
    rows = []
    for defense, attack in _pairs(clean, attacked):
        at = find(attacked, defense=defense, attack=attack)
        rows.append([defense, attack, NOT_RUN if at is None else str(at["n"]), marks.cell(at, "error")])
    header = ["defense", "attack", "noise images", "accepted"]
    title = f"{dataset}, fooling: share of noise images accepted"
    return Table((dataset, norm, "accepted"), title, header, rows, marks.notes, FOOLING_LEGEND)


def selective_tables(matched: pd.DataFrame, summary: pd.DataFrame) -> list[Table]:
    """A table per data set and norm: every defense at its own threshold and at the same false-rejection rates.

    matched: bench.selective.matched; summary: bench.figures.summary, for what is implausible. A data set in which
    nothing is rejected and nothing is calibrated has no table.
    """
    checks = implausible(summary)
    made = []
    for dataset, norm, clean, attacked in panels(matched):
        calibrated = (clean["rate"] != DEPLOYED) & (clean["status"] != "skipped")
        whole = matched[matched["dataset"] == dataset]
        if calibrated.any() or (whole["coverage"] < 1).any():
            made.append(_selective(dataset, norm, clean, attacked, Marks(attacked, checks)))
    return made


def _selective(dataset: str, norm: str, clean: pd.DataFrame, attacked: pd.DataFrame, marks: Marks) -> Table:
    """Rows: defense and operating point. Columns: clean coverage and error, then the worst case at each ε."""
    ladder = sorted(attacked["eps"].unique())
    rows = []
    for defense, points in clean.groupby("defense"):
        without = points[(points["status"] == "skipped") & (points["rate"] != DEPLOYED)]
        for _, point in points.drop(without.index).iterrows():
            rate = str(point["rate"])
            text = percent_interval if rate == DEPLOYED else _at_most
            if rate == DEPLOYED and len(without):
                reasons = ", ".join(without["reason"].unique())
                rate += " " + marks.number(f"note: no threshold at {', '.join(without['rate'])}: {reasons}")
            row = [str(defense), rate, str(point["n"]), marks.cell(point, "coverage"), marks.cell(point, "error")]
            for eps in ladder:
                at = find(attacked, defense=defense, rate=point["rate"], eps=eps)
                row += [marks.cell(at, figure, text) for figure in ("robust_accuracy", "strict_robust_accuracy")]
            rows.append(row)
    header = ["defense", "rate", "n", "clean coverage", "clean error", *_per_strength(ladder)]
    title = f"{dataset}, {norm_text(norm)}: selective classification, worst case over attacks"
    return Table((dataset, norm, "selective"), title, header, rows, marks.notes, SELECTIVE_LEGEND)


def _at_most(value: float, n: int) -> str:
    return f"≤ {percent_interval(value, n)}"


def _defenses(clean: pd.DataFrame, attacked: pd.DataFrame) -> list[str]:
    return sorted({*clean["defense"], *attacked["defense"]})


def _pairs(clean: pd.DataFrame, attacked: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Every defense with every attack on it, in the order of the summary."""
    for defense in _defenses(clean, attacked):
        for attack in attacked.loc[attacked["defense"] == defense, "attack"].unique():
            yield defense, attack


def _clean_cells(clean: pd.DataFrame, defense: str, marks: Marks) -> list[str]:
    """Number of inputs, clean accuracy and clean rejection of a defense."""
    row = find(clean, defense=defense)
    if row is None:
        return [NOT_RUN] * 3
    return [str(row["n"]), marks.cell(row, "accuracy"), marks.cell(row, "rejection")]


def markdown(table: Table) -> str:
    """The table as GitHub Markdown with its title, notes and legend."""
    text = [f"### {table.title}", "", *markdown_grid(table.header, table.rows), "", table.legend, ""]
    text += [f"- ({i}) {' '.join(note.split())}" for i, note in enumerate(table.notes, 1)]
    return "\n".join(text).rstrip() + "\n"


def markdown_grid(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a GitHub Markdown table. What would end a cell or open a tag stands for itself."""

    def line(cells: Sequence[str]) -> str:
        plain = (" ".join(cell.split()).replace("<", "&lt;").replace("|", "\\|") for cell in cells)
        return f"| {' | '.join(plain)} |"

    return [line(header), line(["---"] * len(header)), *map(line, rows)]


LATEX_ESCAPES = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # after \\ a bare bracket would be read as an optional argument
    "ε": r"$\varepsilon$",
    "∞": r"$\infty$",
    "×": r"$\times$",
    "≤": r"$\leq$",
    "±": r"$\pm$",
    "→": r"$\to$",
    "†": r"\dag{}",
    "§": r"\S{}",
    "‡": r"\ddag{}",
    "¶": r"\P{}",
    "–": "--",
}


def latex_escaped(text: str) -> str:
    """Text in which no character means anything to LaTeX."""
    return "".join(LATEX_ESCAPES.get(character, character) for character in " ".join(text.split()))


def latex(table: Table) -> str:
    r"""The table as a LaTeX float with booktabs rules; needs \usepackage{booktabs}."""

    def line(cells: list[str]) -> str:
        return " & ".join(latex_escaped(cell) for cell in cells) + r" \\"

    notes = [f"({i}) {note}" for i, note in enumerate(table.notes, 1)]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering\footnotesize\setlength{\tabcolsep}{4pt}",
            rf"\caption{{{latex_escaped(table.title)}}}",
            rf"\begin{{tabular}}{{{'l' * len(table.header)}}}",
            r"\toprule",
            line(table.header),
            r"\midrule",
            *(line(row) for row in table.rows),
            r"\bottomrule",
            r"\end{tabular}",
            *(rf"\par {latex_escaped(text)}" for text in [table.legend, *notes]),
            r"\end{table}",
            "",
        ]
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

    fooled = _fooling(dataset, norm, clean, attacked, marks)
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
    for defense in _defenses(clean, attacked):
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
