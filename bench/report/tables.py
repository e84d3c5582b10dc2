"""The tables of a report, made from the summary of a run's records (`summary.summary`)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from manifold_bench.bench.metrics.effort import effort_note, who_gave_up
from manifold_bench.bench.metrics.robustness import FOOLING
from manifold_bench.bench.metrics.selective import DEPLOYED, implausible
from manifold_bench.bench.metrics.shares import percent_interval
from manifold_bench.bench.metrics.unadapted import NOT_ADAPTED, unadapted
from manifold_bench.bench.metrics.unconverged import FELL_LATE, unconverged
from manifold_bench.bench.records.results import Results
from manifold_bench.bench.records.schema import ATTACK, CLEAN, WORST_CASE, Row
from manifold_bench.bench.report.cures import cure_of_zero_gradients
from manifold_bench.bench.report.order import by_norm
from manifold_bench.bench.report.table import LEGEND, Notes, Table, flag_note
from manifold_bench.bench.text import NOT_RUN, eps_text, norm_text, percent

SEEDS_LEGEND = (
    " Robust with several seeds: mean ± standard deviation over the seeds (and the worst seed of each input, with its "
    "interval)."
)

SELECTIVE_LEGEND = (
    "Percent of inputs, with 95 % Wilson intervals. Rate: share of clean inputs that may be rejected, by a threshold "
    "that is set on held-out clean inputs; deployed: the defense's own threshold. A defense that rejects nothing gets "
    "a threshold on its score, such as the largest softmax probability. Coverage: clean inputs accepted; error: clean "
    "inputs accepted and wrong; robust: accepted and right when clean, and never accepted and wrong under attack; "
    "strict: robust, and never rejected under attack. ≤: an upper bound, because the adversarial inputs were made "
    "against the deployed threshold. ‡ partial; § attacks look too weak; ‖ the attack stopped "
    f"trying; {NOT_RUN} not in this run."
)

FOOLING_LEGEND = (
    "Percent of noise images with which the attack succeeded, with 95 % Wilson intervals. A targeted attack succeeds "
    "if the image is accepted as a target class, any other attack if it is accepted. Worst-case: accepted under any "
    "attack. † some outputs invalid; ‡ partial."
)


INVALID = "farther than ε from the unperturbed image, or not within [0, 1]"
"""What is wrong with outputs that count as no success."""

RECORD = "the figure would be better than that of every known classifier"


def rows_by(rows: pd.DataFrame, *columns: str) -> dict[Any, Row]:
    """Return the rows of a frame by their values in these columns: a tuple, or the value itself for one column.

    Of several rows with the same values the first is returned.
    """
    values = rows[list(columns)].itertuples(index=False, name=None)
    keys = [value[0] for value in values] if len(columns) == 1 else list(values)
    return dict(zip(reversed(keys), reversed(rows.to_dict("records")), strict=True))


STRICTNESS = ("robust_accuracy", "strict_robust_accuracy")
"""The figures that a table of worst cases shows at each ε."""


class Marks:
    """Formats the cells of one table, with the marks † ‖ ‡ § ¶, and collects the notes that explain these marks.

    notes: the notes so far, numbered as they first appear.
    """

    def __init__(self, attacked: pd.DataFrame, doubts: Doubts, flags: Mapping[str, str] | None = None) -> None:
        """attacked: summary rows of the attacks in the table. doubts: result of `doubts_of`.

        flags: defense → what the checks of the diagnosis that it fails have found.
        """
        self.doubts, self.flags = doubts, flags or {}
        self._valid = attacked.groupby(["defense", "attack"])["valid"].min().to_dict()
        lost = attacked[(attacked["kind"] != WORST_CASE) & attacked["status"].isin(["failed", "skipped"])]
        self._lost = set(lost[["defense", "status", "reason"]].itertuples(index=False, name=None))
        self.notes = Notes()

    def without_notes(self) -> Marks:
        """Return the same without any notes yet."""
        made = copy.copy(self)
        made.notes = Notes()
        return made

    def defense(self, name: str) -> str:
        """Return the defense's name, marked with ¶ where it fails the diagnosis."""
        return f"{name} ¶{self.notes.number(flag_note(name, self.flags[name]))}" if name in self.flags else name

    def cell(self, row: Row | None, figure: str, text: Callable[[float, int], str] = percent_interval) -> str:
        """Return the text of a figure of a summary row with its marks; for a failed or skipped row the status.

        figure: name of the column. text: function of a share and its number of inputs that returns its text.
        """
        if row is None:
            return NOT_RUN
        if row["status"] in ("failed", "skipped"):
            return " ".join(self.of(row))
        shown = text(row[figure], row["n"])
        if figure == "robust_accuracy" and row.get("seeds", 1) > 1:
            shown = f"{percent(row['robust_mean'])} ± {percent(row['robust_sd'])} ({shown})"
        return " ".join([shown, *self.of(row, figure)])

    def of(self, row: Row, *figures: str) -> list[str]:
        """Return the marks of figures of a summary row, each with the number of its note: `["‖(1)", "§(2)"]`.

        A failed or skipped row has its status in their place.
        """
        status, reason = row["status"], row["reason"]
        if status in ("failed", "skipped"):
            causes = self._causes(row) if row["kind"] == WORST_CASE else {}
            return [" ".join([status, *(causes.values() or [self.notes.number(f"{status}: {reason}")])])]
        found: list[str] = []
        who = f"{row['defense']} × {row['attack']}"
        if row["valid"] < 1:
            share = f"{100 * (1 - self._valid[row['defense'], row['attack']]):.1f} %"
            why = f"up to {share} of the outputs are invalid ({INVALID}) and count as no success"
            found.append("†" + self.notes.number(f"† {who}: {why}"))
        if note := effort_note(row):
            attacks = f"{row['defense']}: {who_gave_up(row)}" if row["kind"] == WORST_CASE else f"{who}: the attack"
            blind = any(row.get(share, 0.0) > 0 for share in ("blind", "masked"))  # NaN counts as none
            cure = f": {cure_of_zero_gradients(row['norm'])}" if blind else ""
            found.append("‖" + self.notes.number(f"‖ {attacks} {note}; this is no evidence of robustness{cure}"))
        if status == "partial":
            for cause, number in self._causes(row).items():  # these notes say it already
                reason = reason.replace(f"({cause})", number)
            found.append("‡" + self.notes.number_shared(f"‡ partial: {reason}", who))
        elif reason and row["kind"] != WORST_CASE:
            found.append(self.notes.number(f"note: {who}: {reason}"))
        if row["kind"] == WORST_CASE and row.get("rate", DEPLOYED) == DEPLOYED:
            for figure in figures:
                doubt = self.doubts.get((row["dataset"], row["defense"], row["norm"], row["eps"], figure))
                if doubt is not None:
                    reason = f"§ the attacks look too weak: {doubt.reason}"
                    found.append("§" + self.notes.number_shared(reason, f"{row['defense']}, {doubt.evidence}"))
        return list(dict.fromkeys(found))

    def _causes(self, worst: Row) -> dict[str, str]:
        """Return why attacks of a worst case failed or were skipped, each with the number of the note that says it."""
        status = "failed" if worst["status"] == "partial" else worst["status"]
        reasons = (reason for who, why, reason in self._lost if (who, why) == (worst["defense"], status))
        named = sorted((reason for reason in reasons if f"({reason})" in worst["reason"]), key=worst["reason"].index)
        return {reason: self.notes.number(f"{status}: {reason}") for reason in named}


