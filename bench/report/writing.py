"""A report as files, rebuilt from a run's results alone: `manifold-bench report DIR`."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from manifold_bench.bench.records.results import Results
    from manifold_bench.bench.report.contents import Report
    from manifold_bench.bench.report.table import Table


def write_report(results: Results) -> Report:
    """Writes summary.csv, diagnosis.json, tables/, plots/ (.svg and .png), report.md and report.html into the folder.

    What an earlier report left in tables/ and plots/ is replaced. Raises InputError where run.json is damaged.
    """
    # late: until a run is finished, nothing needs the libraries that draw and test
    from manifold_bench.bench.records.store import file_name
    from manifold_bench.bench.report.claims import claims_plots
    from manifold_bench.bench.report.contents import Report
    from manifold_bench.bench.report.diagnosis import diagnosis_tables
    from manifold_bench.bench.report.html.page import write_page
    from manifold_bench.bench.report.measurements import measurement_plots
    from manifold_bench.bench.report.plots import write_plots
    from manifold_bench.bench.report.table import latex, markdown
    from manifold_bench.defenses.files import atomic_write

    report, folder = Report.of(results), results.folder
    report.summary.to_csv(folder / "summary.csv", index=False)
    atomic_write(folder / "diagnosis.json", json.dumps(report.diagnosis, indent=1, ensure_ascii=False) + "\n")
    # a table or plot of cells that are no longer in the run would pass for one of this run
    for pattern in ("tables/*.md", "tables/*.tex", "plots/*.svg", "plots/*.png"):
        for old in folder.glob(pattern):
            old.unlink()
    (folder / "tables").mkdir(exist_ok=True)
    tables = [
        *report.claim_tables, *report.measurement_tables, *report.tables, *diagnosis_tables(report.diagnosis)
    ]  # fmt: skip
    for table in tables:
        name = file_name(*table.name)
        (folder / "tables" / f"{name}.md").write_text(markdown(table), encoding="utf-8")
        (folder / "tables" / f"{name}.tex").write_text(latex(table), encoding="utf-8")
    further = chain(claims_plots(results.records, report.claims), measurement_plots(results.measurements))
    plots = write_plots(results, report.summary, folder / "plots", further)
    (folder / "report.md").write_text(_page(report, tables, plots), encoding="utf-8")
    write_page(report)
    return report


def _page(report: Report, tables: list[Table], plots: list[Path]) -> str:
    """report.md: cells by status, how named systems compare, conclusions on central claims, every table and plot."""
    from manifold_bench.bench.report.table import markdown

    head = f"# Report\n\nCells (data set, defense, attack, norm, ε): {report.counts}. All figures: `summary.csv`.\n"
    parts = [head, *(f"{paragraph}\n" for paragraph in report.paragraphs), *map(markdown, tables)]
    return "\n".join([*parts, *(f"![{plot.stem}](plots/{plot.name})\n" for plot in plots)])
