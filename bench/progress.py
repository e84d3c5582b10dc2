"""What a run shows while it works: jobs done and left, the time left, what was finished last."""

from __future__ import annotations

import time
from collections.abc import Hashable
from datetime import timedelta
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

if TYPE_CHECKING:
    import pandas as pd

    from bench.plan import Job


class TimeLeft(ProgressColumn):
    """From the passes left and the measured time of those done."""

    def render(self, task: Task) -> Text:
        left = task.fields.get("left")
        return Text("time left …" if left is None else f"time left {timedelta(seconds=round(left))}", style="cyan")


class Board:
    """A progress bar on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console, workers: int) -> None:
        self.console = console
        self.workers = workers
        self.costs: dict[Hashable, float] = {}
        self.unit: dict[tuple[str, str], float] = {}  # seconds a full-strength answer takes: (data set, defense)
        self.spent = 0.0
        self.begun = time.perf_counter()
        self.jobs: dict[Hashable, Job] = {}
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
        """Estimated seconds of work, relative where nothing has been measured yet."""
        steps = max(1, job.defense.build().inference_steps)
        return job.passes * self.unit.get((job.dataset.name, job.defense.label), 1e-4 * steps)

    def expect(self, costs: dict[Hashable, float]) -> None:
        """Adds work that is to come, with its estimated costs."""
        self.costs |= costs
        total = (self.progress.tasks[0].total or 0) + len(costs)
        self.progress.update(self.task, total=total)

    def done(
        self, id: Hashable, title: str, failure: str | None, *, job: Job | None = None, rows: pd.DataFrame | None = None
    ) -> None:
        """Notes a finished piece of work and what it cost."""
        self.spent += self.costs.pop(id, 0.0)
        seconds = 0.0
        if job is not None and rows is not None:
            seconds = float(rows["seconds"].sum())
            if job.attack is None and not failure:
                self.unit[job.dataset.name, job.defense.label] = seconds / max(job.n, 1)
        self.progress.update(self.task, advance=1, left=self._left())
        if failure:
            self.line(f"FAILED {title}: {failure}")
        elif not self.console.is_terminal:
            self.line(f"done   {title}  {seconds:.1f} s")

    def _left(self) -> float | None:
        """Seconds: the share of the estimated work that is left, at the pace so far."""
        left = sum(self.costs.values())
        return (time.perf_counter() - self.begun) * left / self.spent if self.spent else None
