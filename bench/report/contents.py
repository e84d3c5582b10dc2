"""What a report says of a run: figures, tables and sentences, computed once from its results."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import pandas as pd

from manifold_bench.bench.diagnosis.diagnose import Diagnosis, diagnose
from manifold_bench.bench.metrics import effort, optimality, selective
from manifold_bench.bench.metrics.ranking import against_others
from manifold_bench.bench.metrics.summary import summary as summary_of
from manifold_bench.bench.planning.claims import Claim, claims_of
from manifold_bench.bench.records.results import Results
from manifold_bench.bench.records.schema import IMAGE_COLUMNS, WORST_CASE
from manifold_bench.bench.report import attacks, claims, measurements, ranking, tables
from manifold_bench.bench.report.certified import certified_tables
from manifold_bench.bench.report.diagnosis import flags
from manifold_bench.bench.report.table import Table, flagged
from manifold_bench.bench.report.tables import Implausible
from manifold_bench.bench.report.verdict import Verdict, budget_of, verdicts


def _shown(table: Table, flags: dict[tuple[str, str], str], budget: str) -> Table:
    """The table with the marks of the diagnosis, and what a budget has cut in its legend."""
    return replace(flagged(table, flags), legend=f"{table.legend} {budget}".rstrip())


@dataclass(frozen=True)
class Report:
    """The contents of a report.

    summary: summary.summary. implausible: evidence of what is too good to be true, by data set, defense, norm, ε and
    figure. verdicts: on the defenses that the run is about. rankings: for each system that the command line named,
    lines on how it compares. paragraphs: Markdown, on these and on central claims. claim_tables, measurement_tables,
    tables: marked where the diagnosis fails a defense.
    """

    results: Results
    summary: pd.DataFrame
    implausible: Implausible
    diagnosis: Diagnosis
    verdicts: list[Verdict]
    claims: tuple[Claim, ...]
    rankings: dict[str, list[str]]
    paragraphs: list[str]
    claim_tables: list[Table]
    measurement_tables: list[Table]
    tables: list[Table]

    @classmethod
    def of(cls, results: Results) -> Report:
        """Computes everything that is shown of the results."""
        run = results.run
        records = results.records.drop(columns=list(IMAGE_COLUMNS), errors="ignore")  # heavy, and in no figure
        summary, worth, diagnosis = summary_of(records), optimality.attack_figures(records), diagnose(results)
        implausible, stated = tables.implausible_cells(summary), claims_of(run, results.folder)
        compared = {name: against_others(records, name) for name in ranking.named_in(run, "defenses")}
        rankings = ranking.named_lines(compared, worth, run)
        mark = partial(_shown, flags=flags(diagnosis), budget=budget_of(run))
        made = [table for name, found in compared.items() for table in ranking.ranking_tables(found, name)]
        made += tables.tables(summary, implausible) + certified_tables(summary, results.measurements)
        made += attacks.attack_tables(worth)
        made += tables.selective_tables(selective.matched(records), implausible)
        conclusions = claims.conclusions(records, stated, results.measurements)
        return cls(
            results=results,
            summary=summary,
            implausible=implausible,
            diagnosis=diagnosis,
            verdicts=verdicts(results, summary, diagnosis, implausible),
            claims=stated,
            rankings=rankings,
            paragraphs=ranking.ranking_paragraphs(rankings, run) + conclusions,
            claim_tables=list(map(mark, claims.claims_tables(records, stated, results.measurements))),
            measurement_tables=list(map(mark, measurements.measurement_tables(results.measurements))),
            tables=list(map(mark, made)),
        )

    @property
    def budget(self) -> str:
        """What a budget of time has cut, in a sentence; empty where nothing was."""
        return budget_of(self.results.run)

    @property
    def counts(self) -> str:
        """`46 ok, 0 failed, 4 skipped`: number of cells at each ε by status, worst cases not counted."""
        cells = self.summary.loc[self.summary["attack"] != WORST_CASE, "status"].value_counts()
        return ", ".join(f"{cells.get(status, 0)} {status}" for status in ("ok", "failed", "skipped"))

    @property
    def given_up(self) -> str:
        """In how many cells an attack stopped trying on too many inputs, in words; empty where in none."""
        cells = self.summary[self.summary["attack"] != WORST_CASE].to_dict("records")
        marked = sum(bool(effort.effort_note(cell)) for cell in cells)
        limit = f"{effort.LIMIT:.0%}"
        return f"{marked} where the attack stopped trying on more than {limit} of the inputs (‖)" if marked else ""

    @property
    def flags(self) -> dict[tuple[str, str], str]:
        """(data set, defense) → the checks of the diagnosis that it fails."""
        return flags(self.diagnosis)
