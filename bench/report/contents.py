"""What a report says of a run: figures, tables and sentences, computed once from its results."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from manifold_bench.bench.diagnosis.diagnose import Diagnosis, diagnose
from manifold_bench.bench.metrics.effort import LIMIT, effort_note
from manifold_bench.bench.metrics.optimality import attack_figures
from manifold_bench.bench.metrics.robustness import summary
from manifold_bench.bench.metrics.selective import matched
from manifold_bench.bench.planning.claims import Claim, claims_of
from manifold_bench.bench.records.results import Results
from manifold_bench.bench.records.schema import WORST_CASE
from manifold_bench.bench.report.attacks import attack_tables
from manifold_bench.bench.report.claims import claims_tables, conclusions
from manifold_bench.bench.report.diagnosis import flags
from manifold_bench.bench.report.measurements import measurement_tables
from manifold_bench.bench.report.ranking import named_in, named_lines, ranking_paragraphs, ranking_tables
from manifold_bench.bench.report.table import Table, flagged
from manifold_bench.bench.report.tables import implausible_cells, selective_tables, tables


@dataclass(frozen=True)
class Report:
    """The contents of a report.

    summary: robustness.summary. implausible: evidence of what is too good to be true, by data set, defense, norm, ε and
    figure. rankings: for each system that the command line named, lines on how it compares. paragraphs: Markdown, on
    these and on central claims. claim_tables, measurement_tables, tables: marked where the diagnosis fails a defense.
    """

    results: Results
    summary: pd.DataFrame
    implausible: dict[Any, str]
    diagnosis: Diagnosis
    claims: tuple[Claim, ...]
    rankings: dict[str, list[str]]
    paragraphs: list[str]
    claim_tables: list[Table]
    measurement_tables: list[Table]
    tables: list[Table]

    @classmethod
    def of(cls, results: Results) -> Report:
        """Computes everything that is shown of the results."""
        records, run = results.records, results.run
        figures, attacks, diagnosis = summary(records), attack_figures(records), diagnose(results)
        implausible, claims = implausible_cells(figures), claims_of(run, results.folder)
        mark = partial(flagged, flags=flags(diagnosis))
        made = [table for name in named_in(run, "defenses") for table in ranking_tables(records, name)]
        made += tables(figures, implausible) + attack_tables(attacks) + selective_tables(matched(records), implausible)
        rankings = named_lines(records, attacks, run)
        return cls(
            results=results,
            summary=figures,
            implausible=implausible,
            diagnosis=diagnosis,
            claims=claims,
            rankings=rankings,
            paragraphs=ranking_paragraphs(rankings, run) + conclusions(records, claims, results.measurements),
            claim_tables=list(map(mark, claims_tables(records, claims, results.measurements))),
            measurement_tables=list(map(mark, measurement_tables(results.measurements))),
            tables=list(map(mark, made)),
        )

    @property
    def counts(self) -> str:
        """`46 ok, 0 failed, 4 skipped`: number of cells at each ε by status, worst cases not counted."""
        cells = self.summary.loc[self.summary["attack"] != WORST_CASE, "status"].value_counts()
        return ", ".join(f"{cells.get(status, 0)} {status}" for status in ("ok", "failed", "skipped"))

    @property
    def given_up(self) -> str:
        """In how many cells an attack stopped trying on too many inputs, in words; empty where in none."""
        cells = self.summary[self.summary["attack"] != WORST_CASE].to_dict("records")
        marked = sum(bool(effort_note(cell)) for cell in cells)
        return f"{marked} where the attack stopped trying on more than {LIMIT:.0%} of the inputs (‖)" if marked else ""

    @property
    def flags(self) -> dict[tuple[str, str], str]:
        """(data set, defense) → the checks of the diagnosis that it fails."""
        return flags(self.diagnosis)
