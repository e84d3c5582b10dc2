"""Compares one defense with every other defense of a run, and one attack with every other attack."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd

from manifold_bench.bench.metrics.optimality import mean_optimality
from manifold_bench.bench.metrics.ranking import rank
from manifold_bench.bench.metrics.shares import percent_interval
from manifold_bench.bench.records.provenance import Reused
from manifold_bench.bench.records.schema import CLEAN, WORST_CASE, Row
from manifold_bench.bench.report.attacks import figure_texts
from manifold_bench.bench.report.html.reproduce import packaged
from manifold_bench.bench.report.order import by_norm
from manifold_bench.bench.report.table import Notes, Table
from manifold_bench.bench.report.tables import rows_by
from manifold_bench.bench.text import NOT_RUN, eps_text, norm_text, percent
from manifold_bench.defenses.identity import JsonObject, registered

ABOUT_DEFENSES = (
    "Rank 1 has the largest share. Each pair of defenses is compared under the attacks that both have met; two "
    "figures, as in 60–70 %, mean that these attacks differ from pair to pair."
)
"""What has to be known to read the lines that compare a defense."""

ABOUT_ATTACKS = "Optimality is 100 % where no other attack found smaller distances. Ranks count success, then distance."
"""What has to be known to read the lines that compare an attack."""

SIGNS = {"+": "better than", "-": "worse than", "~": "not significantly different from", "=": "no different from"}

NAMED = 3
"""Number of defenses that were not compared above which a line counts them instead of naming them."""

LEGEND = (
    "Percent of inputs, with 95 % Wilson intervals: accepted and right when clean, and robust in the worst case over "
    "the attacks that the run has for both defenses. The sign compares the defense of the first row with that of the "
    "row: + better, - worse, ~ difference not significant, = no difference. In parentheses: the first row's share "
    "under the attacks that it shares with this row, where it is another one; number of inputs that are right or "
    "robust only with the first row's defense / only with the other one; and p of the exact McNemar test on the shared "
    "inputs, Holm-corrected over all comparisons on the data set (5 % level). "
    "Rank 1 has the largest share, and defenses that could not be compared are not ranked. ‡ partial, see the table of "
    f"that norm. {NOT_RUN} not in this run."
)


def ranking_lines(found: pd.DataFrame) -> list[str]:
    """Return lines that compare a defense with the others: one on clean inputs, and one for each norm and ε.

    found: result of metrics.ranking.against_others for that defense.
    """
    others = {str(dataset): sorted(set(rows["other"])) for dataset, rows in found.groupby("dataset")}
    return [
        _ranked(dataset, norm, rows, others[dataset])
        for (dataset, norm), of_norm in by_norm(found, "dataset")
        for _, rows in of_norm.groupby("eps")
    ]


def _ranked(dataset: str, norm: str, rows: pd.DataFrame, others: list[str]) -> str:
    """Return the line on one norm and ε. rows: those of the comparison there. others: all defenses of the data set."""
    clean, compared = rows["kind"].iloc[0] == CLEAN, rows[rows["sign"] != "x"]
    where = f"{dataset}, clean" if clean else f"{dataset}, {norm_text(norm)} ε = {eps_text(rows['eps'].iloc[0])}"
    if compared.empty:
        return f"{where}: not compared ({rows['reason'].iloc[0]})"
    place, among = rank(rows)
    comparisons = [
        f"{meaning} {', '.join(compared.loc[compared['sign'] == sign, 'other'])}"
        for sign, meaning in SIGNS.items()
        if (compared["sign"] == sign).any()
    ]
    left_out = [other for other in others if other not in set(compared["other"])]
    named = ", ".join(left_out) if len(left_out) <= NAMED else f"{len(left_out)} others"
    comparisons += [f"not compared with {named}"] if left_out else []
    shares = compared["own_share"].unique()  # several, where the shared attacks or inputs differ
    share = "–".join(percent(value) for value in sorted({shares.min(), shares.max()}))
    what = "accepted and right" if clean else "robust"
    return f"{where}: {share} % {what}, rank {place} of {among}; {'; '.join(comparisons)}"


def ranking_tables(found: pd.DataFrame, defense: str) -> list[Table]:
    """Return a table for each data set and norm: the defense, then every other one, in descending robust accuracy.

    found: result of metrics.ranking.against_others for that defense.
    """
    made = []
    for dataset, there in found.groupby("dataset"):
        clean = there[there["kind"] == CLEAN]
        for (norm,), rows in by_norm(there[there["kind"] != CLEAN]):
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
            title = f"{dataset}, {norm_text(norm)}: {defense} against every other defense"
            name = (str(dataset), norm, f"ranking-{defense}")
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
    for (dataset, norm), there in by_norm(figures[figures["attack"] != WORST_CASE], "dataset"):
        if attack not in set(there["attack"]):
            continue
        where = f"{dataset}, {norm_text(norm)}"
        for defense, rows in there.groupby("defense"):
            own = rows_by(rows, "attack").get(attack)
            if own is None or own["status"] != "ok":
                lines += [] if own is None else [f"{where}, {defense}: {own['status']}: {own['reason']}"]
                continue
            success, eps, passes, median, score = figure_texts(own)
            place = _place(rows["rank"], own["rank"])
            lines.append(
                f"{where}, {defense}: success {success} % within ε = {eps}, {passes} forward + backward passes "
                f"per input, median distance {median}, optimality {score} %{place}{_against_others(own)}"
            )
        of_norm = means[(means["dataset"] == dataset) & (means["norm"] == norm)]
        own = rows_by(of_norm, "attack").get(attack)
        if own is not None and own["defenses"] > 1:
            alike = of_norm[of_norm["defenses"] == own["defenses"]]
            lines.append(
                f"{where}: mean optimality over {own['defenses']} defenses {percent(own['optimality'])} %"
                f"{_place(alike['rank'], own['rank'], ' attacks on as many defenses')}"
            )
    return lines


def _against_others(own: Row) -> str:
    """Return on which inputs an attack and the others differ. own: a row of metrics.optimality.attack_figures."""
    if np.isnan(own["alone"]) or not (own["others"] > 0):
        return "; this run has no other attack to compare it with"
    alone, missed = (f"{own[name]:.0f}" for name in ("alone", "missed"))
    return f"; it beats {alone} that no other attack beats, and misses {missed} that others beat"


def _place(ranks: pd.Series, own: float, what: str = "") -> str:
    among = ranks.notna().sum()
    return "" if np.isnan(own) or among < 2 else f", rank {own:.0f} of {among}{what}"


def named_in(run: JsonObject, kind: Literal["defenses", "attacks", "datasets"]) -> list[str]:
    """Return what the command line named of a kind, in its words or by label. run: content of run.json."""
    return list(run.get("named", {}).get(kind, []))


def own_defenses(run: JsonObject, known: Iterable[str]) -> list[str]:
    """Return the defenses that the command line named, by label; none where a report shows no other ones.

    run: content of run.json. known: labels of all defenses that are shown.
    """
    named = named_in(run, "defenses")
    return named if set(known) - set(named) else []


def new_attacks(run: JsonObject) -> list[str]:
    """Return the attacks that the command line added to the matrix, by label, each once. run: content of run.json.

    An attack that the matrix has already is left out: naming it only leaves out the others. Where the matrix is none of
    this package's, so that its file may be gone, every registered attack counts as one that it has.
    """
    matrix = run.get("matrix", {})
    names = {one["label"]: one["name"] for one in matrix.get("attacks", [])}
    known = set(registered("attacks"))
    if source := packaged(matrix.get("source", "")):
        known = {one["name"] for one in tomllib.loads(source.read_text(encoding="utf-8")).get("attacks", [])}
    return [label for label in dict.fromkeys(named_in(run, "attacks")) if names.get(label, label) not in known]


@dataclass(frozen=True)
class Comparison:
    """How a system that the command line named compares with the others of a run.

    name: its label. about: what has to be known to read the lines; empty where a later comparison says it. lines:
    phrases; empty where there is no other one.
    """

    name: str
    about: str
    lines: list[str]

    @property
    def title(self) -> str:
        return f"How {self.name} compares"

    @property
    def sentences(self) -> list[str]:
        """The lines as sentences, or one that says that there are none."""
        return [f"{line}." for line in self.lines] or ["This run has nothing to compare it with."]


def comparisons(compared: dict[str, pd.DataFrame], attacks: pd.DataFrame, run: JsonObject) -> list[Comparison]:
    """Return the comparisons of the defenses that the command line named, and of the attacks that it added.

    compared: label of each named defense → result of metrics.ranking.against_others. attacks: result of
    metrics.optimality.attack_figures. run: content of run.json.
    """
    defenses = [Comparison(name, ABOUT_DEFENSES, ranking_lines(found)) for name, found in compared.items()]
    made = defenses + [Comparison(name, ABOUT_ATTACKS, attack_lines(attacks, name)) for name in new_attacks(run)]
    last = {one.about: one.name for one in made if one.lines}
    return [one if last.get(one.about) == one.name else replace(one, about="") for one in made]


def reused_lines(run: JsonObject) -> list[str]:
    """Return a sentence on each baseline whose records the run took. run: content of run.json."""
    return [f"{Reused(**one)}." for one in run.get("reused", [])]