class Doubt(NamedTuple):
    """Why attacks look too weak for a worst case. reason: the same text for all such cells; evidence: on this cell."""

    reason: str
    evidence: str

    def __str__(self) -> str:
        return f"{self.reason}: {self.evidence}"


Doubts = Mapping[Hashable, Doubt]
"""(data set, defense, norm, ε, figure) → why the attacks look too weak for this worst case."""


def doubts_of(results: Results, summary: pd.DataFrame) -> Doubts:
    """Return evidence that attacks were too weak for a figure.

    They still gained when they ended, none is made for the family of the defense, or the figure is implausible; where
    several of these hold, the last one counts. summary: the summary of these results.
    """
    minimal = [key for key, entry in results.index.items() if entry.minimal]
    winning = unconverged(results.records, minimal)
    late = {(*cell, "robust_accuracy"): Doubt(FELL_LATE, text) for cell, text in winning.items()}
    not_adapted = unadapted(summary, results.run, STRICTNESS)
    unfit = {cell: Doubt(NOT_ADAPTED, text) for cell, text in not_adapted.items()}
    return late | unfit | dict(implausible_cells(summary))


def implausible_cells(summary: pd.DataFrame) -> Doubts:
    """Return the evidence on every figure of a summary that `selective.implausible` finds implausible."""
    checks = implausible(summary)
    found = checks[checks["implausible"].astype(bool)].set_index(["dataset", "defense", "norm", "eps", "figure"])
    return {cell: Doubt(RECORD, evidence) for cell, evidence in found["evidence"].items()}


