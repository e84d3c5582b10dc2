"""Shows what a command would run and how long that will take: the screen of `--dry-run`."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from rich.console import Console

from manifold_bench.bench.planning.adaptive import undecided
from manifold_bench.bench.planning.jobs import Job
from manifold_bench.bench.planning.plan import Plan
from manifold_bench.bench.records.measurements import status
from manifold_bench.bench.records.store import Store
from manifold_bench.bench.running.forecast import Forecast, duration
from manifold_bench.bench.terminal import Line, print_grid, print_text
from manifold_bench.bench.text import eps_text, norm_text

HEADER = ("job", "n", "passes", "time")


def print_plan(plan: Plan, folder: Path, console: Console, forecast: Forecast) -> None:
    """Print the jobs of a plan, skipped ones with their reasons, and the passes and time that the others need.

    Then follow the data sets and defenses that are skipped, the defenses that meet no attack made for their family, and
    the measurements. Jobs that the command line leaves out may have stored records, so that their attacks count too.
    folder: the output folder, whose finished jobs need no time.
    """
    store = Store(folder)
    for data in plan.data:
        lines: list[Line] = []
        jobs = [job for job in plan.jobs if job.dataset == data.dataset]
        for defense, same in groupby(jobs, key=lambda job: job.defense.label):
            lines += [Line()] * bool(lines) + [Line(defense)]
            lines += [_line(job, store, forecast, seeds=len(plan.matrix.seeds)) for job in same]
        print_grid(console, data.dataset.name, HEADER, lines)
    runnable = [job for job in plan.jobs if not job.skip]
    skipped, passes = len(plan.jobs) - len(runnable), sum(job.passes for job in runnable)
    left = len(forecast.jobs)
    counts = f"{len(plan.jobs)} jobs: {left} to run, {len(runnable) - left} finished, {skipped} skipped"
    print_text(console, f"{counts}; together at most {passes:,.0f} passes through a defense")
    print_text(console, time_line(plan, forecast))
    if plan.matrix.budget:
        print_text(console, plan.matrix.budget)
    for line in (*plan.omissions.lines, *plan.small_data):
        print_text(console, line)
    for defenses in undecided((*plan.jobs, *plan.other_jobs)):
        print_text(console, str(defenses))
    for measurement in plan.measurements:
        stored = "finished" if status(measurement, folder) == "ok" else "to run"
        state = f"skipped: {measurement.skip}" if measurement.skip else stored
        print_text(console, f"measurement {measurement.title}: {state}")


NAMED = 5
"""Number of defenses above which a line counts them instead of naming them."""


def time_line(plan: Plan, forecast: Forecast) -> str:
    """Return a sentence on how long the plan will take, and on what that estimate is based."""
    source = "estimated from earlier runs on this machine"
    if forecast.calibrated:
        count = len(forecast.calibrated)
        named = ", ".join(forecast.calibrated) if count <= NAMED else f"{count} defenses"
        source = f"an upper bound, estimated from a few passes through {named}"
    left_out = ["trainings"] if any(not ref.trained for _, ref in plan.running) else []
    left_out += ["measurements"] if plan.measurements else []
    without = f", not counting {' and '.join(left_out)}" if left_out else ""
    if not forecast.jobs:
        return "no job is left"
    return f"about {duration(forecast.total)} on this machine ({source}){without}"


def _line(job: Job, store: Store, forecast: Forecast, seeds: int) -> Line:
    """Return the line of a job. seeds: number of seeds in the matrix."""
    label = f"{job.label}, seed {job.seed}" if seeds > 1 else job.label
    if job.attack is not None:
        label += f", {norm_text(job.norm)} ε = {' '.join(map(eps_text, job.eps))}"
    if job.skip:
        return Line(f"  {label}", [str(job.n), "", ""], f"skipped: {job.skip}")
    seconds = forecast.jobs.get(job.key)
    time = "" if seconds is None else duration(seconds)
    state = {"ok": "finished", "missing": "", "failed": "failed before: runs again"}.get(
        store.status(job), "runs again"
    )
    if state == "finished":
        return Line(f"  {label}", [str(job.n), f"{job.passes:,.0f}", state])
    state = state if job.defense.trained else "runs after training its defense"
    return Line(f"  {label}", [str(job.n), f"{job.passes:,.0f}", time], state)
