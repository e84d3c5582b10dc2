"""The main command: `python -m bench.run --matrix NAME|FILE` from a matrix to records, tables, plots and a report."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bench.arguments import DATA_VARIABLE, checked_device, data_folder, named_device, natural, positive
from bench.errors import InputError, report_errors

if TYPE_CHECKING:
    from rich.console import Console

    from bench.beside import Borrowed
    from bench.engines.calls import Engine
    from bench.matrix import AttackChoice, DefenseChoice, Matrix
    from bench.measurements.job import MeasurementJob
    from bench.plan import DatasetRef, DefenseRef, Job, Options, TrainedRef
    from bench.progress import Board
    from bench.store import Store

C = TypeVar("C", bound="DefenseChoice | AttackChoice")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m bench.run",
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
    p.add_argument("--list", action="store_true", help="show every known data set, defense, attack and matrix")
    return p


@report_errors
def main(arguments: Sequence[str] | None = None) -> int:
    command = parser()
    given = command.parse_args(arguments)
    if given.list:
        return show_list()
    if not given.matrix:
        raise InputError("--matrix: missing; name a matrix (smoke, quick, full) or a TOML file; --list shows all")
    if given.address and given.engine != "ray":
        raise InputError("--address: only with --engine ray")
    from bench.remote import at_hand

    given.out = str(given.out or Path("results") / Path(given.matrix).stem)
    with at_hand(given.out, "--out") as (folder, keep):
        return run_in(folder, given, keep)


def run_in(folder: Path, given: argparse.Namespace, keep: Callable[[], None]) -> int:
    """What was asked for, in a folder of this machine; keep: is called when there is something new in it."""
    from rich.console import Console

    from bench.finished import asked, stand

    console = Console()
    if not console.is_terminal:
        console = Console(width=110)  # a log file has no width of its own
    request = asked(given)
    if not given.dry_run and (told := stand(folder, request)):
        return show_finished(told, folder, given.out, console, given.quiet)
    from bench.matrix import read_matrix
    from bench.plan import Options

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
        from bench.engines.local import LocalEngine

        return partial(LocalEngine, given.workers or os.cpu_count() or 1)
    try:
        from bench.engines.ray import RayEngine
    except ImportError as error:
        raise InputError(f"--engine ray: pip install 'manifold-bench[ray]' first ({error})") from error
    return partial(RayEngine, given.address, given.workers)


def show_finished(told: dict[str, str], folder: Path, shown: str, console: Console, quiet: bool) -> int:
    """What a run showed at its end, once more."""
    from rich.text import Text

    from bench.log import LOG, Log

    Log(folder / LOG).event("run found finished", command=sys.argv)
    if not quiet:
        console.print(Text.from_ansi(told["screen"].rstrip()), soft_wrap=True)
    console.print(f"{told['counts']}, finished before; results in {shown}", highlight=False, soft_wrap=True)
    return 0


def filtered(matrix: Matrix, given: argparse.Namespace) -> Matrix:
    """The matrix cut down to what --defense, --attack, --norm and --dataset name; unknown ones come from the registry.

    A label selects its entry, a name that is nobody's label every entry of that name; the attack "clean" is none. An
    attack that is not in the matrix takes the first norm of the matrix that it works in, with the ε there.
    """
    from bench.matrix import DatasetEntry, attack_by_name, defense_by_name
    from bench.records import CLEAN
    from bench.registry import find, one_of

    datasets, defenses, attacks = matrix.datasets, matrix.defenses, matrix.attacks
    if given.dataset:
        for name in given.dataset:
            find("datasets", name)
        known = {entry.name: entry for entry in datasets}
        datasets = tuple(known.get(name) or DatasetEntry(name=name, n=datasets[0].n) for name in unique(given.dataset))
    if given.defense:
        defenses = selected(defenses, given.defense, defense_by_name)
    if given.attack:
        named = [name for name in given.attack if name != CLEAN]
        attacks = selected(attacks, named, lambda name: attack_by_name(name, matrix.attacks))
    if given.norm:
        norms = dict.fromkeys(str(choice.attack.norm) for choice in attacks)
        for norm in given.norm:
            one_of("--norm", norm, list(norms))
        attacks = tuple(choice for choice in attacks if choice.attack.norm in given.norm)
    return dataclasses.replace(matrix, datasets=datasets, defenses=defenses, attacks=attacks)


def selected(choices: tuple[C, ...], names: Iterable[str], add: Callable[[str], C]) -> tuple[C, ...]:
    """The choices of those labels or else names, each once, in that order; `add` makes what is not there."""
    found: list[C] = []
    for name in names:
        there = (
            [choice for choice in (*found, *choices) if choice.label == name]
            or [choice for choice in (*found, *choices) if choice.name == name]
            or [add(name)]
        )
        found += [choice for choice in there if choice not in found]
    return tuple(found)


def unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def show_list() -> int:
    """Names alone, without importing what they stand for."""
    from defenses.identity import registered

    for kind in ("datasets", "defenses", "attacks", "measurements"):
        print(f"{kind}:")
        for name, point in registered(kind).items():
            adapter = kind == "attacks" and name in ("art", "foolbox")
            print(f"  {name + ':ClassName' if adapter else name:<20} {point.value}")
    print("matrices:")
    for path in sorted((Path(__file__).parent / "matrices").glob("*.toml")):
        print(f"  {path.stem}")
    return 0


class Run:
    """One execution of a matrix: plan, jobs, records, report.

    matrix: what runs. whole: the matrix that it was filtered from: what of it is stored already is shown beside.
    request: what was asked of it, for whoever asks the same again (`finished.asked`).
    named: labels of the "defenses" and "attacks" that the command line named: the report says how they stand.
    out: the run's folder; shown: what the user calls it. keep: is called when there is something new in it.
    """

    def __init__(
        self,
        matrix: Matrix,
        whole: Matrix,
        options: Options,
        out: Path,
        engine: Callable[[], AbstractContextManager[Engine]],
        console: Console,
        quiet: bool,
        request: dict[str, Any],
        named: dict[str, list[str]],
        shown: str,
        keep: Callable[[], None],
    ) -> None:
        from bench.log import LOG, Log
        from bench.store import Store

        self.matrix = matrix
        self.whole = whole
        self.options = options
        self.out = out
        self.engine = engine
        self.shown = shown
        self.keep = keep
        self.console = console
        self.quiet = quiet
        self.request = request
        self.store: Store = Store(out)
        self.log = Log(out / LOG)
        self.name = Path(matrix.source).stem
        self.named = named
        self.borrowed: list[Borrowed] = []
        self.kernels: list[dict[str, Any]] = []
        self.begun = time.time()

    def execute(self, dry_run: bool) -> int:
        """Runs what is missing and writes the report; returns the exit code."""
        if dry_run:
            self._show_plan()
            return 0
        from bench.finished import STAMP
        from bench.plan import make_jobs
        from bench.progress import Board
        from bench.provenance import provenance
        from bench.remote import Keeping

        with self.engine() as bare:  # its processes start while the data are read here
            datasets, refs = self._contents()
            self._writable()
            self.workers = bare.workers
            engine = Keeping(bare, self.keep)
            (self.out / STAMP).unlink(missing_ok=True)
            self.log.event("run started", **provenance(), matrix=self.matrix.source, workers=self.workers)
            with Board(self.console, self.workers, self.log, self.quiet) as board:
                failures = self._train(engine, board, [ref for ref, _ in datasets], refs)
                jobs = make_jobs(self.matrix, self.options, datasets, refs)
                beside = self._beside(jobs, datasets, board)
                self.store.write_index([*beside, *jobs])
                self._write_run_json(jobs, board, finished=False)
                self.keep()
                self._run_jobs(engine, board, jobs, failures)
                unmeasured = self._measure(engine, board, [ref for ref, _ in datasets], refs, failures)
        states = {job.key: self.store.status(job) for job in jobs}
        self.kernels = self.store.all_kernels()
        self._write_run_json(jobs, board, finished=True)
        return self._report(jobs, states, unmeasured, board, refs)

    def _writable(self) -> None:
        try:
            self.store.folder.mkdir(parents=True, exist_ok=True)
            probe = self.store.folder / f".{os.getpid()}.probe"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise InputError(f"--out: {self.shown} cannot be written to ({error.strerror})") from error

    def _contents(self) -> tuple[list[tuple[DatasetRef, tuple[int, ...]]], dict[str, list[DefenseRef]]]:
        """The data sets of the matrix with the chosen images, and the defenses for each."""
        from bench.plan import dataset_refs

        datasets = dataset_refs(self.matrix, self.options)
        return datasets, self._defense_refs(self.matrix, [ref for ref, _ in datasets])

    def _defense_refs(self, matrix: Matrix, datasets: list[DatasetRef]) -> dict[str, list[DefenseRef]]:
        from bench.plan import defense_ref

        return {
            ref.name: [defense_ref(choice, ref.load()) for choice in matrix.defenses if choice.defends(ref.name)]
            for ref in datasets
        }

    def _beside(self, jobs: list[Job], datasets: list[tuple[DatasetRef, tuple[int, ...]]], board: Board) -> list[Job]:
        """Jobs of the whole matrix, on these data sets, that don't run now and have their records: from before, or from
        a baseline. What an attack alone is new to takes the clean passes from there, too.
        """
        from bench.beside import baseline_folders, borrow, lacking
        from bench.plan import make_jobs

        if self.whole == self.matrix:
            return []
        defenses = {choice.label: choice for choice in (*self.whole.defenses, *self.matrix.defenses)}
        attacks = {(choice.label, choice.attack.norm): choice for choice in (*self.whole.attacks, *self.matrix.attacks)}
        joined = dataclasses.replace(self.whole, defenses=tuple(defenses.values()), attacks=tuple(attacks.values()))
        refs = self._defense_refs(joined, [ref for ref, _ in datasets])
        running = {job.key for job in jobs}
        others = [job for job in make_jobs(joined, self.options, datasets, refs) if job.key not in running]
        folders = [folder for folder in baseline_folders(self.name) if folder.resolve() != self.out.resolve()]
        clean = [job for job in jobs if job.attack is None and self.matrix.defenses == self.whole.defenses]
        self.borrowed = borrow([*others, *clean], self.store, folders)
        stored = [job for job in others if self.store.status(job) in ("ok", "failed", "skipped")]
        known = {choice.label for choice in self.whole.defenses}, {choice.label for choice in self.whole.attacks}
        missing = [job for job in others if job not in stored and not job.skip]
        missing = [
            job for job in missing if job.defense.label in known[0] and (not job.attack or job.label in known[1])
        ]
        for line in (*self.borrowed, *lacking(missing, folders)):
            board.line(str(line))
        return stored

    def _train(
        self, engine: Engine, board: Board, datasets: list[DatasetRef], refs: dict[str, list[DefenseRef]]
    ) -> dict[tuple[str, str], str]:
        """Trains what has no weights yet, once where several defenses share them; returns why one has none even so."""
        from bench.engines.calls import Call
        from bench.plan import defense_ref
        from bench.progress import Work
        from bench.train import fit_job
        from defenses.weights import with_cards

        sharing: dict[Path, list[tuple[DatasetRef, DefenseRef]]] = {}
        missing: dict[Path, tuple[str, TrainedRef]] = {}
        for dataset in datasets:
            for ref in refs[dataset.name]:
                for part, untrained in ref.untrained.items():
                    assert untrained.weights is not None
                    missing.setdefault(untrained.weights, (part, untrained))
                    sharing.setdefault(untrained.weights, []).append((dataset, ref))
        titles = {
            path: f"{missing[path][1].told}{', '.join(ref.label for _, ref in pairs)} on {pairs[0][0].name}"
            for path, pairs in sharing.items()
        }
        calls = [
            Call(
                path, fit_job, (ref, missing[path][0], dataset, self.options.device, self.log, titles[path]),
                timeout=None, after=tuple(part.weights for name, part in missing[path][1].untrained.items() if name),
                reads=(*dataset.load().files, *with_cards(missing[path][1].files)), writes=path.parent,
                log=self.log.path,
                needs=self.matrix.needs(self.options.device, *self.matrix.resources_of(ref.label)),
            )
            for path, ((dataset, ref), *_) in sharing.items()
        ]  # fmt: skip
        failures: dict[tuple[str, str], str] = {}
        board.expect({str(path): Work("training", title) for path, title in titles.items()})
        for title in titles.values():
            board.line(f"training {title}: no weights in the zoo or the cache yet")
        for outcome in engine.run(calls):
            board.done(str(outcome.id), outcome.failure)
            if outcome.failure:
                for dataset, ref in sharing[outcome.id]:
                    failures.setdefault((dataset.name, ref.label), f"training failed: {outcome.failure}")
        for dataset in datasets:
            by_label = {choice.label: choice for choice in self.matrix.defenses}
            refs[dataset.name] = [
                ref if ref.trained or (dataset.name, ref.label) in failures
                else defense_ref(by_label[ref.label], dataset.load())
                for ref in refs[dataset.name]
            ]  # fmt: skip
        return failures

    def _run_jobs(self, engine: Engine, board: Board, jobs: list[Job], failures: dict[tuple[str, str], str]) -> None:
        """Clean passes first, attacks once theirs is stored, long ones first; what is stored already is left alone."""
        from bench.engines.calls import Call
        from bench.job import empty_records, run_job
        from bench.progress import Work
        from bench.store import checksum_path

        waiting = []
        board.learn(jobs)
        for job in jobs:
            state = self.store.status(job)
            if state == "ok" or (state == "skipped" and job.skip):
                continue
            if state == "damaged":
                board.line(f"damaged records, computed again: {self.store.path(job)}")
            if job.skip:
                self.store.write(job, empty_records(job, "skipped", job.skip))
                self.log.event("job skipped", title=job.title, key=job.key, reason=job.skip)
            elif (job.dataset.name, job.defense.label) in failures:
                reason = failures[job.dataset.name, job.defense.label]
                self.store.write(job, empty_records(job, "failed", reason))
                self.log.event("job failed", title=job.title, key=job.key, reason=reason)
            else:
                waiting.append(job)
        runnable = [job for job in jobs if not job.skip]
        stored = len(runnable) - len(waiting)
        if stored:
            board.line(f"{stored} of {len(runnable)} jobs are finished already and stay as they are")
        board.expect({job.key: Work("job", job.title, job) for job in waiting})
        by_key = {job.key: job for job in waiting}
        paths = {job.key: self.store.path(job) for job in jobs}

        def call(job: Job) -> Call:
            clean = paths.get(job.clean_key)
            reads = (*job.reads, *((clean, checksum_path(clean)) if clean else ()))
            return Call(
                job.key, run_job, (job, self.out), self.matrix.timeout, after=(job.clean_key,), reads=reads,
                writes=self.out, log=self.log.path, needs=job.needs,
            )  # fmt: skip

        def urgency(key: str) -> tuple[bool, float]:
            return by_key[key].attack is None, board.cost(key)

        for outcome in engine.run(map(call, waiting), urgency):
            job = by_key[outcome.id]
            if outcome.failure:
                self.store.write(job, empty_records(job, "failed", outcome.failure))
            rows, _ = self.store.read(self.store.path(job))
            failed = rows["status"].iloc[0] == "failed"
            board.done(job.key, rows["reason"].iloc[0] if failed else None, rows)

    def _known(self, datasets: list[DatasetRef], refs: dict[str, list[DefenseRef]]) -> dict[str, list[DefenseRef]]:
        """The defenses of the whole matrix: what a measurement computes with may be one that was filtered out."""
        return refs if self.whole == self.matrix else self._defense_refs(self.whole, datasets)

    def _measure(
        self,
        engine: Engine,
        board: Board,
        datasets: list[DatasetRef],
        refs: dict[str, list[DefenseRef]],
        failures: dict[tuple[str, str], str],
    ) -> int:
        """Takes the measurements of the matrix that are missing; returns how many failed."""
        from bench.measurements.job import measurement_jobs, take, write_index

        known = self._known(datasets, refs)
        jobs = measurement_jobs(self.matrix, self.options, datasets, refs, known)
        keys = {job.key for job in jobs}
        beside: list[MeasurementJob] = []
        if self.whole != self.matrix:
            of_whole = measurement_jobs(self.whole, self.options, datasets, known, known)
            beside = [job for job in of_whole if job.key not in keys]
        write_index([*jobs, *beside], self.out)
        return take(jobs, self.out, engine, board, self.matrix.timeout, failures)

    def _report(
        self,
        jobs: list[Job],
        states: dict[str, str],
        unmeasured: int,
        board: Board,
        refs: dict[str, list[DefenseRef]],
    ) -> int:
        from bench.diagnosis.base import flags, print_diagnosis
        from bench.progress import clock
        from bench.provenance import uneven_text
        from bench.report import write_report
        from bench.standing import print_standing
        from bench.tables import print_tables

        summary, diagnosis, named = write_report(self.out)
        with self.console.capture() as screen:
            print_tables(summary, self.console, flags(diagnosis))
            print_diagnosis(diagnosis, self.console)
            print_standing(named, self.console)
        if not self.quiet:
            self.console.file.write(screen.get())
        failed = [job for job in jobs if states[job.key] not in ("ok", "skipped")]
        skipped = sum(state == "skipped" for state in states.values())
        seconds = time.time() - self.begun
        counts = f"{len(jobs) - skipped} jobs ({len(failed)} failed), {skipped} skipped"
        self.console.print(f"{counts}, {clock(seconds)} min; results in {self.shown}", highlight=False, soft_wrap=True)
        if unmeasured:
            self.console.print(f"{unmeasured} measurements failed", highlight=False)
        if uneven := uneven_text(self.kernels):
            self.console.print(uneven, highlight=False, markup=False, soft_wrap=True)
        self.log.event(
            "run finished", jobs=len(jobs) - skipped, failed=len(failed), skipped=skipped,
            measurements_failed=unmeasured, seconds=round(seconds, 3), memory=board.peak,
        )  # fmt: skip
        if failed or unmeasured:
            return 1
        self._leave_stamp(refs, {"screen": screen.get(), "counts": counts})
        return 0

    def _leave_stamp(self, refs: dict[str, list[DefenseRef]], told: dict[str, str]) -> None:
        """Lets the same command recognise the finished run; not where code of others takes part, or a part was run."""
        from bench.finished import leave, own
        from bench.registry import find
        from defenses.weights import with_cards

        classes = [find("datasets", entry.name) for entry in self.matrix.datasets]
        classes += [choice.cls for choice in self.matrix.defenses]
        classes += [type(choice.attack) for choice in self.matrix.attacks]
        classes += [type(choice.measurement) for choice in self.matrix.measurements]
        if self.whole == self.matrix and own(classes):
            weights = {file for of_data in refs.values() for ref in of_data for file in ref.files}
            leave(self.out, self.request, with_cards(sorted(weights)), told)

    def _write_run_json(self, jobs: list[Job], board: Board, finished: bool) -> None:
        """Provenance: what ran, where, from which code, how long."""
        import json

        from bench.provenance import provenance
        from bench.store import atomic_write

        content = {
            **provenance(),
            "finished": finished,
            "wall_seconds": round(time.time() - self.begun, 1),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.begun)),
            "peak_memory": {"run": board.peak, "process": board.peak_process},  # bytes resident at most
            "workers": self.workers,
            "device": self.options.device,
            "kernels": self.kernels,
            "seeds": list(self.matrix.seeds),
            "draws": self.matrix.draws,
            "matrix": matrix_json(self.matrix, self.options),
            "named": self.named,
            "borrowed": [dataclasses.asdict(one) for one in self.borrowed],
            "jobs": [{"title": job.title, "key": job.key, "skipped": job.skip} for job in jobs],
        }
        atomic_write(self.out / "run.json", json.dumps(content, indent=1, default=str) + "\n")

    def _show_plan(self) -> None:
        """The plan: jobs, skips with reasons, estimated passes, measurements."""
        from rich import box
        from rich.table import Table

        from bench.plan import make_jobs

        datasets, refs = self._contents()
        jobs = make_jobs(self.matrix, self.options, datasets, refs)
        for dataset in unique(job.dataset.name for job in jobs):
            there = [job for job in jobs if job.dataset.name == dataset]
            table = Table(title=dataset, box=box.SIMPLE, title_justify="left")
            for column in ("defense", "attack", "norm", "ε"):
                table.add_column(column, overflow="fold")
            table.add_column("n", justify="right")
            table.add_column("passes", justify="right")
            table.add_column("state", overflow="fold")
            for job in there:
                eps = "" if job.attack is None else " ".join(f"{value:g}" for value in job.eps)
                state = f"skipped: {job.skip}" if job.skip else self._state(job)
                passes = "" if job.skip else f"{job.passes:,.0f}"
                label = f"{job.label}, seed {job.seed}" if len(self.matrix.seeds) > 1 else job.label
                table.add_row(job.defense.label, label, job.norm if job.attack else "", eps, str(job.n), passes, state)
            self.console.print(table)
        runnable = [job for job in jobs if not job.skip]
        total = sum(job.passes for job in runnable)
        self.console.print(
            f"{len(runnable)} jobs, {len(jobs) - len(runnable)} skipped, at most {total:,.0f} passes through a defense",
            highlight=False,
        )
        self._show_measurements([ref for ref, _ in datasets], refs)

    def _show_measurements(self, datasets: list[DatasetRef], refs: dict[str, list[DefenseRef]]) -> None:
        from bench.measurements.job import measurement_jobs, status

        for job in measurement_jobs(self.matrix, self.options, datasets, refs, self._known(datasets, refs)):
            state = f"skipped: {job.skip}" if job.skip else "finished" if status(job, self.out) == "ok" else "to run"
            self.console.print(f"measurement {job.title}: {state}", highlight=False, markup=False)

    def _state(self, job: Job) -> str:
        if not job.defense.trained:
            return "to run, after training its defense"
        return {"ok": "finished", "missing": "to run", "failed": "failed before: to run again"}.get(
            self.store.status(job), "to run again"
        )


def matrix_json(matrix: Matrix, options: Options) -> dict[str, Any]:
    """The matrix as it was run, as plain data."""
    from bench.claims.base import claims_json

    return {
        "source": matrix.source,
        "datasets": [{"name": entry.name, "n": options.n or entry.n} for entry in matrix.datasets],
        "defenses": [
            {"name": c.name, "label": c.label, "parameters": c.parameters, "datasets": c.datasets}
            for c in matrix.defenses
        ],
        "attacks": [
            {
                "name": c.name,
                "label": c.label,
                "norm": c.attack.norm,
                "eps": list(c.eps),
                "attack": repr(c.attack),
                "ladder": c.ladder,
                "n": c.n,
                "datasets": c.datasets,
                "defenses": c.defenses,
            }
            for c in matrix.attacks
        ],
        "measurements": [
            {
                "name": c.name,
                "label": c.label,
                "measurement": repr(c.measurement),
                "datasets": c.datasets,
                "defenses": c.defenses,
            }
            for c in matrix.measurements
        ],
        "claims": claims_json(matrix.claims),
        "calibration": matrix.calibration,
        "diagnose": matrix.diagnose,
        "timeout": matrix.timeout,
    }


if __name__ == "__main__":
    sys.exit(main())
