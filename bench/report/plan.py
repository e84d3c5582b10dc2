"""What a command would run, on the screen: the table of a dry run."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from manifold_bench.bench.planning.deciding import undecided
from manifold_bench.bench.planning.jobs import Job
from manifold_bench.bench.planning.plan import Plan
from manifold_bench.bench.records.measurements import status
from manifold_bench.bench.records.store import Store
from manifold_bench.bench.text import eps_text


def print_plan(plan: Plan, folder: Path, console: Console) -> None:
    """Show jobs, skipped pairs with reasons, estimated passes, measurements, and families without an adapted attack.

    folder: where results are stored.
    """
    store = Store(folder)
    for data in plan.data:
        table = Table(title=data.dataset.name, box=box.SIMPLE, title_justify="left")
        for column in ("defense", "attack", "norm", "ε"):
            table.add_column(column, overflow="fold")
        table.add_column("n", justify="right")
        table.add_column("passes", justify="right")
        table.add_column("state", overflow="fold")
        for job in plan.jobs:
            if job.dataset == data.dataset:
                table.add_row(*_row(job, store, seeds=len(plan.matrix.seeds)))
        console.print(table)
    runnable = [job for job in plan.jobs if not job.skip]
    skipped, passes = len(plan.jobs) - len(runnable), sum(job.passes for job in runnable)
    console.print(
        f"{len(runnable)} jobs, {skipped} skipped, at most {passes:,.0f} passes through a defense", highlight=False
    )
    for family in undecided(plan):
        console.print(str(family), highlight=False, markup=False, soft_wrap=True)
    for measurement in plan.measurements:
        stored = "finished" if status(measurement, folder) == "ok" else "to run"
        state = f"skipped: {measurement.skip}" if measurement.skip else stored
        console.print(f"measurement {measurement.title}: {state}", highlight=False, markup=False)


def _row(job: Job, store: Store, seeds: int) -> tuple[str, ...]:
    """The cells of a job; seeds: number of seeds in the matrix."""
    label = f"{job.label}, seed {job.seed}" if seeds > 1 else job.label
    norm, eps = ("", "") if job.attack is None else (job.norm, " ".join(map(eps_text, job.eps)))
    if job.skip:
        return job.defense.label, label, norm, eps, str(job.n), "", f"skipped: {job.skip}"
    state = {"ok": "finished", "missing": "to run", "failed": "failed before: to run again"}.get(
        store.status(job), "to run again"
    )
    state = state if job.defense.trained else "to run, after training its defense"
    return job.defense.label, label, norm, eps, str(job.n), f"{job.passes:,.0f}", state
