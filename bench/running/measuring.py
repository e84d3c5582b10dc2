"""Runs the measurements of a plan."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from manifold_bench.bench.errors import interruption
from manifold_bench.bench.planning.measurements import MeasurementJob
from manifold_bench.bench.planning.plan import Plan
from manifold_bench.bench.records.log import LOG, Log
from manifold_bench.bench.records.measurements import FOLDER, Outcome, path_of, read, status, store, write_index
from manifold_bench.bench.running.board import Work
from manifold_bench.bench.running.engines.calls import Call
from manifold_bench.bench.running.failures import write_traceback
from manifold_bench.bench.running.session import Session
from manifold_bench.defenses.checks import check_figures
from manifold_bench.defenses.errors import one_line


def measure(plan: Plan, session: Session) -> int:
    """Run the measurements of a plan that have no result in the run's folder yet; return how many failed."""
    folder, board = session.folder, session.board
    write_index([*plan.measurements, *plan.other_measurements], folder)
    waiting, broken = {}, plan.omissions.untrainable
    for job in plan.measurements:
        needed = [(job.dataset.name, ref.label) for ref in (job.defense, *job.others)]
        if job.skip:
            store(job, folder, Outcome("skipped", job.skip))
        elif untrained := [broken[pair] for pair in needed if pair in broken]:
            store(job, folder, Outcome("failed", untrained[0]))
        elif status(job, folder) != "ok":
            waiting[job.key] = job
    board.expect({key: Work("measurement", job.title) for key, job in waiting.items()})
    call = partial(Call, function=run_measurement, timeout=plan.matrix.timeout, writes=folder, log=folder / LOG)
    calls = [call(key, arguments=(job, folder), reads=job.reads, needs=job.needs) for key, job in waiting.items()]
    for outcome in session.run(calls):
        job = waiting[outcome.id]
        if outcome.failure or status(job, folder) not in ("ok", "failed"):  # a user's code may have faked the answer
            store(job, folder, Outcome("failed", outcome.failure or "it wrote no result, or a damaged one"))
        board.done(outcome.id, read(path_of(job, folder))["reason"], memory=outcome.memory)
    return sum(status(job, folder) not in ("ok", "skipped") for job in plan.measurements)


def run_measurement(job: MeasurementJob, folder: Path) -> None:
    """Run a measurement and store its values in the run's folder; an exception becomes the reason of a failure."""
    Log(folder / LOG).event("measurement started", title=job.title, key=job.key, pid=os.getpid())
    try:
        others = {ref.label: ref.load(job.device) for ref in job.others}
        defense, data = job.defense.load(job.device), job.dataset.load()
        values = check_figures(job.measurement, "measure", job.measurement.measure(defense, others, data, job.seed))
        pictures = job.measurement.pictures(defense, data, job.seed)
    except interruption():
        raise  # in the command's own process the user wants it to end; elsewhere it is what the call raised
    except BaseException as error:  # it is a user's code: it may raise what ends a process
        store(job, folder, Outcome("failed", one_line(error)))
        write_traceback(folder / FOLDER, path_of(job, folder).stem)
        return
    store(job, folder, Outcome("ok", "", values, pictures))
