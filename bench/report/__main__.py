"""Rebuild everything that a run shows from its records: `manifold-bench report DIR`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from manifold_bench.bench.arguments import Parser
from manifold_bench.bench.errors import report_errors
from manifold_bench.bench.report.garbage import uncollected
from manifold_bench.bench.running.url_folder import local_folder


@report_errors
@uncollected()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (default: sys.argv); return 0, or 2 for bad input."""
    parser = Parser(prog="manifold-bench report", description="Rebuild everything that a run shows from its records.")
    parser.add_argument("folder", metavar="DIR|URL", help="a run's output folder, which holds records/")
    given = parser.parse_args(arguments).folder
    # late: `--help` waits for neither pandas nor rich
    from manifold_bench.bench.records.results import Results
    from manifold_bench.bench.report.screen import print_report
    from manifold_bench.bench.report.writing import write_report
    from manifold_bench.bench.terminal import print_text, terminal

    with local_folder(given, "DIR") as (folder, _):
        report = write_report(Results.load(folder))
    for line in filter(None, [report.budget, *report.left_out]):
        print_text(terminal(), line)
    print_report(report, terminal())
    print(f"report.html, report.md, summary.csv, diagnosis.json, tables/ and plots/ are in {given}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
