"""The contents of a report: figures, tables and sentences, computed once from the results of a run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import pandas as pd

from manifold_bench.bench.diagnosis.diagnose import Diagnosis, diagnose
from manifold_bench.bench.metrics import effort, optimality, selective
from manifold_bench.bench.metrics.protocols import protocols
from manifold_bench.bench.metrics.ranking import against_others
from manifold_bench.bench.metrics.summary import summary_of
from manifold_bench.bench.planning.claims import Claim, claims_of
from manifold_bench.bench.records.results import Results
from manifold_bench.bench.records.schema import IMAGE_COLUMNS, WORST_CASE
from manifold_bench.bench.report import attacks, claims, measurements, ranking, tables
from manifold_bench.bench.report.assessment import Assessment, assessments, budget_of, left_out_of
from manifold_bench.bench.report.certified import certified_tables
from manifold_bench.bench.report.diagnosis import flags
from manifold_bench.bench.report.html.reproduce import matrix_name
from manifold_bench.bench.report.protocols import protocol_tables
from manifold_bench.bench.report.ranking import Comparison
from manifold_bench.bench.report.table import Table, flagged
from manifold_bench.bench.report.tables import Doubts
from manifold_bench.bench.text import jobs_text


@dataclass(frozen=True)
class Report:
    """The contents of a report; each part is computed once, when it is first used."""

    results: Results

    @cached_property
    def records(self) -> pd.DataFrame:
        """The records without the image columns, which are large and used by no figure."""
        return self.results.records.drop(columns=list(IMAGE_COLUMNS), errors="ignore")

    @cached_property
    def summary(self) -> pd.DataFrame:
        """The result of metrics.summary.summary_of."""
        return summary_of(self.results)

    @cached_property
    def protocols(self) -> pd.DataFrame:
        """The result of metrics.protocols.protocols."""
        return protocols(self.records)

    @cached_property
    def doubts(self) -> Doubts:
        """(data set, defense, norm, ε, figure) → evidence that the attacks were too weak for it."""
        return tables.doubts_of(self.results, self.summary)

    @cached_property
    def diagnosis(self) -> Diagnosis:
        """The diagnosis of every defense."""
        return diagnose(self.results)

    @cached_property
    def assessments(self) -> list[Assessment]:
        """The assessments of the defenses that the run is about."""
        return assessments(self.results, self.summary, self.diagnosis, self.doubts)

    @cached_property
    def claims(self) -> tuple[Claim, ...]:
        """The claims of the matrix."""
        return claims_of(self.results.run, self.results.folder)

    @cached_property
    def conclusions(self) -> list[str]:
        """Markdown text on central claims."""
        return claims.conclusions(self.records, self.claims, self.results.measurements, self.doubts)

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """How the systems that the command line named compare with the others."""
        return ranking.comparisons(self._named, self._attacks, self.results.run)

    @property
    def reused(self) -> list[str]:
        """A sentence on each baseline whose records the run took."""
        return ranking.reused_lines(self.results.run)

    @property
    def own(self) -> list[str]:
        """The defenses that the command line named, by label; none where the run has no other ones."""
        return ranking.own_defenses(self.results.run, self.summary["defense"])

    @cached_property
    def claim_tables(self) -> list[Table]:
        """The tables of claims."""
        made = claims.claims_tables(self.records, self.claims, self.results.measurements, self.doubts)
        return list(map(self._shown, made))

    @cached_property
    def measurement_tables(self) -> list[Table]:
        """The tables of measurements."""
        return list(map(self._shown, measurements.measurement_tables(self.results.measurements)))

    @cached_property
    def tables(self) -> list[Table]:
        """All other tables."""
        made = [table for name, found in self._named.items() for table in ranking.ranking_tables(found, name)]
        made += tables.tables(self.summary, self.doubts)
        made += certified_tables(self.summary, self.results.measurements)
        made += protocol_tables(self.summary, self.protocols, self.doubts)
        made += attacks.attack_tables(self._attacks)
        made += tables.selective_tables(selective.matched(self.records, deployed=self.summary), self.doubts)
        return list(map(self._shown, made))

    @cached_property
    def _named(self) -> dict[str, pd.DataFrame]:
        """Label of each defense that the command line named → its comparison with the others."""
        return {name: against_others(self.records, name) for name in ranking.named_in(self.results.run, "defenses")}

    @cached_property
    def _attacks(self) -> pd.DataFrame:
        """The result of metrics.optimality.attack_figures."""
        return optimality.attack_figures(self.records)

    def _shown(self, table: Table) -> Table:
        """Return the table with marks on defenses that fail the diagnosis, and cuts for a time budget in its legend."""
        return replace(flagged(table, self.flags), legend=f"{table.legend} {self.budget}".rstrip())

    @property
    def origin(self) -> str:
        """A sentence on the date, matrix and code version of the run; empty where it has no run.json."""
        run = self.results.run
        if not run:
            return ""
        state = "" if run["finished"] else ", not finished"
        return (
            f"Run of {run['started'][:10]}{state}: matrix {matrix_name(run['matrix']['source'])}, code {run['code']}."
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

    @cached_property
    def flags(self) -> dict[tuple[str, str], str]:
        """(data set, defense) → what the checks of the diagnosis that it fails have found."""
        return flags(self.diagnosis)
