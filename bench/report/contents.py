"""The contents of a report: figures, tables and sentences, computed once from the results of a run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import pandas as pd

from manifold_bench.bench.diagnosis.diagnose import Diagnosis, diagnose
from manifold_bench.bench.metrics import effort, optimality, selective
from manifold_bench.bench.metrics.protocols import protocols
from manifold_bench.bench.metrics.ranking import against_others
from manifold_bench.bench.metrics.summary import summary as summary_of
from manifold_bench.bench.planning.claims import Claim, claims_of
from manifold_bench.bench.records.results import Results
from manifold_bench.bench.records.schema import IMAGE_COLUMNS, WORST_CASE
from manifold_bench.bench.report import attacks, claims, measurements, ranking, tables
from manifold_bench.bench.report.assessment import Assessment, assessments, budget_of, left_out_of
from manifold_bench.bench.report.certified import certified_tables
from manifold_bench.bench.report.diagnosis import flags
from manifold_bench.bench.report.protocols import protocol_tables
from manifold_bench.bench.report.table import Table, flagged
from manifold_bench.bench.report.tables import Doubts
from manifold_bench.bench.text import jobs_text


def _shown(table: Table, flags: dict[tuple[str, str], str], budget: str) -> Table:
    """Return the table with the diagnosis' marks on defenses and, in its legend, the cuts made for a time budget."""
    return replace(flagged(table, flags), legend=f"{table.legend} {budget}".rstrip())


@dataclass(frozen=True)
class Report:
    """The contents of a report.

    summary: result of metrics.summary.summary. protocols: result of metrics.protocols.protocols. doubts: (data set,
    defense, norm, ε, figure) → evidence that the attacks were too weak for it. assessments: those of the
    defenses that the run is about. rankings: label of each system that the command line named → sentences that compare
    it with the others. paragraphs: Markdown text on these comparisons and on central claims. claim_tables,
    measurement_tables, tables: all tables; defenses that fail the diagnosis are marked in them.
    """

    results: Results
    summary: pd.DataFrame
    protocols: pd.DataFrame
    doubts: Doubts
    diagnosis: Diagnosis
    assessments: list[Assessment]
    claims: tuple[Claim, ...]
    rankings: dict[str, list[str]]
    paragraphs: list[str]
    claim_tables: list[Table]
    measurement_tables: list[Table]
    tables: list[Table]

    @classmethod
    def of(cls, results: Results) -> Report:
        """Compute the report of a run's results."""
        run = results.run
        records = results.records.drop(columns=list(IMAGE_COLUMNS), errors="ignore")  # large, and no figure needs them
        summary, worth, diagnosis = summary_of(records), optimality.attack_figures(records), diagnose(results)
        doubts, stated = tables.doubts_of(results, summary), claims_of(run, results.folder)
        compared = {name: against_others(records, name) for name in ranking.named_in(run, "defenses")}
        rankings = ranking.named_lines(compared, worth, run)
        mark = partial(_shown, flags=flags(diagnosis), budget=budget_of(run))
        made = [table for name, found in compared.items() for table in ranking.ranking_tables(found, name)]
        made += tables.tables(summary, doubts) + certified_tables(summary, results.measurements)
        judged = protocols(records)
        made += protocol_tables(summary, judged, doubts)
        made += attacks.attack_tables(worth)
        made += tables.selective_tables(selective.matched(records, deployed=summary), doubts)
        conclusions = claims.conclusions(records, stated, results.measurements)
        return cls(
            results=results,
            summary=summary,
            protocols=judged,
            doubts=doubts,
            diagnosis=diagnosis,
            assessments=assessments(results, summary, diagnosis, doubts),
            claims=stated,
            rankings=rankings,
            paragraphs=ranking.ranking_paragraphs(rankings, run) + conclusions,
            claim_tables=list(map(mark, claims.claims_tables(records, stated, results.measurements))),
            measurement_tables=list(map(mark, measurements.measurement_tables(results.measurements))),
            tables=list(map(mark, made)),
        )

    @property
    def budget(self) -> str:
        """A sentence on what was cut so that the run fits its time budget; empty where nothing was cut."""
        return budget_of(self.results.run)

    @property
    def left_out(self) -> list[str]:
        """A line on each part of the run that no figure covers (`left_out_of`)."""
        return left_out_of(self.results)

    @property
    def counts(self) -> str:
        """The number of jobs by status, as on the last line of a run: `32 jobs: 30 ok, 0 failed, 2 skipped`."""
        return jobs_text(self.results.states.values())

    @property
    def given_up(self) -> str:
        """A phrase on how many cells have an attack that stopped trying on too many inputs; empty for none.

        A cell is an attack on a defense at one ε.
        """
        cells = self.summary[self.summary["attack"] != WORST_CASE].to_dict("records")
        marked = sum(bool(effort.effort_note(cell)) for cell in cells)
        number, limit = f"{marked} cell{'s' * (marked > 1)}", f"{effort.LIMIT:.0%}"
        return f"{number} where the attack stopped trying on more than {limit} of the inputs (‖)" if marked else ""

    @property
    def flags(self) -> dict[tuple[str, str], str]:
        """(data set, defense) → titles of the checks of the diagnosis that it fails."""
        return flags(self.diagnosis)
