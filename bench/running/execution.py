"""One execution of a matrix: train what is missing, run the jobs, measure, and report."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manifold_bench.bench.errors import InputError
from manifold_bench.bench.planning.narrow import unique

if TYPE_CHECKING:
    from rich.console import Console

    from manifold_bench.bench.planning.jobs import Job
    from manifold_bench.bench.planning.matrix import Matrix
    from manifold_bench.bench.planning.measurements import MeasurementJob
    from manifold_bench.bench.planning.refs import DatasetRef, DefenseRef, Options, TrainedRef
    from manifold_bench.bench.records.store import Store
    from manifold_bench.bench.running.board import Board
    from manifold_bench.bench.running.borrow import Borrowed
    from manifold_bench.bench.running.engines.calls import Engine


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
        from manifold_bench.bench.records.log import LOG, Log
        from manifold_bench.bench.records.store import Store

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
        from manifold_bench.bench.planning.jobs import make_jobs
        from manifold_bench.bench.records.provenance import provenance
        from manifold_bench.bench.running.board import Board
        from manifold_bench.bench.running.stamp import STAMP
        from manifold_bench.bench.running.url_folder import Keeping

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
        from manifold_bench.bench.planning.refs import dataset_refs

        datasets = dataset_refs(self.matrix, self.options)
        return datasets, self._defense_refs(self.matrix, [ref for ref, _ in datasets])

    def _defense_refs(self, matrix: Matrix, datasets: list[DatasetRef]) -> dict[str, list[DefenseRef]]:
        from manifold_bench.bench.planning.refs import defense_ref

        return {
            ref.name: [defense_ref(choice, ref.load()) for choice in matrix.defenses if choice.defends(ref.name)]
            for ref in datasets
        }

    def _beside(self, jobs: list[Job], datasets: list[tuple[DatasetRef, tuple[int, ...]]], board: Board) -> list[Job]:
        """Jobs of the whole matrix, on these data sets, that don't run now and have their records: from before, or from
        a baseline. What an attack alone is new to takes the clean passes from there, too.
        """
        from manifold_bench.bench.planning.jobs import make_jobs
        from manifold_bench.bench.running.borrow import baseline_folders, borrow, lacking

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
        from manifold_bench.bench.planning.refs import defense_ref
        from manifold_bench.bench.running.board import Work
        from manifold_bench.bench.running.engines.calls import Call
        from manifold_bench.bench.running.training import fit_job
        from manifold_bench.defenses.weights import with_cards

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
        from manifold_bench.bench.records.store import checksum_path
        from manifold_bench.bench.running.board import Work
        from manifold_bench.bench.running.engines.calls import Call
        from manifold_bench.bench.running.job import empty_records, run_job

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
        from manifold_bench.bench.planning.measurements import measurement_jobs
        from manifold_bench.bench.records.measurements import write_index
        from manifold_bench.bench.running.measuring import take

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
        from manifold_bench.bench.records.provenance import uneven_text
        from manifold_bench.bench.records.results import Results
        from manifold_bench.bench.report.screen import print_report
        from manifold_bench.bench.report.writing import write_report
        from manifold_bench.bench.running.board import clock

        report = write_report(Results.load(self.out))
        with self.console.capture() as screen:
            print_report(report, self.console)
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
        from manifold_bench.bench.planning.registry import find
        from manifold_bench.bench.running.stamp import leave, own
        from manifold_bench.defenses.weights import with_cards

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

        from manifold_bench.bench.records.files import atomic_write
        from manifold_bench.bench.records.provenance import provenance

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

        from manifold_bench.bench.planning.jobs import make_jobs

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
        from manifold_bench.bench.planning.measurements import measurement_jobs
        from manifold_bench.bench.records.measurements import status

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
    from manifold_bench.bench.planning.claims import claims_json

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