class Panel(NamedTuple):
    """The summary rows of one data set and norm, which one table or plot shows.

    clean: rows without an attack. attacked: rows of the norm, worst cases included.
    """

    dataset: str
    norm: str
    clean: pd.DataFrame
    attacked: pd.DataFrame

    @property
    def defenses(self) -> list[str]:
        return sorted({*self.clean["defense"], *self.attacked["defense"]})

    @property
    def ranked(self) -> list[str]:
        """The defenses by robust accuracy in the worst case at the largest ε, best first; those without it come last.

        Where that is equal, the next smaller ε decides, then accuracy on clean images, then the name.
        """
        shares = rows_by(self.worst, "defense", "eps")
        clean = rows_by(self.clean, "defense")
        sizes = sorted(self.worst["eps"].unique(), reverse=True)

        def place(defense: str) -> tuple[float, ...]:
            rows = [*(shares.get((defense, eps)) for eps in sizes), clean.get(defense)]
            found = [np.nan if row is None else float(row["robust_accuracy"]) for row in rows]
            return tuple(1.0 if np.isnan(share) else -share for share in found)

        return sorted(self.defenses, key=place)

    @property
    def worst(self) -> pd.DataFrame:
        """The rows of worst cases over attacks."""
        return self.attacked[self.attacked["kind"] == WORST_CASE]

    @property
    def single(self) -> pd.DataFrame:
        """The rows of single attacks that ran."""
        return self.attacked[(self.attacked["kind"] == ATTACK) & (self.attacked["status"] == "ok")]

    @property
    def is_noise(self) -> bool:
        """Whether the attacked inputs are noise, which has no right answers."""
        return self.norm == FOOLING

    @property
    def has_curves(self) -> bool:
        """Whether robust accuracy can be plotted over ε: the norm is not `fooling`, and every ε is finite."""
        return not self.is_noise and bool(np.isfinite(self.attacked["eps"]).all())

    @property
    def title(self) -> str:
        return f"{self.dataset}, {norm_text(self.norm)}"


def panels(summary: pd.DataFrame) -> list[Panel]:
    """Return a panel for each data set and norm of a summary, in the order of `order.norm_place`."""
    clean = dict(iter(summary[summary["kind"] == CLEAN].groupby("dataset")))
    of_norms = by_norm(summary[summary["kind"] != CLEAN], "dataset")
    return [Panel(dataset, norm, clean.get(dataset, summary[:0]), rows) for (dataset, norm), rows in of_norms]


def matrix_columns(panel: Panel) -> list[tuple[str, float]]:
    """Return the columns of a heat map as pairs (attack, its largest ε): clean, every attack, worst case.

    A panel of noise has no clean column.
    """
    largest = panel.attacked.groupby("attack")["eps"].max()
    attacks = [name for name in sorted(largest.index) if name != WORST_CASE] + [WORST_CASE]
    return [(CLEAN, 0.0)] * (not panel.is_noise) + [(attack, float(largest[attack])) for attack in attacks]


def tables(summary: pd.DataFrame, doubts: Doubts) -> list[Table]:
    """Return two tables for each data set and norm: robust accuracy in the worst case, and under each attack.

    Norm "fooling" has one table: the share of noise images that each defense accepts. doubts: result of `doubts_of`.
    """
    made = []
    for panel in panels(summary):
        kinds = (fooling_table,) if panel.is_noise else (_robustness, attacks_table)
        made += [kind(panel, Marks(panel.attacked, doubts)) for kind in kinds]
    return made


def _robustness(panel: Panel, marks: Marks) -> Table:
    """Return the table of worst cases: clean accuracy and rejection of each defense, then figures at each ε."""
    ladder = sorted(panel.worst["eps"].unique())
    clean, at = rows_by(panel.clean, "defense"), rows_by(panel.worst, "defense", "eps")
    rows = []
    for defense in panel.ranked:
        before = _clean_cells(clean.get(defense), marks)
        robust = (marks.cell(at.get((defense, eps)), figure) for eps in ladder for figure in STRICTNESS)
        rows.append([defense, *before, *robust])
    header = ["defense", "n", "clean accuracy", "clean rejection", *_per_strength(ladder)]
    title = f"{panel.title}: robust accuracy, worst case over attacks"
    name = (panel.dataset, panel.norm, "robustness")
    return Table(name, title, header, rows, marks.notes, robust_legend(panel.attacked))


def _per_strength(ladder: list[float]) -> list[str]:
    return [f"{figure}, ε = {eps_text(eps)}" for eps in ladder for figure in ("robust", "strict")]


