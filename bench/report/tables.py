"""The tables of a report, made from the summary of a run's records (`robustness.summary`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import pandas as pd

from manifold_bench.bench.metrics.robustness import FOOLING
from manifold_bench.bench.metrics.selective import DEPLOYED, implausible
from manifold_bench.bench.records.schema import CLEAN, WORST_CASE
from manifold_bench.bench.report.table import LEGEND, Table, flag_note
from manifold_bench.bench.text import NOT_RUN, eps_text, norm_text, percent, percent_interval

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


@dataclass
class Marks:
    """The reasons a table's cells point to, numbered as they first appear."""

    attacked: pd.DataFrame
    checks: pd.DataFrame  # selective.implausible
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
        kinds = (fooling_table,) if norm == FOOLING else (_robustness, _attacks)
        made += [kind(dataset, norm, clean, attacked, Marks(attacked, checks)) for kind in kinds]
    return made


def _robustness(dataset: str, norm: str, clean: pd.DataFrame, attacked: pd.DataFrame, marks: Marks) -> Table:
    """Rows: defenses. Columns: clean accuracy and rejection, then the worst case over attacks at each ε."""
    worst = attacked[attacked["attack"] == WORST_CASE]
    ladder = sorted(worst["eps"].unique())
    rows = []
    for defense in defenses_of(clean, attacked):
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


def fooling_table(dataset: str, norm: str, clean: pd.DataFrame, attacked: pd.DataFrame, marks: Marks) -> Table:
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

    matched: selective.matched; summary: robustness.summary, for what is implausible. A data set in which
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


def defenses_of(clean: pd.DataFrame, attacked: pd.DataFrame) -> list[str]:
    return sorted({*clean["defense"], *attacked["defense"]})


def _pairs(clean: pd.DataFrame, attacked: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Every defense with every attack on it, in the order of the summary."""
    for defense in defenses_of(clean, attacked):
        for attack in attacked.loc[attacked["defense"] == defense, "attack"].unique():
            yield defense, attack


def _clean_cells(clean: pd.DataFrame, defense: str, marks: Marks) -> list[str]:
    """Number of inputs, clean accuracy and clean rejection of a defense."""
    row = find(clean, defense=defense)
    if row is None:
        return [NOT_RUN] * 3
    return [str(row["n"]), marks.cell(row, "accuracy"), marks.cell(row, "rejection")]
