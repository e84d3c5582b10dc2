"""The progress display of a command: pieces of work done and left, time left, what runs now, memory."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import psutil
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from manifold_bench.bench.planning.jobs import Job
from manifold_bench.bench.records.log import Log, seconds_of
from manifold_bench.bench.running.estimate import Estimator, Kind, seconds_left, time_left
from manifold_bench.bench.running.timings import remember
from manifold_bench.bench.text import eps_text
from manifold_bench.defenses.identity import JsonObject

TICK_SECONDS = 1.0
"""Seconds between two updates of log, memory and time."""

SILENT_SECONDS = 60.0
"""Without a terminal: seconds without any line after which a line says what is running."""

EPOCH_SECONDS = 5.0
"""Without a terminal: seconds between two lines about epochs of a stage; its first and last epoch always have one."""

SHOWN = 8
"""Number of running pieces of work that are listed on the screen; the others are counted."""


@dataclass(frozen=True)
class Work:
    """A piece of work that is to be done. job: the job, from which its seconds are estimated; None for other work."""

    kind: Literal["job", "training", "measurement"]
    title: str
    job: Job | None = None


@dataclass
class Running:
    """A piece of work in progress. note: its state in words. share: share that is done, in [0, 1]; None if unknown."""

    title: str
    pid: int
    begun: float
    note: str = ""
    share: float | None = None
    memory: int = 0


class Board:
    """Follows the log of a folder and shows it: live on a terminal, as plain lines elsewhere, or failures alone.

    log: log of the run and its workers. workers: number of pieces of work that run at once. quiet: whether only
    failures are shown. It samples the memory of this process and its children, and writes to the log how each piece of
    work ended.
    """

    def __init__(self, console: Console, workers: int, log: Log, quiet: bool = False) -> None:
        self.console, self.workers, self.log, self.quiet = console, workers, log, quiet
        self.waiting: dict[str, Work] = {}
        self.running: dict[str, Running] = {}
        self.finished = 0
        self.peak, self.peak_process = 0, 0  # bytes, of all processes together and of the largest one
        self.estimator = Estimator()
        self._past, self._read = log.read()
        self._costs: dict[str, float] | None = None
        self._memory = 0
        self._begun = self._printed = time.time()
        self._stage: dict[str, tuple[str, int, float]] = {}  # work → stage of its training, first epoch seen, when
        self._left_out = ""  # the last line about an epoch, if it was left out
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._ticker = threading.Thread(target=self._tick_on, daemon=True)
        self._live = Live(console=console, get_renderable=self._shown, auto_refresh=False, transient=True)

    @property
    def _terminal(self) -> bool:
        return self.console.is_terminal and not self.quiet

    def __enter__(self) -> Board:
        if self._terminal:
            self._live.start()
        self._ticker.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopping.set()
        self._ticker.join()
        self.tick()
        self._print_left_out()
        if self._terminal:
            self._live.stop()

    def line(self, text: str) -> None:
        """Print a line, unless quiet."""
        if not self.quiet:
            self._print(text)

    def _print(self, text: str) -> None:
        self._printed, self._left_out = time.time(), ""
        self.console.print(text, highlight=False, markup=False, soft_wrap=not self.console.is_terminal)

    def _print_left_out(self) -> None:
        """Print the line about the last epoch, if it was left out."""
        if self._left_out:
            self.line(self._left_out)

    def learn(self, jobs: Iterable[Job]) -> None:
        """Learn from the log how long these jobs took when they ran before."""
        past = {str(event.get("key")): event for event in self._past if event["event"] == "job finished"}
        for job in jobs:
            with suppress(KeyError, TypeError, ValueError, OverflowError):  # an event of another version, or damaged
                event = past[job.key]
                measured, seconds = float(event["measured"]), float(event["seconds"])
                if min(measured, seconds) >= 0 and max(measured, seconds) < math.inf:
                    self.estimator.observe(job, measured, seconds)
        self._costs = None

    def expect(self, work: Mapping[str, Work]) -> None:
        """Add work that is to be done, by its key."""
        with self._lock:
            self.waiting |= work
            self._costs = None

    def cost(self, key: str) -> float:
        """Return the estimated seconds of the job with that key, without the start of its process."""
        return self._expected()[key]

    def _expected(self) -> dict[str, float]:
        """Return the estimates of all jobs that wait or run; they are computed again after each finished job."""
        if self._costs is None:
            jobs = {key: work.job for key, work in self.waiting.items() if work.job is not None}
            self._costs = dict(zip(jobs, self.estimator.seconds(list(jobs.values())), strict=True))
        return self._costs

    def done(self, key: str, failure: str | None, rows: pd.DataFrame | None = None, memory: int = 0) -> None:
        """Note that a piece of work ended, on the screen and in the log.

        failure: reason of a failure, or None. rows: records of a job. memory: largest number of resident bytes of its
        processes; 0 if unknown.
        """
        self.tick()
        with self._lock:
            if failure:
                self._print_left_out()
            work, running = self.waiting.pop(key), self.running.pop(key, None)
            self.finished, self._costs = self.finished + 1, None
            seconds = 0.0 if running is None else time.time() - running.begun
            memory = max(memory, running.memory if running else 0)
            self.peak_process = max(self.peak_process, memory)
            fields: JsonObject = {"seconds": round(seconds, 3), "memory": memory}
            if failure:
                self.log.event(f"{work.kind} failed", title=work.title, key=key, **fields, reason=failure)
                self._print(f"{self._count()} FAILED {work.title}: {failure}")
                return
            if rows is not None and work.job is not None:
                measured = float(rows["seconds"].sum())
                fields |= {"measured": round(measured, 6), "forwards": rows["forwards"].sum()}
                fields |= {"backwards": rows["backwards"].sum()}
                self.estimator.observe(work.job, measured, max(seconds, measured))
                remember(work.job.device, Kind.of(work.job), measured, max(seconds, measured))
            self.log.event(f"{work.kind} finished", title=work.title, key=key, **fields)
            if not self._terminal:
                verb = {"training": "trained ", "measurement": "measured "}.get(work.kind, "")
                self.line(f"{self._count()} {verb}{work.title}  {self._status(f'{seconds:.1f} s')}")

    def tick(self) -> None:
        """Read the log, the memory and the time, and show what has changed."""
        with self._lock:
            events, self._read = self.log.read(self._read)
            for event in events:
                self._take_in(event)
            self._sample_memory()
            if self._terminal:
                self._live.refresh()
            elif self.running and time.time() - self._printed > SILENT_SECONDS:
                self.line(f"{self._count()} running: {', '.join(self._current())}  {self._status()}")

    def _tick_on(self) -> None:
        while not self._stopping.wait(TICK_SECONDS):
            self.tick()

    def _sample_memory(self) -> None:
        """Sample the resident memory of this process and its children."""
        sizes = {}
        for process in (me := psutil.Process(), *me.children(recursive=True)):
            try:
                sizes[process.pid] = process.memory_info().rss
            except psutil.Error:  # gone meanwhile
                continue
        self._memory = sum(sizes.values())
        self.peak = max(self.peak, self._memory)
        self.peak_process = max(self.peak_process, *sizes.values())
        for running in self.running.values():
            running.memory = max(running.memory, sizes.get(running.pid, 0))

    def _take_in(self, event: JsonObject) -> None:
        """Update the state by an event that a process wrote to the log; other lines are ignored."""
        with suppress(KeyError, TypeError, ValueError, AttributeError, OverflowError):  # a user's code may write there
            self._take_in_from(event, event["key"])

    def _take_in_from(self, event: JsonObject, key: str) -> None:
        if key not in self.waiting:
            return
        match event["event"].partition(" ")[2]:
            case "started":
                self.running[key] = Running(self.waiting[key].title, int(event["pid"]), seconds_of(event))
            case "running" if key in self.running:
                running = self.running[key]
                running.share = min(max(float(event["share"]), 0.0), 1.0)
                running.note = f"ε = {eps_text(float(event['eps']))}" if event["eps"] is not None else ""
            case "epoch" if key in self.running:
                self._epoch(key, self.running[key], event)

    def _epoch(self, key: str, running: Running, event: JsonObject) -> None:
        """Show an epoch of a training, with the time left in its stage."""
        stage, done, epochs, now = event["stage"], event["epoch"], event["epochs"], seconds_of(event)
        first = self._stage.get(key, ("",))[0] != stage
        if first:
            self._stage[key] = (stage, done, now)
        _, since, begun = self._stage[key]
        figures = "  ".join(f"{name} {value:.4g}" for name, value in event["figures"].items() if value is not None)
        running.note = f"{stage}: epoch {done} of {epochs}"
        left = (now - begun) / (done - since) * (epochs - done) if done > since else None
        if left is not None and done < epochs:
            running.note += f", left ~{clock(left)}"
        if self._terminal:
            return
        text = f"{self._count()} {running.title}  {running.note}  {figures} · {size(self._memory)} memory"
        if first or done == epochs or now - self._printed > EPOCH_SECONDS:
            self.line(text)
        else:
            self._left_out = text

    def left(self) -> float | None:
        """Return the estimated seconds until all jobs are done; None if nothing is known yet, or no job is left."""
        if not self._expected() or not self.estimator.knows_anything:
            return None
        expected = {key: self.estimator.wall(cost) for key, cost in self._expected().items()}
        begun = [(expected.pop(key), job) for key, job in self.running.items() if key in expected]
        running = [seconds_left(seconds, time.time() - job.begun, job.share) for seconds, job in begun]
        return time_left(running, expected.values(), self.workers)

    def _count(self) -> str:
        return f"[{self.finished}/{self.finished + len(self.waiting)}]"

    def _status(self, *first: str) -> str:
        """Return the end of a line: `first`, the time left, and the memory."""
        left = self.left()
        return " · ".join([*first, *([] if left is None else [f"left ~{clock(left)}"]), f"{size(self._memory)} memory"])

    def _current(self) -> list[str]:
        """Return texts of the work in progress and its time, the longest first."""
        now = sorted(self.running.values(), key=lambda running: running.begun)
        return [f"{running.title} ({', '.join(self._state(running))})" for running in now[:SHOWN]] + (
            [f"{len(now) - SHOWN} more"] if len(now) > SHOWN else []
        )

    def _state(self, running: Running) -> list[str]:
        share = "" if running.share is None else f"{running.share:.0%}"
        return [part for part in (running.note, share, clock(time.time() - running.begun)) if part]

    def _shown(self) -> RenderableType:
        """Return the live part of a terminal: a bar, and a line for each piece of work in progress."""
        with self._lock:
            total = self.finished + len(self.waiting)
            head = Table.grid(padding=(0, 1))
            elapsed = f"{clock(time.time() - self._begun)} · {self._status()} (peak {size(self.peak)})"
            head.add_row(ProgressBar(max(total, 1), self.finished, width=30), f"{self.finished}/{total}", elapsed)
            rows = Table.grid(padding=(0, 2))
            now = sorted(self.running.values(), key=lambda running: running.begun)
            for running in now[:SHOWN]:
                state = " · ".join([*self._state(running), f"{size(running.memory)} memory"])
                rows.add_row(Text(f"  {running.title}", overflow="ellipsis", no_wrap=True), Text(state, style="cyan"))
            if len(now) > SHOWN:
                rows.add_row(f"  {len(now) - SHOWN} more")
            return Group(head, rows)


def clock(seconds: float) -> str:
    """Return seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def size(bytes: float) -> str:
    """Return bytes as GiB or MiB."""
    return f"{bytes / 2**30:.1f} GiB" if bytes >= 2**30 else f"{bytes / 2**20:.0f} MiB"
