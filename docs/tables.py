"""Write tables of committed records into the pages of docs/results, between their markers: `python docs/tables.py`.

A marker names a folder of records and one table of its report by data set, norm and kind, as the files in a run's
`tables/` are named:

    <!-- table: results/baselines/selective mnist5k linf robustness -->
    <!-- end of table -->
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from manifold_bench.bench.records.results import Results
from manifold_bench.bench.report.contents import Report
from manifold_bench.bench.report.table import Table, markdown_grid, markdown_text

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs" / "results").glob("*.md"))
BLOCK = re.compile(r"(<!-- table: (\S+) (.+?) -->\n).*?(?=<!-- end of table -->)", re.S)


def updated(page: str) -> str:
    """The page with every table as the committed records have it now."""
    return BLOCK.sub(lambda found: found[1] + as_markdown(found[2], found[3]), page)


def as_markdown(folder: str, name: str) -> str:
    """One table of a folder's report with its notes, without a title."""
    tables = {" ".join(table.name): table for table in tables_of(folder)}
    if name not in tables:
        raise SystemExit(f"{folder} has no table {name!r}; it has {', '.join(map(repr, tables))}")
    table = tables[name]
    notes = [f"- ({number}) {markdown_text(note)}" for number, note in enumerate(table.notes, 1)]
    return "\n".join([*markdown_grid(table.header, table.rows), *(["", *notes] if notes else []), ""])


@cache
def tables_of(folder: str) -> list[Table]:
    """All tables of the report of a folder, relative to the checkout."""
    report = Report(Results.load(ROOT / folder))
    return [*report.claim_tables, *report.measurement_tables, *report.tables]


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(updated(path.read_text(encoding="utf-8")), encoding="utf-8")
