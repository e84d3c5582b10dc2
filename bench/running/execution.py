"""Executes a plan: trainings that are missing, reuse of stored records, jobs, and measurements."""

from __future__ import annotations

import dataclasses
import errno
import json
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from manifold_bench.bench.planning.adaptive import undecided
from manifold_bench.bench.planning.folders import cache_folder
from manifold_bench.bench.planning.jobs import Job
from manifold_bench.bench.planning.plan import Plan, matrix_json
from manifold_bench.bench.records import images
from manifold_bench.bench.records.provenance import Reused, provenance, stored_provenance
from manifold_bench.bench.records.results import Results
from manifold_bench.bench.records.store import checksum_path
from manifold_bench.bench.running.board import Work
from manifold_bench.bench.running.engines.calls import Call
from manifold_bench.bench.running.job import changed_inputs, empty_records, job_call
from manifold_bench.bench.running.locks import remove_drafts
from manifold_bench.bench.running.measuring import measure
from manifold_bench.bench.running.reuse import reuse_records
from manifold_bench.bench.running.session import Session
from manifold_bench.bench.running.stamp import STAMP
from manifold_bench.bench.running.training import train_missing
from manifold_bench.bench.text import jobs_text
from manifold_bench.defenses.files import atomic_write
from manifold_bench.defenses.identity import JsonObject


@dataclass(frozen=True)
class Ended:
    """The end of a run. plan: the plan with the weights that were trained. results: everything in the run's folder.

    states: status of each job (ok, failed or skipped). unmeasured: number of failed measurements.
    """

    plan: Plan
    results: Results
    states: list[str]
    unmeasured: int

    @property
    def failed(self) -> bool:
        """Whether a job or a measurement failed."""
        return "failed" in self.states or self.unmeasured > 0

    @property
    def counts(self) -> str:
        """The number of jobs by status, as the report has it, and the data sets that were not found."""
        missing = ", ".join(self.plan.omissions.missing_data)
        return jobs_text(self.states) + (f"; not found: {missing}" if missing else "")


def execute(plan: Plan, session: Session) -> Ended:
    """Run everything of a plan that is missing in the session's folder, which the caller has locked (`run_folder`).

    Raises InputError.
    """
    begun, folder, board = time.time(), session.folder, session.board
    remove_drafts(cache_folder("kernels"))
    (folder / STAMP).unlink(missing_ok=True)
    for line in (*plan.omissions.lines, *plan.small_data):
        board.line(line)
    board.log.event("run started", **provenance(), matrix=plan.matrix.source, workers=board.workers)
    with board:
        plan = train_missing(plan, session)
        others, reused = reuse_records(plan, session)
        session.store.write_index([*others, *plan.jobs])
        _write_run_json(plan, session, begun, (others, reused))
        run_jobs(plan, session)
        unmeasured = measure(plan, session)
    results = Results.load(folder)
    _write_run_json(plan, session, begun, (others, reused), results.distinct_kernels)
    results = dataclasses.replace(results, run=stored_provenance(folder))
    for job in plan.jobs:
        if job.key[:16] not in results.states:
            removed = "was removed while the run was at work; run again"
            raise FileNotFoundError(errno.ENOENT, removed, str(session.store.path(job)))
    states = [results.states[job.key[:16]] for job in plan.jobs]
    skipped = states.count("skipped")
    board.log.event(
        "run finished",
        jobs=len(states) - skipped,
        failed=states.count("failed"),
        skipped=skipped,
        measurements_failed=unmeasured,
        seconds=round(time.time() - begun, 3),
        memory=board.peak,
    )
    return Ended(plan, results, states, unmeasured)


