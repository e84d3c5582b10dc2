"""Run the measurements that a plan asks for."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path

from manifold_bench.bench.planning.measurements import MeasurementJob
from manifold_bench.bench.records.log import LOG, Log
from manifold_bench.bench.records.measurements import FOLDER, path_of, read, status, store
from manifold_bench.bench.running.board import Board, Work
from manifold_bench.bench.running.engines.calls import Call, Engine


def take(
    jobs: Iterable[MeasurementJob],
    folder: Path,
    engine: Engine,
    board: Board,
    timeout: float,
    failures: Mapping[tuple[str, str], str],
) -> int:
    """Takes the measurements that have no result in the run's folder yet; returns how many failed.

    failures: (data set, defense) → why it could not be trained.
    """
    waiting = {}
    jobs = list(jobs)
    for job in jobs:
        needed = [(job.dataset.name, ref.label) for ref in (job.defense, *job.others)]
        if job.skip:
            store(job, folder, "skipped", job.skip)
        elif untrained := [failures[pair] for pair in needed if pair in failures]:
            store(job, folder, "failed", untrained[0])
        elif status(job, folder) != "ok":
            waiting[job.key] = job
    board.expect({key: Work("measurement", job.title) for key, job in waiting.items()})
    calls = [
        Call(
            key, run_measurement, (job, folder), timeout, reads=job.reads, writes=folder, log=folder / LOG,
            needs=job.needs,
        )
        for key, job in waiting.items()
    ]  # fmt: skip
    for outcome in engine.run(calls):
        job = waiting[outcome.id]
        if outcome.failure:
            store(job, folder, "failed", outcome.failure)
        result = read(path_of(job, folder))
        board.done(outcome.id, result["reason"])
    return sum(status(job, folder) not in ("ok", "skipped") for job in jobs)


def run_measurement(job: MeasurementJob, folder: Path) -> None:
    """Measures, and stores the values; what is raised becomes the reason of a failure. folder: the run's."""
    Log(folder / LOG).event("measurement started", title=job.title, key=job.key, pid=os.getpid())
    try:
        others = {ref.label: ref.load(job.device) for ref in job.others}
        defense, data = job.defense.load(job.device), job.dataset.load()
        values = job.measurement.measure(defense, others, data, job.seed)
        pictures = job.measurement.pictures(defense, data, job.seed)
    except Exception as error:
        store(job, folder, "failed", f"{type(error).__name__}: {error}".splitlines()[0])
        log = folder / FOLDER / "failures"
        log.mkdir(exist_ok=True)
        (log / f"{path_of(job, folder).stem}.txt").write_text(traceback.format_exc(), encoding="utf-8")
        return
    store(job, folder, "ok", "", values, pictures)
