"""A table of texts, and its forms in Markdown, LaTeX and CSV."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from manifold_bench.bench.text import NOT_RUN, printable

LEGEND = (
    "Percent of inputs, with 95 % Wilson intervals. Robust: accepted and right when clean, and never accepted and "
    "wrong under attack; strict: robust, and never rejected under attack. † some outputs invalid; ‡ partial; § "
    f"attacks look too weak; ‖ the attack stopped trying; {NOT_RUN} not in this run."
)


class Notes(list[str]):
    """The numbered notes below a table, in the order in which its cells first refer to them."""

    def number(self, note: str) -> str:
        """Return the number of a note in parentheses, `(1)`; a new note is appended."""
        if note not in self:
            self.append(note)
        return f"({self.index(note) + 1})"

    def number_shared(self, reason: str, cell: str) -> str:
        """Return the number of the one note that gives a reason and lists every cell that it holds for."""
        place = next((i for i, note in enumerate(self) if note.startswith(f"{reason}: ")), len(self))
        if place == len(self):
            self.append(f"{reason}: {cell}")
        elif cell not in self[place].removeprefix(f"{reason}: ").split("; "):
            self[place] += f"; {cell}"
        return f"({place + 1})"


@dataclass(frozen=True)
class Table:
    """A table of texts. notes: the notes that its cells refer to as (1), (2), …; legend: meaning of figures and marks.

    name: data set, norm and kind of the table, of which the name of its file is made.
    """

    name: tuple[str, str, str]
    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str]
    legend: str = LEGEND


def flagged(table: Table, flags: Mapping[tuple[str, str], str]) -> Table:
    """Return the table with the mark ¶ at every defense that fails the diagnosis, and a note on what was found.

    flags: (data set, defense) → what the failed checks have found. The defense is in the column `defense`, with the
    data set in the table's name, or in the column `on` of a table of claims, which names both.
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
    """Return the note on a defense that fails the diagnosis. reason: what the failed checks have found."""
    return f"¶ {defense}: do not trust its figures, because the diagnosis found that {reason} (docs/diagnosis.md)"


def csv(frame: pd.DataFrame) -> str:
    """Return a frame as CSV. A text that a spreadsheet would take for a formula gets an apostrophe in front."""
    texts = frame.select_dtypes(exclude="number").columns
    safe = {name: frame[name].map(lambda v: f"'{v}" if str(v).startswith(FORMULAS) else v) for name in texts}
    return str(frame.assign(**safe).to_csv(index=False))


FORMULAS = ("=", "+", "-", "@", "\t", "\r")


def markdown(table: Table) -> str:
    """Return a table as GitHub Markdown, with its title, legend and notes."""
    text = [f"### {markdown_text(table.title)}", "", *markdown_grid(table.header, table.rows), "", table.legend, ""]
    text += [f"- ({i}) {markdown_text(note)}" for i, note in enumerate(table.notes, 1)]
    return "\n".join(text).rstrip() + "\n"


def markdown_grid(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a GitHub Markdown table."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(map(markdown_text, cells))} |"

    return [line(header), line(["---"] * len(header)), *map(line, rows)]


def markdown_text(text: str) -> str:
    """Return a text on one line, escaped so that Markdown shows it as it is, also within a cell of a table."""
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
    """Return a text on one line, escaped so that LaTeX prints it as it is."""
    return "".join(LATEX_ESCAPES.get(character, character) for character in printable(text))


def latex(table: Table) -> str:
    r"""Return a table as a LaTeX float with booktabs rules; needs \usepackage{booktabs}."""

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
