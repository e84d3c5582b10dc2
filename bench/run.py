"""The command `manifold-bench run --matrix NAME|FILE`: run a matrix, and write records, tables, plots and a report."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from manifold_bench.bench.arguments import (
    Parser,
    checked_device,
    duration,
    named_device,
    natural,
    positive,
    seconds_of,
    size,
)
from manifold_bench.bench.errors import InputError, report_errors
from manifold_bench.bench.planning.folders import DATA_VARIABLE, data_folder
from manifold_bench.bench.records.log import LOG, Log
from manifold_bench.bench.running.environment import ensure_home
from manifold_bench.bench.running.locks import run_folder
from manifold_bench.bench.running.stamp import code_of_users, finished, hash_of, request_of, write_stamp
from manifold_bench.bench.running.url_folder import local_folder
from manifold_bench.bench.text import norm_of
from manifold_bench.defenses.files import atomic_write

if TYPE_CHECKING:
    from rich.console import Console

    from manifold_bench.bench.planning.matrix import Matrix
    from manifold_bench.bench.planning.plan import Plan
    from manifold_bench.bench.records.results import Results
    from manifold_bench.bench.report.contents import Report
    from manifold_bench.bench.running.engines.calls import Engine
    from manifold_bench.bench.running.forecast import Forecaster

BUDGETS = "budget.json"
"""Name of the file in a run's folder that says how the matrix was cut for each budget."""

FOLDER = ", or a folder of images by class"

# Imports inside functions, because `--help` and a finished run should not wait for torch, pandas and rich


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
    """Plan, run and report in a folder of this machine; return the exit code.

    upload: function that is called whenever the folder has new files. temporary: see `run_command`.
    """
    from manifold_bench.bench.terminal import terminal

    console = terminal()
    begun, request = time.time(), request_of(given)
    if not (given.dry_run or given.export) and (shown := finished(folder, request)):
        return show_finished(shown, folder, given, console)
    from manifold_bench.bench.planning.plan import Options, make_plan
    from manifold_bench.bench.records.images import export
    from manifold_bench.bench.records.provenance import uneven_text
    from manifold_bench.bench.records.store import Store
    from manifold_bench.bench.report.plan import print_plan
    from manifold_bench.bench.running.board import Board, clock
    from manifold_bench.bench.running.engines.local import usable_cpus
    from manifold_bench.bench.running.execution import execute
    from manifold_bench.bench.running.forecast import Forecaster
    from manifold_bench.bench.running.session import Session
    from manifold_bench.bench.terminal import print_text
    from manifold_bench.defenses.weights import with_cards

    matrix, whole = matrices(given)
    device = named_device(given.device) if given.engine == "ray" else checked_device(given.device)
    options = Options(data_folder(given.data), given.n, device, bool(given.export))
    named = {
        "defenses": [choice.label for choice in matrix.defenses] if given.defense else [],
        "attacks": [choice.label for choice in matrix.attacks] if given.attack else [],
        "datasets": given.dataset,
    }
    forecaster = Forecaster(device, given.workers or usable_cpus())
    if given.dry_run:
        plan = planned_within(make_plan(matrix, options, whole, named), folder, given, forecaster)
        print_plan(plan, folder, console, forecaster.forecast(plan, Store(folder)))
        return 0
    with ExitStack() as held:  # nobody else writes to the folder before the report is there
        with chosen_engine(given) as engine:  # its processes start while the data are read here
            plan = make_plan(matrix, options, whole, named)
            code = code_of_users(plan.systems)
            held.enter_context(run_folder(folder))
            plan = planned_within(plan, folder, given, forecaster)
            if plan.matrix.budget and not given.quiet:
                print_text(console, plan.matrix.budget)
            board = Board(console, engine.workers, Log(folder / LOG), given.quiet)
            ended = execute(plan, Session(folder, engine, board, upload))
        with writing(console, given.quiet):
            report = report_of(ended.results)
        screen = shown_report(report, console, given.quiet)
        counts = f"{ended.counts}, {report.given_up}" if report.given_up else ended.counts
        if given.export:
            count = export(ended.results, (job.key[:16] for job in ended.plan.jobs), given.export)
            console.print(f"{count} files of adversarial images in {given.export}", highlight=False, soft_wrap=True)
        if ended.unmeasured:
            console.print(f"{ended.unmeasured} measurements failed", highlight=False)
        if uneven := uneven_text(ended.results.distinct_kernels):
            console.print(uneven, highlight=False, markup=False, soft_wrap=True)
        where = 'result.report("folder") writes the report' if temporary else f"open {report_page(given)}"
        ending = f"{counts}, {clock(time.time() - begun)} min; {where}"
        print_ending(ending, console)
        if ended.failed or ended.unmeasured:
            return 1
        if code is not None and not plan.is_cut and not plan.missing_data:
            weights = {str(path.resolve()): hash_of(path) for path in with_cards(ended.plan.weights)}
            write_stamp(folder, request, code | weights, {"screen": screen, "counts": counts})
        return 0


