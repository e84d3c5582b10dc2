"""The second half of the command `run`, for runs that are not finished: plan, execute, report."""

from __future__ import annotations

import dataclasses
import inspect
import json
import time
from argparse import Namespace
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path

from rich.console import Console

from manifold_bench.bench.arguments import seconds_of
from manifold_bench.bench.datasets.given import Given, dataset_of_folder
from manifold_bench.bench.errors import InputError
from manifold_bench.bench.planning.budget import Cut, plan_within
from manifold_bench.bench.planning.folders import data_folder
from manifold_bench.bench.planning.matrix import Matrix
from manifold_bench.bench.planning.narrow import narrowed
from manifold_bench.bench.planning.plan import Options, Plan, check_attacked, make_plan, matrix_json
from manifold_bench.bench.planning.reading import read_matrix
from manifold_bench.bench.planning.usercode import working_folder
from manifold_bench.bench.records.files import parsed
from manifold_bench.bench.records.images import check_export, export
from manifold_bench.bench.records.log import LOG, Log
from manifold_bench.bench.records.provenance import uneven_text
from manifold_bench.bench.records.results import Results
from manifold_bench.bench.records.store import Store
from manifold_bench.bench.report.contents import Report
from manifold_bench.bench.report.plan import print_plan
from manifold_bench.bench.report.screen import print_report
from manifold_bench.bench.report.writing import write_report
from manifold_bench.bench.running.board import Board, clock
from manifold_bench.bench.running.devices import checked_device, named_device
from manifold_bench.bench.running.engines.calls import Engine
from manifold_bench.bench.running.engines.fork_server import serving
from manifold_bench.bench.running.engines.local import LocalEngine, usable_cpus
from manifold_bench.bench.running.engines.serial import SerialEngine
from manifold_bench.bench.running.execution import execute
from manifold_bench.bench.running.forecast import Forecaster
from manifold_bench.bench.running.locks import run_folder
from manifold_bench.bench.running.session import Session
from manifold_bench.bench.running.stamp import hash_of, write_stamp
from manifold_bench.bench.running.url_folder import page_of
from manifold_bench.bench.terminal import print_line, print_text, terminal
from manifold_bench.defenses.files import atomic_write, checked_file
from manifold_bench.defenses.identity import JsonObject, key_of, source_files
from manifold_bench.defenses.models import Handed
from manifold_bench.defenses.weights import with_cards

WEIGHTS = (".bin", ".ckpt", ".h5", ".npy", ".npz", ".onnx", ".pkl", ".pt", ".pth", ".safetensors")
"""Endings of files from which users' code takes weights."""

BUDGETS = "budget.json"
"""Name of the file in a run's folder that says how the matrix was cut for each budget."""


@serving()
def evaluate(
    folder: Path, given: Namespace, request: JsonObject, begun: float, upload: Callable[[], None], temporary: bool
) -> int:
    """Plan, run and report in a folder of this machine; return the exit code.

    request: what results depend on, as it was before the run. begun: time at which the command started. upload:
    function that is called whenever the folder has new files. temporary: see `start`.
    """
    console = terminal()
    matrix, whole = matrices(given)
    device = named_device(given.device) if given.engine == "ray" else checked_device(given.device)
    named = {
        "defenses": [choice.label for choice in matrix.defenses] if given.defense else [],
        "attacks": [choice.label for choice in matrix.attacks] if given.attack else [],
        "datasets": given.dataset,
    }
    options = Options(data_folder(given.data), given.n, device, bool(given.export), named)
    if matrix.crossed and not given.quiet:
        print_text(console, "planning: defenses whose number of operations is not known answer one image …")
    forecaster = Forecaster(device, given.workers or usable_cpus())
    if given.dry_run:
        plan = make_plan(matrix, options, whole)
        check_attacked(plan)
        plan = plan_within_budget(plan, folder, given, forecaster)
        print_plan(plan, folder, console, forecaster.forecast(plan, Store(folder)))
        return 0
    if given.export:
        check_export(given.export)
    with ExitStack() as held:  # nobody else writes to the folder before the report is there
        with chosen_engine(given) as engine:  # its processes start while the data are read here
            plan = make_plan(matrix, options, whole)
            check_attacked(plan)
            code = code_of_users(plan.systems)
            held.enter_context(run_folder(folder))
            plan = plan_within_budget(plan, folder, given, forecaster)
            if plan.matrix.budget and not given.quiet:
                print_text(console, plan.matrix.budget)
            board = Board(console, engine.workers, Log(folder / LOG), given.quiet)
            ended = execute(plan, Session(folder, engine, board, upload))
        report, screen = write_and_print_report(ended.results, console, given.quiet)
        counts = f"{ended.counts}; {report.given_up}" if report.given_up else ended.counts
        if given.export:
            count = export(ended.results, (job.key[:16] for job in ended.plan.jobs), given.export)
            console.print(
                f"{count} file{'s' * (count != 1)} of adversarial images in {given.export}",
                highlight=False,
                soft_wrap=True,
            )
        if ended.unmeasured:
            console.print(f"{ended.unmeasured} measurements failed", highlight=False)
        if uneven := uneven_text(ended.results.distinct_kernels):
            console.print(uneven, highlight=False, markup=False, soft_wrap=True)
        where = 'result.report("folder") writes the report' if temporary else f"open {page_of(given.out)}"
        print_line(console, f"{counts}; {clock(time.time() - begun)} min; {where}")
        if ended.failed:
            return 1
        if code is not None and not plan.is_cut and not plan.omissions.missing_data:
            known = [*with_cards(ended.plan.weights), *files_of_weights(code)]
            weights = {str(path.resolve()): hash_of(path) for path in known}
            write_stamp(folder, request, code | weights, {"screen": screen, "counts": counts})
        return 0


