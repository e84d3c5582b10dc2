"""Promote a run to a baseline, with which later runs are compared: `manifold-bench baseline RUN`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from manifold_bench.bench.arguments import Parser
from manifold_bench.bench.errors import InputError, report_errors
from manifold_bench.bench.planning.folders import BASELINES


@report_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (default: sys.argv); return 0, or 2 for bad input."""
    purpose = "Promote a run to a baseline, with which later runs are compared."
    parser = Parser(prog="manifold-bench baseline", description=purpose)
    parser.add_argument("run", type=Path, metavar="RUN", help="output folder of the run")
    parser.add_argument("--name", help=f"name of the baseline in {BASELINES} (default: that of the run's folder)")
    parser.add_argument("--force", action="store_true", help="also promote an unfinished run or one with failed cells")
    given = parser.parse_args(arguments)
    name = given.name or given.run.resolve().name
    if name != Path(name).name or name.startswith("."):
        what = f"--name: {name!r}" if given.name else f"{given.run}: the name of its folder, {name!r},"
        raise InputError(f"{what} is no name of a baseline; give a --name without / that does not begin with a dot")
    # late: `--help` waits for neither pandas nor rich
    from manifold_bench.bench.gate.promotion import promote
    from manifold_bench.bench.planning.folders import check_files
    from manifold_bench.bench.records.results import Results
    from manifold_bench.bench.terminal import print_text, terminal

    console = terminal()
    check_files(given.run)
    for line in promote(Results.load(given.run), BASELINES / name, given.force):
        print_text(console, line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
