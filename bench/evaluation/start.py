"""The command `run` with its arguments read: show a finished run again, or else plan, execute and report."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from manifold_bench.bench.errors import InputError
from manifold_bench.bench.records.log import LOG, Log
from manifold_bench.bench.running.environment import ensure_home
from manifold_bench.bench.running.stamp import request_of, stored_output
from manifold_bench.bench.running.url_folder import local_folder, page_of


def start(given: argparse.Namespace, temporary: bool = False) -> int:
    """Run the command with these arguments; return the exit code. Raises InputError.

    temporary: whether the output folder is deleted at the end of the program; no line names it then.
    """
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

    upload: function that is called whenever the folder has new files. temporary: see `start`.
    """
    begun, request = time.time(), request_of(given)
    if not (given.dry_run or given.export) and (output := stored_output(folder, request)):
        return print_again(output, folder, given)
    # late: `--help` and a finished run wait for neither torch nor pandas
    from manifold_bench.bench.evaluation.evaluate import evaluate

    return evaluate(folder, given, request, begun, upload, temporary)


def print_again(output: dict[str, str], folder: Path, given: argparse.Namespace) -> int:
    """Print again what a finished run printed at its end; return the exit code 0."""
    # late: `--help` does not wait for rich
    from rich.text import Text

    from manifold_bench.bench.terminal import print_line, terminal

    console = terminal()
    Log(folder / LOG).event("run found finished", command=sys.argv)
    if not given.quiet:
        console.print(Text.from_ansi(output["screen"].rstrip()), soft_wrap=True)
    print_line(console, f"{output['counts']}; finished before; open {page_of(given.out)}")
    return 0
