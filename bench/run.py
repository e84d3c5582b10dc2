"""The main command: `manifold-bench run --matrix NAME|FILE` from a matrix to records, tables, plots and a report."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from manifold_bench.bench.arguments import DATA_VARIABLE, checked_device, data_folder, named_device, natural, positive
from manifold_bench.bench.errors import InputError, report_errors
from manifold_bench.bench.planning.narrow import filtered
from manifold_bench.bench.running.execution import Run

if TYPE_CHECKING:
    from rich.console import Console

    from manifold_bench.bench.running.engines.calls import Engine


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="manifold-bench run",
        description="Put defenses through attacks and tell what is left. The same command again runs what is missing.",
        epilog="Exit codes: 0 done, 1 finished with failed jobs, 2 bad input.",
    )
    p.add_argument("--matrix", metavar="NAME|FILE", help="what is crossed: smoke, quick, full, or a TOML file")
    p.add_argument("--out", metavar="DIR|URL", help="output folder, or s3://… (default: results/<matrix>)")
    p.add_argument("--data", type=Path, metavar="DIR", help=f"folder of data files (default: {DATA_VARIABLE})")
    p.add_argument("--n", type=positive, metavar="N", help="test images per data set, instead of the matrix' numbers")
    p.add_argument("--seed", type=natural, metavar="N", help="seed of the attacks, instead of the matrix' seeds")
    p.add_argument("--workers", type=positive, metavar="N", help="parallel jobs (default: the number of cores)")
    p.add_argument("--engine", choices=("local", "ray"), default="local", help="this machine (default), or a cluster")
    p.add_argument("--address", metavar="HOST:PORT", help="of the Ray cluster (default: the one on this machine)")
    p.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, …")
    for kind in ("defense", "attack", "dataset"):
        p.add_argument(
            f"--{kind}", action="append", default=[], metavar="NAME",
            help=f"only this {kind} (repeatable); one that is not in the matrix is added, package.module:Name too",
        )  # fmt: skip
    p.add_argument("--norm", action="append", default=[], metavar="NORM", help="only attacks in this norm (repeatable)")
    p.add_argument("--quiet", action="store_true", help="show failures and the last line alone; log.jsonl has the rest")
    p.add_argument(
        "--diagnose", action=argparse.BooleanOptionalAction,
        help="run the probes of the masking diagnosis too (docs/diagnosis.md), whatever the matrix says",
    )  # fmt: skip
    p.add_argument("--dry-run", action="store_true", help="show the plan and stop")
    return p


@report_errors
def main(arguments: Sequence[str] | None = None) -> int:
    command = parser()
    given = command.parse_args(arguments)
    if not given.matrix:
        raise InputError(
            "--matrix: missing; name a matrix (smoke, quick, full) or a TOML file; `manifold-bench list` names all"
        )
    if given.address and given.engine != "ray":
        raise InputError("--address: only with --engine ray")
    from manifold_bench.bench.running.url_folder import at_hand

    given.out = str(given.out or Path("results") / Path(given.matrix).stem)
    with at_hand(given.out, "--out") as (folder, keep):
        return run_in(folder, given, keep)


def run_in(folder: Path, given: argparse.Namespace, keep: Callable[[], None]) -> int:
    """What was asked for, in a folder of this machine; keep: is called when there is something new in it."""
    from rich.console import Console

    from manifold_bench.bench.running.stamp import asked, stand

    console = Console()
    if not console.is_terminal:
        console = Console(width=110)  # a log file has no width of its own
    request = asked(given)
    if not given.dry_run and (told := stand(folder, request)):
        return show_finished(told, folder, given.out, console, given.quiet)
    from manifold_bench.bench.planning.reading import read_matrix
    from manifold_bench.bench.planning.refs import Options

    matrix = read_matrix(given.matrix)
    if given.seed is not None:
        matrix = dataclasses.replace(matrix, seeds=(given.seed,))
    if given.diagnose is not None:
        matrix = dataclasses.replace(matrix, diagnose=given.diagnose)
    device = named_device(given.device) if given.engine == "ray" else checked_device(given.device)
    options = Options(data_folder(given.data), given.n, device)
    chosen = filtered(matrix, given)
    named = {
        "defenses": [choice.label for choice in chosen.defenses] if given.defense else [],
        "attacks": [choice.label for choice in chosen.attacks] if given.attack else [],
    }
    run = Run(
        chosen, matrix, options, folder, chosen_engine(given), console, given.quiet, request, named, given.out, keep
    )
    return run.execute(given.dry_run)


def chosen_engine(given: argparse.Namespace) -> Callable[[], AbstractContextManager[Engine]]:
    """What starts the engine of --engine; raises InputError where it is not installed."""
    if given.engine == "local":
        from manifold_bench.bench.running.engines.local import LocalEngine

        return partial(LocalEngine, given.workers or os.cpu_count() or 1)
    try:
        from manifold_bench.bench.running.engines.ray import RayEngine
    except ImportError as error:
        raise InputError(f"--engine ray: pip install 'manifold-bench[ray]' first ({error})") from error
    return partial(RayEngine, given.address, given.workers)


def show_finished(told: dict[str, str], folder: Path, shown: str, console: Console, quiet: bool) -> int:
    """What a run showed at its end, once more."""
    from rich.text import Text

    from manifold_bench.bench.records.log import LOG, Log

    Log(folder / LOG).event("run found finished", command=sys.argv)
    if not quiet:
        console.print(Text.from_ansi(told["screen"].rstrip()), soft_wrap=True)
    console.print(f"{told['counts']}, finished before; results in {shown}", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
