"""The command `manifold-bench run --matrix NAME|FILE`: run a matrix, and write records, tables, plots and a report."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from manifold_bench.bench.arguments import Parser, duration, natural, positive, size
from manifold_bench.bench.errors import InputError, report_errors
from manifold_bench.bench.planning.folders import DATA_VARIABLE
from manifold_bench.bench.records.log import LOG, Log
from manifold_bench.bench.running.environment import ensure_home
from manifold_bench.bench.running.stamp import finished, request_of
from manifold_bench.bench.running.url_folder import local_folder, page_of
from manifold_bench.bench.text import norm_of

FOLDER = ", or a folder of images by class"


def parser() -> Parser:
    """Return the parser of this command's arguments."""
    p = Parser(
        prog="manifold-bench run",
        description="Attack defenses and measure how robust they are. The same command again runs what is missing.",
        epilog="Exit codes: 0 done, 1 finished with failed jobs, 2 bad input.",
    )
    p.add_argument("--matrix", metavar="NAME|FILE", help="matrix to run: smoke, quick, strong, full, or a TOML file")
    p.add_argument("--out", metavar="DIR|URL", help="output folder, or s3://… (default: results/<matrix>)")
    p.add_argument("--data", type=Path, metavar="DIR", help=f"folder of data files (default: {DATA_VARIABLE})")
    images = "number of test images of each data set, in place of the matrix' numbers"
    p.add_argument("--n", type=positive, metavar="N", help=images)
    p.add_argument("--seed", type=natural, metavar="N", help="seed of the attacks, in place of the matrix' seeds")
    p.add_argument(
        "--workers",
        type=natural,
        metavar="N",
        help="number of parallel jobs (default: the number of cores; 0: all in this process, not isolated)",
    )
    engines = "run on this machine (local, default) or on a Ray cluster (ray)"
    p.add_argument("--engine", choices=("local", "ray"), default="local", help=engines)
    address = "address of the Ray cluster (default: the one on this machine)"
    p.add_argument("--address", metavar="HOST:PORT", help=address)
    p.add_argument("--device", default="cpu", help="device that computes: cpu (default), cuda, cuda:1, …")
    for kind, title, more in (("defense", "defense", ""), ("attack", "attack", ""), ("dataset", "data set", FOLDER)):
        only = f"run only this {title} (repeatable); may be outside the matrix: a name, package.module:Class{more}"
        p.add_argument(f"--{kind}", action="append", default=[], metavar="NAME", help=only)
    norms = "run only attacks in this norm (repeatable)"
    p.add_argument("--norm", action="append", type=norm_of, default=[], metavar="NORM", help=norms)
    sizes = "perturbation size, as 0.1 or 8/255, in place of the matrix' sizes of one norm (repeatable)"
    p.add_argument("--eps", action="append", type=size, default=[], metavar="SIZE", help=sizes)
    p.add_argument("--quiet", action="store_true", help="show only failures and the last line; log.jsonl has the rest")
    probes = "run or leave out the probes of the masking diagnosis (docs/diagnosis.md), whatever the matrix says"
    p.add_argument("--diagnose", action=argparse.BooleanOptionalAction, help=probes)
    p.add_argument(
        "--export", type=Path, metavar="DIR", help="write every adversarial image to .npz files in this folder"
    )
    p.add_argument("--dry-run", action="store_true", help="show the plan and how long it would take, and run nothing")
    fitting = "time for the run, as 90s, 30min or 2h: use fewer images, and then fewer iterations, until it fits"
    p.add_argument("--budget", type=duration, metavar="TIME", help=fitting)
    return p


main = report_errors(lambda arguments=None: run_command(arguments))


def run_command(arguments: Sequence[str] | None = None, temporary: bool = False) -> int:
    """Run the command with these arguments, or those of the process; return the exit code. Raises InputError.

    temporary: whether the output folder is deleted at the end of the program; no line names it then.
    """
    given = parser().parse_args(arguments)
    ensure_home()
    if not given.matrix:
        raise InputError(
            "--matrix: missing; name a matrix (quick, strong, full) or a TOML file; `manifold-bench list` names all"
        )
    if given.address and given.engine != "ray":
        raise InputError("--address: is allowed with --engine ray alone; leave it out, or add --engine ray")
    given.out = str(given.out or Path("results") / Path(given.matrix).stem)
    with local_folder(given.out, "--out") as (folder, upload):
        return run_in(folder, given, upload, temporary)


def run_in(folder: Path, given: argparse.Namespace, upload: Callable[[], None], temporary: bool) -> int:
    """Show a finished run again, or else plan, run and report, in a folder of this machine; return the exit code.

    upload: function that is called whenever the folder has new files. temporary: see `run_command`.
    """
    begun, request = time.time(), request_of(given)
    if not (given.dry_run or given.export) and (shown := finished(folder, request)):
        return show_finished(shown, folder, given)
    # late: `--help` and a finished run wait for neither torch nor pandas
    from manifold_bench.bench.evaluation import evaluate

    return evaluate(folder, given, request, begun, upload, temporary)


def show_finished(shown: dict[str, str], folder: Path, given: argparse.Namespace) -> int:
    """Print again what a finished run printed at its end; return the exit code 0."""
    # late: `--help` does not wait for rich
    from rich.text import Text

    from manifold_bench.bench.terminal import print_line, terminal

    console = terminal()
    Log(folder / LOG).event("run found finished", command=sys.argv)
    if not given.quiet:
        console.print(Text.from_ansi(shown["screen"].rstrip()), soft_wrap=True)
    print_line(console, f"{shown['counts']}; finished before; open {page_of(given.out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
