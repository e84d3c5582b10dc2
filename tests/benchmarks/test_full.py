"""The matrix `full` on the digits that need no file, four defenses: backward passes next to a cross product, memory."""

from __future__ import annotations

import dataclasses
import resource
from pathlib import Path

import pytest
from plans import PASSES, planned, rows_of_passes

from manifold_bench.attacks.base import Attack
from manifold_bench.bench.planning.jobs import Job
from manifold_bench.bench.planning.matrix import Matrix
from manifold_bench.bench.planning.narrow import narrowed
from manifold_bench.bench.planning.plan import Options
from manifold_bench.bench.planning.reading import read_matrix
from manifold_bench.bench.records.store import Store
from manifold_bench.bench.running.engines.local import LocalEngine
from manifold_bench.bench.running.job import job_call

pytestmark = pytest.mark.slow

DATA = "mnist5k"
DEFENSES = ("undefended", "pgd-training", "inc", "gmvae")
INPUTS = 16
"""Whose passes are counted; not on defenses that optimise inside, where each pass is a search of its own."""

SHORT = {"steps": 2, "restarts": 1, "searches": 1, "queries": 20, "targets": 1, "draws": 1, "max_iter": 1}
"""Budgets of an attack that is cut short: what it holds in memory depends on its inputs, not on how long it goes on."""

ONE_AT_A_TIME = ("art:HopSkipJump",)
"""Attacks that ask about one input after the other: they get one, and minutes become seconds."""


def matrix() -> Matrix:
    return narrowed(read_matrix("full"), [DATA], DEFENSES)


def shortened(attack: Attack) -> Attack:
    given = {field.name: getattr(attack, field.name) for field in dataclasses.fields(attack)}
    changes = {name: value for name, value in SHORT.items() if given.get(name) is not None}
    if own := given.get("parameters"):  # of another library's
        changes["parameters"] = own | {name: value for name, value in SHORT.items() if name in own}
    return dataclasses.replace(attack, **changes)


def short(job: Job) -> Job:
    """The same with a short attack at its smallest ε."""
    if job.attack is None:
        return job
    indices = job.indices[:1] if job.label in ONE_AT_A_TIME else job.indices
    return dataclasses.replace(job, attack=shortened(job.attack), eps=job.eps[:1], indices=indices)


def run(jobs: list[Job], folder: Path) -> float:
    """Runs jobs in one worker, clean passes before the others; returns the memory of its largest process in GiB."""
    with LocalEngine(workers=1) as engine:
        for outcome in engine.run([job_call(job, folder) for job in jobs]):
            assert outcome.result == "ok", outcome
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 2**30


def test_passes(benchmark, tmp_path: Path, tell):
    jobs = [
        job
        for job in planned(dataclasses.replace(matrix(), diagnose=False), Options(n=INPUTS))
        if not job.inference_steps and (job.attack is None or job.attack.passes()[1])
    ]
    benchmark.pedantic(run, args=(jobs, tmp_path), rounds=1)
    store = Store(tmp_path)
    rows = rows_of_passes(jobs, {job.title: store.read(store.path(job))[0] for job in jobs})
    tell(
        title="The matrix `full`: passes",
        text=f"{len(jobs)} jobs on {DATA}, with {INPUTS} inputs: the gradient attacks, on the defenses that don't "
        f"optimise at inference. {PASSES}",
        columns=["", "measured", "of the cross product"],
        rows=rows,
    )


def test_memory(benchmark, tmp_path: Path, tell):
    jobs = [short(job) for job in planned(matrix(), Options())]
    worker = benchmark.pedantic(run, args=(jobs, tmp_path), rounds=1)
    most = max(job.n for job in jobs)
    rows = [[f"{len(jobs)} jobs, one after the other, up to {most} inputs", f"{worker:.2f} GiB"]]
    tell(
        title="The matrix `full`: memory of a worker",
        text=f"Every job on {DATA} with all its inputs ({', '.join(ONE_AT_A_TIME)} with one, since it attacks one "
        "after the other), at its smallest ε, and with a few steps or queries only.",
        columns=["", "largest resident memory"],
        rows=rows,
    )
