"""Compares a run with a baseline, cell by cell, and passes or fails: `manifold-bench compare BASELINE NEW`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from manifold_bench.bench.arguments import Parser
from manifold_bench.bench.errors import InputError, report_errors
from manifold_bench.bench.metrics.signs import SIGNS


def parser() -> Parser:
    p = Parser(
        prog="manifold-bench compare",
        description=__doc__,
        epilog=f"Signs: {', '.join(f'{sign} {meaning}' for sign, meaning in SIGNS.items())}. "
        "Exit codes: 0 the gate passes, 1 it fails (-, !, ?, a broken limit, nothing compared), 2 bad input, "
        "3 no single cell fails, but all of them together are worse.",
    )
    p.add_argument("baseline", metavar="BASELINE", help="folder or URL of the run to compare with")
    p.add_argument("new", metavar="NEW", help="folder or URL of the run to judge")
    limit = "also fail where a figure of a cell or worst case is worse by more, as robust_accuracy:2pp, error:5%%, "
    limit += "passes:1.5x (repeatable)"
    p.add_argument("--fail-on", action="append", default=[], metavar="FIGURE:LIMIT", help=limit)
    p.add_argument("--markdown", type=Path, metavar="FILE", help="write a page for a pull request")
    p.add_argument("--junit", type=Path, metavar="FILE", help="write JUnit XML: a test case for each cell")
    return p


@report_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns 0 where the gate passes, 1 or 3 where it fails (`Gate.exit_code`), 2 for bad input."""
    given = parser().parse_args(arguments)
    # late: --help waits for none of it
    from manifold_bench.bench.gate.gate import Gate, junit_gate, markdown_gate, print_gate
    from manifold_bench.bench.gate.limits import Limit
    from manifold_bench.bench.records.results import Results
    from manifold_bench.bench.running.url_folder import local_folder
    from manifold_bench.bench.terminal import terminal

    limits = [Limit.parse(text) for text in dict.fromkeys(given.fail_on)]
    with local_folder(given.baseline, "BASELINE") as (baseline, _), local_folder(given.new, "NEW") as (new, _):
        gate = Gate.of(Results.load(baseline), Results.load(new), limits)
    print_gate(gate, terminal())
    if given.markdown:
        write(given.markdown, "--markdown", markdown_gate(gate))
    if given.junit:
        write(given.junit, "--junit", junit_gate(gate).tostring().decode())
    return gate.exit_code


def write(path: Path, option: str, text: str) -> None:
    """Write a text to a file, and make its folder where there is none; raises InputError where that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{option}: {path} cannot be written to ({error.strerror})") from error


if __name__ == "__main__":
    sys.exit(main())
