"""The results of a run as the Python interface and notebooks show them."""

from __future__ import annotations

import os
import shutil
import textwrap
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from manifold_bench.bench.diagnosis.diagnose import Diagnosis, diagnose
from manifold_bench.bench.errors import InputError, system_error
from manifold_bench.bench.metrics.ranking import against_others
from manifold_bench.bench.metrics.robustness import FOOLING
from manifold_bench.bench.metrics.summary import strongest, summary_of
from manifold_bench.bench.records import results as records
from manifold_bench.bench.records.images import AdversarialImages, adversarial
from manifold_bench.bench.records.schema import CLEAN, WORST_CASE
from manifold_bench.bench.report.assessment import assessments, budget_of, left_out_of
from manifold_bench.bench.report.diagnosis import flags
from manifold_bench.bench.report.order import by_norm
from manifold_bench.bench.report.plots import security_curves
from manifold_bench.bench.report.ranking import named_in, own_defenses, ranking_lines
from manifold_bench.bench.report.style import STYLE
from manifold_bench.bench.report.table import flag_note
from manifold_bench.bench.report.tables import STRICTNESS, Doubts, Marks, doubts_of, panels
from manifold_bench.bench.report.writing import write_report
from manifold_bench.bench.text import eps_of, eps_text, printable


@dataclass(frozen=True, eq=False)
class Results:
    """What a run found, in a folder or read from one.

    In a notebook it shows itself as a table.
    """

    stored: records.Results

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return self.stored.folder

    @property
    def records(self) -> pd.DataFrame:
        """One row for each input of each cell (data set, defense, attack, norm, ε); see docs for the columns."""
        return self.stored.records

    @cached_property
    def summary(self) -> pd.DataFrame:
        """One row for each cell, and one for the worst case over the attacks of each defense: every figure."""
        return summary_of(self.stored)

    @property
    def table(self) -> pd.DataFrame:
        """The worst case of each defense at each ε, in percent, with the attacks that alone leave the least.

        clean: accepted and right without an attack; rejected: of the clean inputs; robust: right when clean and never
        accepted and wrong under attack, with its 95 % interval; strict: never rejected under attack either; marks:
        those of the report's tables (docs/figures.md), with the numbers of their notes.
        """
        rows = []
        for (dataset, defense), of_defense in self.summary.groupby(["dataset", "defense"]):
            clean = of_defense[of_defense["kind"] == CLEAN].iloc[0]
            for (norm,), attacked in by_norm(of_defense[of_defense["kind"] != CLEAN]):
                for _, worst in attacked[attacked["kind"] == WORST_CASE].iterrows():
                    shares = {
                        "clean": clean["accuracy"],
                        "rejected": clean["rejection"],
                        "robust": worst["robust_accuracy"],
                        "low": worst["robust_low"],
                        "high": worst["robust_high"],
                        "strict": worst["strict_robust_accuracy"],
                    }
                    single = of_defense[of_defense["norm"].isin([norm, clean["norm"]])]
                    rows.append(
                        {"dataset": dataset, "defense": defense, "norm": norm, "eps": worst["eps"], "n": worst["n"]}
                        | {name: round(100 * share, 1) for name, share in shares.items()}
                        | {"strongest": strongest(single, worst["eps"]).names}
                        | {"marks": self._marked[0][dataset, defense, norm, worst["eps"]]}
                    )
        return pd.DataFrame(rows)

    @cached_property
    def _diagnosis(self) -> Diagnosis:
        """What the diagnosis says of each defense; both the table and the assessment need it."""
        return diagnose(self.stored)

    @cached_property
    def _doubts(self) -> Doubts:
        """Evidence that attacks look too weak; both the table and the assessment need it."""
        return doubts_of(self.stored, self.summary)

    @cached_property
    def _marked(self) -> tuple[dict[tuple[object, ...], str], list[str]]:
        """The marks of each worst case, by data set, defense, norm and ε, and the notes on the marks of all cells."""
        failing = flags(self._diagnosis)
        marks = Marks(self.summary, self._doubts)
        worst = self.summary["kind"] == WORST_CASE
        found: dict[tuple[object, ...], str] = {}
        for row in self.summary[worst].to_dict("records"):
            figures = ["error"] if row["norm"] == FOOLING else list(STRICTNESS)
            made = marks.of(row, *figures)
            if reason := failing.get((row["dataset"], row["defense"])):
                made.append("¶" + marks.notes.number(flag_note(row["defense"], reason)))
            found[row["dataset"], row["defense"], row["norm"], row["eps"]] = " ".join(made)
        for row in self.summary[~worst].to_dict("records"):
            marks.of(row)
        return found, marks.notes

    @cached_property
    def assessment(self) -> str:
        """What the attacks leave of the defense that the run is about, how sure that is, and what to run next."""
        made = assessments(self.stored, self.summary, self._diagnosis, self._doubts)
        return "\n\n".join(map(str, made)) or "The run names no defense: see the table."

    @cached_property
    def comparison(self) -> str:
        """How each defense that the run is about compares with the others of the run, clean and under the attacks.

        Each pair is compared under the attacks that both have; rank 1: no other defense is better.
        """
        found = {name: against_others(self.records, name) for name in named_in(self.stored.run, "defenses")}
        lines = [f"{name} on {line}." for name, rows in found.items() for line in ranking_lines(rows)]
        return "\n".join(map(printable, lines)) or "The run has no other defense to compare it with."

    def adversarial(
        self,
        defense: str | None = None,
        attack: str | None = None,
        eps: float | str | None = None,
        *,
        dataset: str | None = None,
        norm: str | None = None,
        seed: int | None = None,
    ) -> AdversarialImages:
        """Return every image that was judged in one cell, with labels and indices; the run needs `export="folder"`.

        An argument may be left out if all attacked cells agree on it. Raises InputError where no cell, or more than
        one, is meant, or its images were not kept.
        """
        try:
            size = eps_of(eps) if isinstance(eps, str) else eps
        except ValueError as error:
            raise InputError(f"eps: {error}") from error
        cell = {"dataset": dataset, "defense": defense, "attack": attack, "norm": norm, "eps": size, "seed": seed}
        return adversarial(self.stored, {name: value for name, value in cell.items() if value is not None})

    def report(self, folder: str | Path | None = None) -> Path:
        """Write tables, plots and pages into the run's folder, or into a copy of it; return the path of report.html."""
        stored = self.stored
        if folder is not None and Path(folder).resolve() != self.folder.resolve():
            shutil.copytree(self.folder, folder, dirs_exist_ok=True)
            stored = records.Results.load(Path(folder))
        write_report(stored)
        return stored.folder / "report.html"

    @property
    def notes(self) -> list[str]:
        """What the reader of the table has to know: its marks in words, in the order of the table's numbers.

        Further notes are about single attacks (stopped trying, failed, skipped), and what was cut or has no data.
        """
        return list(filter(None, [*self._marked[1], budget_of(self.stored.run), *left_out_of(self.stored)]))

    def plot(self) -> Figure:
        """Return a figure of the robust accuracy over ε, a line for each defense, a part for each data set and norm.

        It shows itself in a notebook; `figure.savefig("file.png")` writes it.
        """
        shown = [panel for panel in panels(self.summary) if panel.has_curves]
        if not shown:
            raise InputError("plot: no attack of this run has perturbation sizes")
        with mpl.rc_context(STYLE):
            return security_curves(*shown, own=own_defenses(self.stored.run, self.summary["defense"]))

    @property
    def _shown(self) -> pd.DataFrame:
        """The table with ε as text, and without marks where there are none."""
        table = self.table.assign(eps=[eps_text(eps) for eps in self.table["eps"]])
        return table if table["marks"].any() else table.drop(columns="marks")

    @property
    def _numbered(self) -> list[str]:
        return [f"({number}) {printable(note)}" for number, note in enumerate(self.notes, 1)]

    def __repr__(self) -> str:
        table = self._shown.to_string(index=False)
        wide = max(map(len, table.splitlines()))
        return "\n".join([table, *(textwrap.fill(note, wide, break_on_hyphens=False) for note in self._numbered)])

    def _repr_html_(self) -> str:
        return self._shown.to_html(index=False) + "".join(f"<p>{escape(note)}</p>" for note in self._numbered)


def load(folder: str | Path) -> Results:
    """Return the results in a run's folder. Raises InputError where there are none, or a file is damaged."""
    if not (isinstance(folder, (str, os.PathLike)) and str(folder)):
        given = "''" if isinstance(folder, str) else type(folder).__name__
        raise InputError(f"folder: {given} is no path; give the path of a run's folder")
    path = Path(folder)
    try:
        return Results(records.Results.load(path))
    except OSError as error:  # a path that no system takes
        raise InputError(f"folder: {system_error(error)}") from error
