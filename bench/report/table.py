"""A table and its forms in Markdown and LaTeX."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from manifold_bench.bench.text import NOT_RUN, printable

LEGEND = (
    "Percent of inputs, with 95 % Wilson intervals. Robust: accepted and right when clean, never accepted and wrong "
    "under attack; strict: never rejected under attack either. † some outputs invalid; ‡ partial; § implausible; "
    f"‖ the attack stopped trying; "
    f"{NOT_RUN} not in this run."
)


class Notes(list[str]):
    """The reasons that cells point to by number, in the order in which they first appear."""

    def number(self, note: str) -> str:
        if note not in self:
            self.append(note)
        return f"({self.index(note) + 1})"


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
    rows, notes = [], Notes(table.notes)
    for row in table.rows:
        for column, cell in enumerate(row):
            place = {"defense": f"{table.name[0]}, {cell}", "on": cell}.get(table.header[column], "")
            for (dataset, defense), reason in flags.items():
                named = f"{dataset}, {defense}"
                if place == named or place.startswith((f"{named} ×", f"{named},")):
                    mark = f"{cell} ¶{notes.number(flag_note(defense, reason))}"
                    row = [*row[:column], mark, *row[column + 1 :]]
        rows.append(row)
    return dataclasses.replace(table, rows=rows, notes=notes)


def flag_note(defense: str, reason: str) -> str:
    """Why the figures of a defense are not to be trusted."""
    return f"¶ {defense}: its figures are not to be trusted, the diagnosis fails: {reason} (docs/diagnosis.md)"


def csv(frame: pd.DataFrame) -> str:
    """A frame as CSV in which no text is a formula to a spreadsheet: those that begin like one get an apostrophe."""
    texts = frame.select_dtypes(exclude="number").columns
    safe = {name: frame[name].map(lambda v: f"'{v}" if str(v).startswith(FORMULAS) else v) for name in texts}
    return str(frame.assign(**safe).to_csv(index=False))


FORMULAS = ("=", "+", "-", "@", "\t", "\r")


def markdown(table: Table) -> str:
    """The table as GitHub Markdown with its title, notes and legend."""
    text = [f"### {markdown_text(table.title)}", "", *markdown_grid(table.header, table.rows), "", table.legend, ""]
    text += [f"- ({i}) {markdown_text(note)}" for i, note in enumerate(table.notes, 1)]
    return "\n".join(text).rstrip() + "\n"


def markdown_grid(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a GitHub Markdown table."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(map(markdown_text, cells))} |"

    return [line(header), line(["---"] * len(header)), *map(line, rows)]


def markdown_text(text: str) -> str:
    """Text on one line in which nothing opens a tag, a link or code, or ends a cell of a table."""
    text = printable(text.replace("\\", "\\\\"))
    for special, plain in {"<": "&lt;", "|": "\\|", "](": "]\\(", "][": "]\\[", "]:": "]\\:", "`": "\\`"}.items():
        text = text.replace(special, plain)
    return text


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
    return "".join(LATEX_ESCAPES.get(character, character) for character in printable(text))


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
