"""Compare a run with a baseline, cell by cell, and pass or fail: `manifold-bench compare BASELINE NEW`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from manifold_bench.bench.arguments import Parser
from manifold_bench.bench.errors import InputError, report_errors
from manifold_bench.bench.metrics.signs import SIGNS
from manifold_bench.bench.planning.folders import BASELINES
from manifold_bench.bench.running.url_folder import local_folder


def parser() -> Parser:
    p = Parser(
        prog="manifold-bench compare",
        description="Compare a run with a baseline, cell by cell, and pass or fail.",
        epilog=f"Signs: {', '.join(f'{sign} {meaning}' for sign, meaning in SIGNS.items())}. "
        "Exit codes: 0 pass, 1 fail (-, !, ?, a broken limit, or no cell could be compared), 2 bad input, "
        "3 fail, because all cells together are worse although no single one fails.",
    )
    p.add_argument("baseline", metavar="BASELINE", help="folder or URL of the run to compare with")
    p.add_argument("new", metavar="NEW", help="folder or URL of the new run")
    limit = "also fail if this figure of a cell or worst case gets worse by more than LIMIT, such as "
    limit += "robust_accuracy:2pp, error:5%%, passes:1.5x (repeatable)"
    p.add_argument("--fail-on", action="append", default=[], metavar="FIGURE:LIMIT", help=limit)
    p.add_argument("--markdown", type=Path, metavar="FILE", help="write a Markdown page for a pull request")
    p.add_argument("--junit", type=Path, metavar="FILE", help="write JUnit XML, a test case for each cell")
    return p


@report_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (default: sys.argv).

    Returns 0 where the gate passes, 1 or 3 where it fails (`Gate.exit_code`), and 2 for bad input.
    """
    given = parser().parse_args(arguments)
    # late: `--help` waits for neither pandas nor rich
    from manifold_bench.bench.gate.gate import Gate
    from manifold_bench.bench.gate.limits import Limit
    from manifold_bench.bench.gate.shown import junit_gate, markdown_gate, print_gate
    from manifold_bench.bench.records.results import Results
    from manifold_bench.bench.terminal import terminal

    limits = [Limit.parse(text) for text in dict.fromkeys(given.fail_on)]
    with local_folder(given.baseline, "BASELINE") as (baseline, _), local_folder(given.new, "NEW") as (new, _):
        for option, path in (("--markdown", given.markdown), ("--junit", given.junit)):
            if path:
                check_spares(path, option, baseline, new)
        gate = Gate(Results.load(baseline), Results.load(new), limits)
    advice = "" if gate.passes or not gate.promotable else promotion(given.baseline, given.new)
    print_gate(gate, terminal(), advice)
    if given.markdown:
        write(given.markdown, "--markdown", markdown_gate(gate))
    if given.junit:
        write(given.junit, "--junit", junit_gate(gate).tostring().decode())
    return gate.exit_code


def promotion(baseline: str, new: str) -> str:
    """Return a line on how a new run becomes the baseline where the change is meant. Both: as in the arguments."""
    name = Path(baseline).name if Path(baseline).parent.resolve() == BASELINES.resolve() else "NAME"
    run = "the folder of NEW" if "://" in new else shlex.quote(new)
    return f"If this change is meant, promote the new run: manifold-bench baseline {run} --name {shlex.quote(name)}"


def check_spares(path: Path, option: str, *runs: Path) -> None:
    """Check that a file to write is not one that a run needs; raises InputError.

    option: name of the command line option that gave the path, for the message. runs: folders of the runs.
    """
    own = path.is_file() and (path.suffix not in (".md", ".xml") or path.name == "report.md")
    if own and any(path.resolve().is_relative_to(run.resolve()) for run in runs):
        raise InputError(f"{option}: {path} is a file of a run; give another name")


def write(path: Path, option: str, text: str) -> None:
    """Write a text to a file, whose folder is made where it is missing; raises InputError where that fails.

    option: name of the command line option that gave the path, for the message.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="replace")  # as for report.html
    except OSError as error:
        raise InputError(f"{option}: {path} cannot be written to ({error.strerror})") from error


if __name__ == "__main__":
    sys.exit(main())
