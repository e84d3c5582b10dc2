"""What a run shows while it works: jobs done and left, the time left, what was finished last."""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

if TYPE_CHECKING:
    import pandas as pd

    from bench.plan import Job


class TimeLeft(ProgressColumn):
    """The last estimate, counted down."""

    def render(self, task: Task) -> Text:
        end = task.fields.get("end")
        left = "…" if end is None else timedelta(seconds=max(0, round(end - time.perf_counter())))
        return Text(f"time left {left}", style="cyan")


class Board:
    """A progress bar on a terminal, plain lines elsewhere.

    The time left is that of the passes left: what a full-strength answer of each defense takes is measured in its
    clean pass, and how far estimates and measurements are apart in the jobs that are done.
    """

    def __init__(self, console: Console, workers: int) -> None:
        self.console = console
        self.workers = workers
        self.waiting: dict[Hashable, Job | None] = {}
        self.unit: dict[tuple[str, str], float] = {}  # seconds a full-strength answer takes: (data set, defense)
        self.estimated, self.measured = 0.0, 0.0  # seconds, of the attacks that are done
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeLeft(),
        )
        self.progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.task = self.progress.add_task("jobs", total=0)

    def __enter__(self) -> Board:
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()

    def line(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False)

    def cost(self, job: Job) -> float:
        """Estimated seconds of work; only relative before the defense's clean pass has been measured."""
        guess = 1e-4 * max(1, job.inference_steps)
        return job.passes * self.unit.get((job.dataset.name, job.defense.label), guess)

    def expect(self, work: Mapping[Hashable, Job | None]) -> None:
        """Adds work that is to come: jobs, or None for what can't be estimated."""
        self.waiting |= work
        self.progress.update(self.task, total=(self.progress.tasks[0].total or 0) + len(work))

    def done(self, id: Hashable, title: str, failure: str | None, rows: pd.DataFrame | None = None) -> None:
        """Notes a finished piece of work; rows are its records."""
        job = self.waiting.pop(id, None)
        seconds = 0.0 if rows is None else float(rows["seconds"].sum())
        if job is not None and not failure:
            if job.attack is None:
                self.unit[job.dataset.name, job.defense.label] = seconds / max(job.n, 1)
            else:
                self.estimated += self.cost(job)
                self.measured += seconds
        self.progress.update(self.task, advance=1, end=self._end())
        if failure:
            self.line(f"FAILED {title}: {failure}")
        elif not self.console.is_terminal:
            self.line(f"done   {title}  {seconds:.1f} s")

    def _end(self) -> float | None:
        """When the last job will be done, on the clock of time.perf_counter; None while nothing is known."""
        jobs = [job for job in self.waiting.values() if job is not None]
        if not jobs or not self.unit:
            return None
        ratio = self.measured / self.estimated if self.estimated else 1.0
        costs = [self.cost(job) * ratio for job in jobs]
        return time.perf_counter() + max(sum(costs) / self.workers, max(costs))