def matrices(given: Namespace) -> tuple[Matrix, Matrix]:
    """Return the matrix cut down to the systems that the command line names, and the whole matrix."""
    dataset_of_folder.cache_clear()  # since an earlier run of this process, images may have changed
    matrix = read_matrix(given.matrix, given.dataset)
    if given.seed is not None:
        matrix = dataclasses.replace(matrix, seeds=(given.seed,))
    if given.diagnose is not None:
        matrix = dataclasses.replace(matrix, diagnose=given.diagnose)
    return narrowed(matrix, given.dataset, given.defense, given.attack, given.norm, given.eps), matrix


def plan_within_budget(plan: Plan, folder: Path, given: Namespace, forecaster: Forecaster) -> Plan:
    """Return the plan cut down to --budget, or the plan itself if there is no budget.

    The cut is stored in the run's folder, so that the same command later continues with the same plan.
    """
    if given.budget is None:
        return plan
    path = folder / BUDGETS
    request = {"budget": given.budget, "matrix": matrix_json(plan.matrix, plan.options), "device": given.device}
    key = key_of(json.loads(json.dumps(request, default=str)))
    try:
        known = parsed(checked_file(path).read_bytes(), dict[str, Cut])
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


def chosen_engine(given: Namespace) -> AbstractContextManager[Engine]:
    """Return the engine that --engine and --workers name; raises InputError if it is not installed."""
    if given.workers == 0:
        return nullcontext(SerialEngine())
    if given.engine == "local":
        return LocalEngine(given.workers or usable_cpus())
    try:
        # late: an extra
        from manifold_bench.bench.running.engines.ray import RayEngine
    except ImportError as error:
        raise InputError(f"--engine ray: pip install 'manifold-bench[ray]' first ({error})") from error
    return RayEngine(given.address, given.workers)


def write_and_print_report(results: Results, console: Console, quiet: bool) -> tuple[Report, str]:
    """Write the report of a run into its folder, and print its main tables unless quiet.

    Return the report, and these tables as text. While the report is being written, a terminal says so; elsewhere that
    is one line.
    """
    text = "writing the report …"
    if not (quiet or console.is_terminal):
        console.print(text)
    with console.status(text) if console.is_terminal and not quiet else nullcontext():
        report = write_report(results)
    with console.capture() as screen:
        print_report(report, console)
    if not quiet:
        console.file.write(screen.get())
    return report, screen.get()


def files_of_weights(code: Iterable[str]) -> list[Path]:
    """Return the files from which users' code may take weights: those next to it, and those in the working folder.

    code: paths of its files.
    """
    folders = {str(Path(file).parent) for file in code}
    if folders and (here := working_folder()):
        folders.add(here)
    return [path for folder in sorted(folders) for path in sorted(Path(folder).iterdir()) if path.suffix in WEIGHTS]


def code_of_users(systems: Iterable[tuple[str, type]]) -> dict[str, str] | None:
    """Return the hash of every file of users' code that systems run; a system is its name in the matrix and its class.

    It is None if a class is neither in this project nor in a user's file, because no hash covers it; for a plain model,
    because its weights may come from any file; and for a folder of images, because images may be added to it.
    """
    found: dict[str, str] = {}
    for name, cls in systems:
        if isinstance(cls, Handed) or issubclass(cls, Given):
            return None
        if cls.__module__.startswith("manifold_bench."):
            continue
        named = [name.partition(":")[0]] if ":" in name else []
        files = source_files([*named, *(base.__module__ for base in cls.__mro__)])
        if Path(inspect.getfile(cls)).resolve() not in files:
            return None
        found |= {str(path): hash_of(path) for path in files}
    return found
