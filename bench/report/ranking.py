"""Compares one defense with every other defense of a run, and one attack with every other attack."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd

from manifold_bench.bench.metrics.optimality import mean_optimality
from manifold_bench.bench.metrics.ranking import rank
from manifold_bench.bench.metrics.shares import percent_interval
from manifold_bench.bench.records.provenance import Reused
from manifold_bench.bench.records.schema import CLEAN, WORST_CASE, Row
from manifold_bench.bench.report.attacks import figure_texts
from manifold_bench.bench.report.table import Notes, Table
from manifold_bench.bench.report.tables import rows_by
from manifold_bench.bench.text import NOT_RUN, eps_text, norm_text, percent
from manifold_bench.defenses.identity import JsonObject

SIGNS = {"+": "better than", "-": "worse than", "~": "not significantly different from", "=": "no different from"}

LEGEND = (
    "Percent of inputs, with 95 % Wilson intervals: accepted and right when clean, and robust in the worst case over "
    "the attacks that the run has for both defenses. The sign compares the defense of the first row with that of the "
    "row: + better, - worse, ~ difference not significant, = no difference. In parentheses: the first row's share "
    "under the attacks that it shares with this row, where it is another one; number of inputs that are right or "
    "robust only with the first row's defense / only with the other one; and p of the exact McNemar test on the shared "
    "inputs, Holm-corrected over all comparisons on the data set (5 % level). "
    f"Rank: 1 + the number of defenses with a larger share. ‡ partial, see the table of that norm. {NOT_RUN} not in "
    "this run."
)


def ranking_lines(found: pd.DataFrame) -> list[str]:
    """Return lines that compare a defense with the others: one on clean inputs, and one for each norm and ε.

    found: result of metrics.ranking.against_others for that defense.
    """
    lines = []
    found = found.assign(clean=found["kind"] == CLEAN).sort_values(["dataset", "clean"], ascending=[True, False])
    for (dataset, clean, norm, eps), rows in found.groupby(["dataset", "clean", "norm", "eps"], sort=False):
        compared = rows[rows["sign"] != "x"]
        where = f"{dataset}, clean" if clean else f"{dataset}, {norm_text(str(norm))} ε = {eps_text(float(str(eps)))}"
        if compared.empty:
            lines.append(f"{where}: not compared ({rows['reason'].iloc[0]})")
            continue
        place, among = rank(rows)
        comparisons = [
            f"{meaning} {', '.join(compared.loc[compared['sign'] == sign, 'other'])}"
            for sign, meaning in SIGNS.items()
            if (compared["sign"] == sign).any()
        ]
        shares = compared["own_share"].unique()  # several, where the shared attacks or inputs differ
        share = "–".join(percent(value) for value in sorted({shares.min(), shares.max()}))
        what = "accepted and right" if clean else "robust"
        lines.append(f"{where}: {share} % {what}, rank {place} of {among}; {'; '.join(comparisons)}")
    return lines


def ranking_tables(found: pd.DataFrame, defense: str) -> list[Table]:
    """Return a table for each data set and norm: the defense, then every other one, in descending robust accuracy.

    found: result of metrics.ranking.against_others for that defense.
    """
    made = []
    for dataset, there in found.groupby("dataset"):
        clean = there[there["kind"] == CLEAN]
        for norm, rows in there[there["kind"] != CLEAN].groupby("norm"):
            sizes = sorted(rows["eps"].unique())
            strengths = [clean, *(rows[rows["eps"] == eps] for eps in sizes)]
            by_other = [rows_by(at, "other") for at in strengths]
            header = ["defense", "clean", *(f"robust, ε = {eps_text(eps)}" for eps in sizes)]
            others = rows.groupby("other")["other_share"].last().sort_values(ascending=False).index
            notes = Notes()
            lines = [[defense, *(_own_text(at) for at in strengths)]]
            shown = [NOT_RUN if one is None else percent(one["own_share"]) for one in map(_most, strengths)]
            lines += [
                [str(other), *(_other_text(at.get(other), own, notes) for at, own in zip(by_other, shown, strict=True))]
                for other in others
            ]
            title = f"{dataset}, {norm_text(str(norm))}: {defense} against every other defense"
            name = (str(dataset), str(norm), f"ranking-{defense}")
            made.append(Table(name, title, header, lines, notes, LEGEND))
    return made


def _own_text(rows: pd.DataFrame) -> str:
    most = _most(rows)
    if most is None:
        return NOT_RUN
    place, among = rank(rows)
    return f"{percent_interval(most['own_share'], int(most['n']))}, rank {place} of {among}"


def _most(rows: pd.DataFrame) -> Row | None:
    """Return the comparison over most inputs, whose figures the first row shows; None where nothing was compared."""
    compared = rows[rows["sign"] != "x"]
    return compared.sort_values("n").iloc[-1].to_dict() if len(compared) else None


def _other_text(row: Row | None, own: str, notes: Notes) -> str:
    """Return a field of a row. own: the share that the first row shows, as text."""
    if row is None:
        return NOT_RUN
    number = f" {notes.number(row['reason'])}" if row["reason"] else ""
    if row["sign"] == "x":
        return f"not compared{number}"
    share = percent_interval(row["other_share"], int(row["n"]))
    against = "" if percent(row["own_share"]) == own else f"against {percent(row['own_share'])}: "
    paired = f"({against}{row['gained']:.0f}/{row['lost']:.0f}, p = {row['p']:.2g})"
    return f"{share} {row['sign']} {paired}{' ‡' + number if number else ''}"


def attack_lines(figures: pd.DataFrame, attack: str) -> list[str]:
    """Return lines that compare an attack with the others: one for each data set, norm and defense, and one for means.

    figures: result of metrics.optimality.attack_figures.
    """
    lines = []
    means = mean_optimality(figures)
    for (dataset, norm), there in figures[figures["attack"] != WORST_CASE].groupby(["dataset", "norm"]):
        if attack not in set(there["attack"]):
            continue
        where = f"{dataset}, {norm_text(str(norm))}"
        for defense, rows in there.groupby("defense"):
            own = rows_by(rows, "attack").get(attack)
            if own is None or own["status"] != "ok":
                lines += [] if own is None else [f"{where}, {defense}: {own['status']}: {own['reason']}"]
                continue
            success, eps, passes, median, score = figure_texts(own)
            place = _place(rows["rank"], own["rank"])
            lines.append(
                f"{where}, {defense}: success {success} % within ε = {eps}, {passes} forward + backward passes "
                f"per input, median distance {median}, optimality {score} % "
                f"(100: no attack found smaller distances){place}"
            )
        of_norm = means[(means["dataset"] == dataset) & (means["norm"] == norm)]
        own = rows_by(of_norm, "attack").get(attack)
        if own is not None and own["defenses"] > 1:
            alike = of_norm[of_norm["defenses"] == own["defenses"]]
            place = _place(alike["rank"], own["rank"])
            lines.append(
                f"{where}: mean optimality over {own['defenses']} defenses {percent(own['optimality'])}{place}"
            )
    return lines


def _place(ranks: pd.Series, own: float) -> str:
    among = ranks.notna().sum()
    return "" if np.isnan(own) or among < 2 else f", rank {own:.0f} of {among} by success, then by distance"


def named_in(run: JsonObject, kind: Literal["defenses", "attacks", "datasets"]) -> list[str]:
    """Return what the command line named of a kind, in its words or by label. run: content of run.json."""
    return list(run.get("named", {}).get(kind, []))


def named_lines(compared: dict[str, pd.DataFrame], attacks: pd.DataFrame, run: JsonObject) -> dict[str, list[str]]:
    """Return the label of each defense and attack that the command line named → the lines that compare it.

    compared: label of each named defense → result of metrics.ranking.against_others. attacks: result of
    metrics.optimality.attack_figures. run: content of run.json.
    """
    lines = {name: ranking_lines(found) for name, found in compared.items()}
    return lines | {name: attack_lines(attacks, name) for name in named_in(run, "attacks")}


def ranking_paragraphs(named: dict[str, list[str]], run: JsonObject) -> list[str]:
    """Return Markdown paragraphs: the comparisons of `named_lines`, and which records were reused from baselines."""
    paragraphs = [f"**{name}** on {line}." for name, lines in named.items() for line in lines]
    return paragraphs + [f"{Reused(**one)}." for one in run.get("reused", [])]
