"""Writes a report into the folder of a run, from the stored results alone: `manifold-bench report DIR`."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import chain
from pathlib import Path

from manifold_bench.bench.records.results import Results
from manifold_bench.bench.records.store import file_name
from manifold_bench.bench.report.assessment import Assessment
from manifold_bench.bench.report.certified import certified_plots
from manifold_bench.bench.report.claims import claims_plots
from manifold_bench.bench.report.contents import Report
from manifold_bench.bench.report.diagnosis import diagnosis_tables
from manifold_bench.bench.report.garbage import uncollected
from manifold_bench.bench.report.html.page import write_page
from manifold_bench.bench.report.measurements import measurement_plots
from manifold_bench.bench.report.plots import Drawn, run_plots, write_plots
from manifold_bench.bench.report.ranking import Comparison, named_in
from manifold_bench.bench.report.table import Table, csv, latex, markdown, markdown_text
from manifold_bench.bench.text import printable
from manifold_bench.defenses.files import atomic_write, with_path_in_errors


@uncollected()
def write_report(results: Results) -> Report:
    """Write summary.csv, diagnosis.json, tables/, plots/, report.md and report.html into the run's folder.

    protocols.csv is written where defenses are randomized. Tables and plots of an earlier report are deleted. Returns
    the report; raises InputError where run.json is damaged.
    """
    report = Report(results)
    # before anything is written, because damaged files are found here
    tables = [*report.claim_tables, *report.measurement_tables, *report.tables]
    of_diagnosis = diagnosis_tables(report.diagnosis)
    tables += [replace(one, legend=f"{one.legend} {report.budget}".rstrip()) for one in of_diagnosis]
    _ = report.protocols, report.assessments, report.comparisons, report.conclusions
    with with_path_in_errors(results.folder):  # a full disk does not say so itself
        _write(report, tables, results.folder)
    return report


def _write(report: Report, tables: list[Table], folder: Path) -> None:
    (folder / "summary.csv").write_text(csv(report.summary), encoding="utf-8")
    atomic_write(folder / "diagnosis.json", json.dumps(report.diagnosis, indent=1, ensure_ascii=False) + "\n")
    # old files may show cells that are no longer in the run
    for pattern in ("protocols.csv", "tables/*.md", "tables/*.tex", "plots/*.svg", "plots/*.png"):
        for old in folder.glob(pattern):
            old.unlink()
    if len(report.protocols):
        (folder / "protocols.csv").write_text(csv(report.protocols), encoding="utf-8")
    (folder / "tables").mkdir(exist_ok=True)
    for table in tables:
        name = file_name(*table.name)
        (folder / "tables" / f"{name}.md").write_text(markdown(table), encoding="utf-8")
        (folder / "tables" / f"{name}.tex").write_text(latex(table), encoding="utf-8")
    own = named_in(report.results.run, "defenses")
    plots = chain(
        run_plots(report.results, report.summary),
        certified_plots(report.summary, report.results.measurements, own),
        claims_plots(report.results.records, report.claims),
        measurement_plots(report.results.measurements, own),
    )
    drawn = write_plots(plots, folder / "plots")
    (folder / "report.md").write_text(_page(report, tables, drawn), encoding="utf-8")
    write_page(report, drawn)


def _assessment(assessment: Assessment) -> str:
    """Return an assessment as Markdown: a heading, a list of its sentences, and the command."""
    sentences = "\n".join(f"- {markdown_text(sentence)}" for sentence in assessment.sentences)
    command = f"\n      {printable(assessment.command)}\n" if assessment.command else ""
    return f"## {markdown_text(assessment.title)}\n\n{sentences}\n{command}"


def _comparison(comparison: Comparison) -> str:
    """Return a comparison as Markdown: a heading, a list of its sentences, and what has to be known to read them."""
    sentences = "\n".join(f"- {markdown_text(sentence)}" for sentence in comparison.sentences)
    about = f"\n{comparison.about}\n" if comparison.about else ""
    return f"## {markdown_text(comparison.title)}\n\n{sentences}\n{about}"


def _page(report: Report, tables: list[Table], plots: list[Drawn]) -> str:
    """Return the text of report.md: origin, assessments, comparisons, conclusions on claims, tables and plots."""
    head = f"# Report\n\n{markdown_text(f'{report.origin} {report.counts}'.lstrip())}. All figures: `summary.csv`.\n"
    head += "".join(f"\n{markdown_text(line)}\n" for line in [report.budget, *report.left_out, *report.reused] if line)
    parts = [
        head,
        *map(_assessment, report.assessments),
        *map(_comparison, report.comparisons),
        *(f"{markdown_text(paragraph)}\n" for paragraph in report.conclusions),
        *map(markdown, tables),
    ]
    return "\n".join([*parts, *(f"![{plot.svg.stem}](plots/{plot.svg.name})\n" for plot in plots)])