def run_jobs(plan: Plan, session: Session) -> None:
    """Run the jobs that have no records yet: clean passes first, attacks once theirs is stored, long ones first.

    In a crossed matrix every defense meets its first attack before any meets its second, so that a run which is stopped
    early knows something of each.
    """
    store, board = session.store, session.board
    board.learn(plan.jobs)
    waiting = {job.key: job for job in plan.jobs if _is_missing(job, plan, session)}
    runnable = [job for job in plan.jobs if not job.skip]
    stored = len(runnable) - len(waiting)
    if stored:
        board.line(f"{stored} of {len(runnable)} jobs are finished already and stay as they are")
    if again := [job for job in waiting.values() if store.status(job) == "ok"]:
        board.line(f"{len(again)} finished jobs run again, because their images were not kept")
    board.expect({job.key: Work("job", job.title, job) for job in waiting.values()})
    paths = {job.key: store.path(job) for job in plan.jobs}

    def call(job: Job) -> Call:
        made, clean = job_call(job, session.folder, plan.matrix.timeout), paths.get(job.clean_key)
        return dataclasses.replace(made, reads=(*made.reads, clean, checksum_path(clean))) if clean else made

    turns = _turns(plan.jobs) if plan.matrix.crossed else {}

    def urgency(key: str) -> tuple[bool, float]:
        return waiting[key].attack is None, -turns[key] if turns else board.cost(key)

    for outcome in session.run(map(call, waiting.values()), urgency):
        job = waiting[outcome.id]
        if outcome.failure or store.status(job) not in ("ok", "failed"):  # a user's code may have faked the answer
            reason = outcome.failure or "it wrote no records, or records that contradict themselves"
            store.write(job, empty_records(job, "failed", reason))
        rows, _ = store.read(store.path(job))
        if other := changed_inputs(rows, job):
            reason = f"its process read other {other} of data set {job.dataset.name!r} than this one did"
            store.write(job, empty_records(job, "failed", f"{reason}; make them the same whenever they are read"))
            rows, _ = store.read(store.path(job))
        failed = rows["status"].iloc[0] == "failed"
        board.done(job.key, rows["reason"].iloc[0] if failed else None, rows, outcome.memory)


def _turns(jobs: Iterable[Job]) -> dict[str, int]:
    """Return the place of each job, by its key, among the jobs of its defense on its data set."""
    counts: Counter[tuple[str, str]] = Counter()
    turns = {}
    for job in jobs:
        place = job.dataset.name, job.defense.label
        turns[job.key] = counts[place]
        counts[place] += 1
    return turns


def _is_missing(job: Job, plan: Plan, session: Session) -> bool:
    """Return whether a job has to run; write the records of a job that cannot run."""
    store, board = session.store, session.board
    state = store.status(job)
    if (state == "ok" and images.are_kept(job, session.folder)) or (state == "skipped" and job.skip):
        return False
    if state == "damaged":
        board.line(f"damaged records, computed again: {store.path(job)}")
    untrainable = plan.omissions.untrainable.get((job.dataset.name, job.defense.label))
    reason, ending = (job.skip, "skipped") if job.skip else (untrainable, "failed")
    if reason is None:
        return True
    store.write(job, empty_records(job, ending, reason))
    board.log.event(f"job {ending}", title=job.title, key=job.key, reason=reason)
    return False


def _write_run_json(
    plan: Plan,
    session: Session,
    begun: float,
    stored: tuple[list[Job], list[Reused]],
    kernels: list[JsonObject] | None = None,
) -> None:
    """Write run.json: what ran, where, from which code, how long.

    stored: result of `reuse_records`. kernels: None while the run is not finished.
    """
    others, reused = stored
    content = {
        **provenance(),
        "finished": kernels is not None,
        "wall_seconds": round(time.time() - begun, 1),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(begun)),
        "peak_memory": {"run": session.board.peak, "process": session.board.peak_process},  # bytes resident at most
        "workers": session.board.workers,
        "device": plan.options.device,
        "kernels": kernels or [],
        "seeds": list(plan.matrix.seeds),
        "draws": plan.matrix.draws,
        "matrix": matrix_json(plan.matrix, plan.options),
        "named": plan.options.named,
        "missing_data": plan.omissions.missing_data,
        "skipped": plan.omissions.lines,
        "reused": [dataclasses.asdict(one) for one in reused],
        "undecided": [dataclasses.asdict(one) for one in undecided([*others, *plan.jobs])],
        "jobs": [{"title": job.title, "key": job.key, "skipped": job.skip} for job in plan.jobs],
    }
    # a path may hold bytes that are no text, which no reader of JSON takes
    text = json.dumps(content, indent=1, default=str, ensure_ascii=False) + "\n"
    atomic_write(session.folder / "run.json", text.encode("utf-8", "replace"))