def matrices(given: argparse.Namespace) -> tuple[Matrix, Matrix]:
    """Return the matrix cut down to the systems that the command line names, and the whole matrix."""
    from manifold_bench.bench.datasets.given import dataset_of_folder
    from manifold_bench.bench.planning.narrow import narrowed
    from manifold_bench.bench.planning.reading import read_matrix

    dataset_of_folder.cache_clear()  # since an earlier run of this process, images may have changed
    matrix = read_matrix(given.matrix)
    if given.seed is not None:
        matrix = dataclasses.replace(matrix, seeds=(given.seed,))
    if given.diagnose is not None:
        matrix = dataclasses.replace(matrix, diagnose=given.diagnose)
    return narrowed(matrix, given.dataset, given.defense, given.attack, given.norm, given.eps), matrix


def planned_within(plan: Plan, folder: Path, given: argparse.Namespace, forecaster: Forecaster) -> Plan:
    """Return the plan cut down to --budget, or the plan itself if there is no budget.

    The cut is stored in the run's folder, so that the same command later continues with the same plan.
    """
    if given.budget is None:
        return plan
    from manifold_bench.bench.planning.budget import Cut, plan_within
    from manifold_bench.bench.planning.plan import matrix_json
    from manifold_bench.bench.records.files import parsed
    from manifold_bench.bench.records.store import Store
    from manifold_bench.defenses.identity import key_of

    path = folder / BUDGETS
    request = {"budget": given.budget, "matrix": matrix_json(plan.matrix, plan.options), "device": given.device}
    key = key_of(json.loads(json.dumps(request, default=str)))
    try:
        known = parsed(path.read_bytes(), dict[str, Cut])
        stored = known.get(key)
    except (OSError, ValueError):
        known, stored = {}, None

    def needed(one: Plan) -> float:
        return forecaster.forecast(one, Store(folder)).total

    cut_plan, cut = plan_within(plan, given.budget, seconds_of(given.budget), stored, needed)
    if stored is None and not given.dry_run:
        cuts = {name: dataclasses.asdict(one) for name, one in (known | {key: cut}).items()}
        atomic_write(path, json.dumps(cuts, indent=1) + "\n")
    return cut_plan


def chosen_engine(given: argparse.Namespace) -> AbstractContextManager[Engine]:
    """Return the engine that --engine and --workers name; raises InputError if it is not installed."""
    if given.workers == 0:
        from manifold_bench.bench.running.engines.serial import SerialEngine

        return nullcontext(SerialEngine())
    if given.engine == "local":
        from manifold_bench.bench.running.engines.local import LocalEngine, usable_cpus

        return LocalEngine(given.workers or usable_cpus())
    try:
        from manifold_bench.bench.running.engines.ray import RayEngine
    except ImportError as error:
        raise InputError(f"--engine ray: pip install 'manifold-bench[ray]' first ({error})") from error
    return RayEngine(given.address, given.workers)


def writing(console: Console, quiet: bool) -> AbstractContextManager[object]:
    """Show that the report is being written: on a terminal while that takes place, elsewhere as one line."""
    text = "writing the report …"
    if quiet:
        return nullcontext()
    if console.is_terminal:
        return console.status(text)
    console.print(text)
    return nullcontext()


def report_of(results: Results) -> Report:
    """Write the report of a run into its folder, and return it."""
    from manifold_bench.bench.report.writing import write_report

    return write_report(results)


def shown_report(report: Report, console: Console, quiet: bool) -> str:
    """Print the main tables of a report unless quiet, and return them as text."""
    from manifold_bench.bench.report.screen import print_report

    with console.capture() as screen:
        print_report(report, console)
    if not quiet:
        console.file.write(screen.get())
    return screen.get()


def print_ending(text: str, console: Console) -> None:
    """Print the last line of a run: wrapped on a terminal, one line elsewhere."""
    from manifold_bench.bench.terminal import print_text

    if console.is_terminal:
        print_text(console, text)
    else:
        console.print(text, highlight=False, markup=False, soft_wrap=True)


def report_page(given: argparse.Namespace) -> str:
    """Return the path or URL of report.html."""
    return f"{given.out.rstrip('/')}/report.html"


def show_finished(shown: dict[str, str], folder: Path, given: argparse.Namespace, console: Console) -> int:
    """Print again what a finished run printed at its end; return the exit code 0."""
    from rich.text import Text

    Log(folder / LOG).event("run found finished", command=sys.argv)
    if not given.quiet:
        console.print(Text.from_ansi(shown["screen"].rstrip()), soft_wrap=True)
    ending = f"{shown['counts']}, finished before; open {report_page(given)}"
    print_ending(ending, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
