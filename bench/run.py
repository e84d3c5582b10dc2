"""The command `manifold-bench run --matrix NAME|FILE`: run a matrix, and write records, tables, plots and a report."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from manifold_bench.bench.arguments import run_parser
from manifold_bench.bench.errors import report_errors
from manifold_bench.bench.evaluation.start import start


@report_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 1 if jobs failed."""
    return start(run_parser().parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