def attacks_table(panel: Panel, marks: Marks, text: Callable[[float, int], str] = percent_interval) -> Table:
    """Return the table of single attacks: clean accuracy and rejection, then robust accuracy at each ε.

    It has a row for each defense and attack. text: function of a share and its number of inputs that returns its text.
    """
    ladder = sorted(panel.attacked["eps"].unique())
    clean, at = rows_by(panel.clean, "defense"), rows_by(panel.attacked, "defense", "attack", "eps")
    rows = []
    for defense, attack in _pairs(panel):
        before = _clean_cells(clean.get(defense), marks, text)
        robust = (marks.cell(at.get((defense, attack, eps)), "robust_accuracy", text) for eps in ladder)
        rows.append([marks.defense(defense), attack, *before, *robust])
    header = ["defense", "attack", "n", "clean accuracy", "clean rejection"]
    header += [f"robust, ε = {eps_text(eps)}" for eps in ladder]
    title = f"{panel.title}: robust accuracy under each attack"
    name = (panel.dataset, panel.norm, "attacks")
    return Table(name, title, header, rows, marks.notes, robust_legend(panel.attacked))


def robust_legend(attacked: pd.DataFrame) -> str:
    """Return the legend of a table; with a sentence on seeds if any of its summary rows has several."""
    return LEGEND + SEEDS_LEGEND if (attacked["seeds"] > 1).any() else LEGEND


def fooling_table(panel: Panel, marks: Marks) -> Table:
    """Return the table of noise: number of images, and share accepted, for each defense and attack."""
    at = rows_by(panel.attacked, "defense", "attack")
    rows = []
    for defense, attack in _pairs(panel):
        row = at[defense, attack]
        rows.append([marks.defense(defense), attack, str(row["n"]), marks.cell(row, "error")])
    header = ["defense", "attack", "noise images", "accepted"]
    title = f"{panel.dataset}, fooling: share of noise images accepted"
    return Table((panel.dataset, panel.norm, "accepted"), title, header, rows, marks.notes, FOOLING_LEGEND)


def selective_tables(matched: pd.DataFrame, doubts: Doubts) -> list[Table]:
    """Return a table for each data set and norm: every defense at its own threshold and at equal false-rejection rates.

    matched: result of metrics.selective.matched. doubts: result of `doubts_of`. A data set on which no defense is
    calibrated has no table, because other tables show the figures at each defense's own threshold.
    """
    made = []
    for panel in panels(matched):
        calibrated = (panel.clean["rate"] != DEPLOYED) & (panel.clean["status"] != "skipped")
        if calibrated.any():
            made.append(_selective(panel, Marks(panel.attacked, doubts)))
    return made


def _selective(panel: Panel, marks: Marks) -> Table:
    """Return the table: clean coverage and error, then worst cases at each ε, for each defense and threshold."""
    ladder = sorted(panel.attacked["eps"].unique())
    at = rows_by(panel.attacked, "defense", "rate", "eps")
    rows = []
    for defense, points in panel.clean.groupby("defense"):
        without = points[(points["status"] == "skipped") & (points["rate"] != DEPLOYED)]
        for point in points.drop(without.index).to_dict("records"):
            rate = str(point["rate"])
            text = percent_interval if rate == DEPLOYED else _at_most
            if rate == DEPLOYED and len(without):
                reasons = ", ".join(without["reason"].unique())
                rate += " " + marks.notes.number(f"note: no threshold at {', '.join(without['rate'])}: {reasons}")
            before = [marks.cell(point, "coverage"), marks.cell(point, "error")]
            worst = (at.get((defense, point["rate"], eps)) for eps in ladder)
            robust = (marks.cell(one, figure, text) for one in worst for figure in STRICTNESS)
            rows.append([str(defense), rate, str(point["n"]), *before, *robust])
    header = ["defense", "rate", "n", "clean coverage", "clean error", *_per_strength(ladder)]
    title = f"{panel.title}: selective classification, worst case over attacks"
    name = (panel.dataset, panel.norm, "selective")
    return Table(name, title, header, rows, marks.notes, SELECTIVE_LEGEND)


def _at_most(value: float, n: int) -> str:
    return f"≤ {percent_interval(value, n)}"


def _pairs(panel: Panel) -> list[tuple[str, str]]:
    """Return every pair of defense and attack, sorted by defense; attacks stay in the order of the summary."""
    pairs = panel.attacked[["defense", "attack"]].drop_duplicates().itertuples(index=False, name=None)
    return sorted(pairs, key=lambda pair: pair[0])


def _clean_cells(row: Row | None, marks: Marks, text: Callable[[float, int], str] = percent_interval) -> list[str]:
    """Return number of inputs, clean accuracy and clean rejection of a defense as texts."""
    n = NOT_RUN if row is None else str(row["n"])
    return [n, *(marks.cell(row, figure, text) for figure in ("accuracy", "rejection"))]
