"""Everything a run shows, rebuilt from its records alone: `manifold-bench report DIR`."""

from __future__ import annotations

from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from manifold_bench.bench.diagnosis.diagnose import Diagnosis
    from manifold_bench.bench.report.table import Table


def write_report(folder: Path) -> tuple[pd.DataFrame, Diagnosis, dict[str, list[str]]]:
    """Writes summary.csv, diagnosis.json, tables/, plots/ (.svg and .png), report.md and report.html.

    Returns the summary, the diagnosis, and how the systems named on the command line stand (`standing.named_lines`).

    folder: a run's output folder. What an earlier report left in tables/ and plots/ is replaced.
    Raises InputError where there are no records or a file of them is damaged.
    """
    from manifold_bench.bench.diagnosis.diagnose import write_diagnosis
    from manifold_bench.bench.metrics.optimality import attack_figures
    from manifold_bench.bench.metrics.robustness import summary
    from manifold_bench.bench.metrics.selective import matched
    from manifold_bench.bench.planning.claims import claims_of
    from manifold_bench.bench.records.measurements import load
    from manifold_bench.bench.records.provenance import stored_provenance
    from manifold_bench.bench.records.store import Store, file_name
    from manifold_bench.bench.report.attacks import attack_tables
    from manifold_bench.bench.report.claims import claims_plots, claims_tables, verdict_paragraphs
    from manifold_bench.bench.report.diagnosis import diagnosis_tables, flags
    from manifold_bench.bench.report.html.page import write_page
    from manifold_bench.bench.report.measurements import measurement_plots, measurement_tables
    from manifold_bench.bench.report.plots import write_plots
    from manifold_bench.bench.report.ranking import named_in, named_lines, standing_paragraphs, standing_tables
    from manifold_bench.bench.report.table import flagged, latex, markdown
    from manifold_bench.bench.report.tables import selective_tables, tables

    records, identities = Store(folder).load()
    figures = summary(records)
    figures.to_csv(folder / "summary.csv", index=False)
    # a table or plot of cells that are no longer in the run would pass for one of this run
    for pattern in ("tables/*.md", "tables/*.tex", "plots/*.svg", "plots/*.png"):
        for old in folder.glob(pattern):
            old.unlink()
    (folder / "tables").mkdir(exist_ok=True)
    claims, measurements = claims_of(folder), load(folder)
    run = stored_provenance(folder)
    diagnosis = write_diagnosis(folder)
    mark = partial(flagged, flags=flags(diagnosis))
    of_claims = list(map(mark, claims_tables(records, claims, measurements)))
    of_measurements = list(map(mark, measurement_tables(measurements)))
    of_attacks = [table for name in named_in(run, "defenses") for table in standing_tables(records, name)]
    of_attacks += tables(figures) + attack_tables(attack_figures(records)) + selective_tables(matched(records), figures)
    of_attacks = list(map(mark, of_attacks))
    made = [*of_claims, *of_measurements, *of_attacks, *diagnosis_tables(diagnosis)]
    for table in made:
        name = file_name(*table.name)
        (folder / "tables" / f"{name}.md").write_text(markdown(table), encoding="utf-8")
        (folder / "tables" / f"{name}.tex").write_text(latex(table), encoding="utf-8")
    further = chain(claims_plots(records, claims), measurement_plots(measurements))
    plots = write_plots(records, figures, identities, folder / "plots", further)
    named = named_lines(records, run)
    verdicts = standing_paragraphs(named, run) + verdict_paragraphs(records, claims, measurements)
    (folder / "report.md").write_text(_page(figures, verdicts, made, plots), encoding="utf-8")
    pictures = [(r["dataset"], r["defense"], r["measurement"]) for r in measurements if "pictures" in r]
    write_page(folder, records, identities, figures, run, verdicts, of_claims, of_measurements, of_attacks, pictures)
    return figures, diagnosis, named


def _page(summary: pd.DataFrame, verdicts: list[str], made: list[Table], plots: list[Path]) -> str:
    """report.md: cells by status, how named systems stand, verdicts on central claims, every table, every plot."""
    from manifold_bench.bench.report.html.page import cell_counts
    from manifold_bench.bench.report.table import markdown

    parts = [
        f"# Report\n\nCells (data set, defense, attack, norm, ε): {cell_counts(summary)}. All figures: `summary.csv`.\n"
    ]
    parts += [f"{paragraph}\n" for paragraph in verdicts]
    parts += [markdown(table) for table in made]
    parts += [f"![{plot.stem}](plots/{plot.name})\n" for plot in plots]
    return "\n".join(parts)
