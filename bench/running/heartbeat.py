"""Writes the progress of a running attack to the run's log."""

from __future__ import annotations

import os
import time

from torch import Tensor

from manifold_bench.attacks.base import Attack
from manifold_bench.attacks.target import Target
from manifold_bench.bench.planning.jobs import Job
from manifold_bench.bench.records.log import Log


class Heartbeat:
    """Writes the progress of a job's attack to the log every few seconds: passes that are done, and the share.

    The estimate assumes that inputs which left the attack get no more passes, that later batches need as many passes as
    finished ones, and that larger ε need as many as this one.
    """

    SECONDS = 10.0
    """Seconds between two messages of a job."""

    def __init__(self, job: Job, log: Log) -> None:
        assert isinstance(job.attack, Attack)
        self.job, self.log = job, log
        self.most = sum(job.attack.affordable_passes())
        self.eps_left = 1 if job.attack.minimal else len(job.eps)
        self.eps = 0.0
        self.rows = 0  # attacked at this ε
        self.through, self.passes = 0, 0.0  # rows of this ε whose batch is finished, and what they cost
        self.before = 0.0  # passes at smaller ε
        self.last = time.monotonic()

    def begin(self, eps: float, rows: int) -> None:
        """Note that the attack begins at this ε, on that number of rows."""
        self.eps_left -= 1
        self.before += self.passes
        self.eps, self.rows, self.through, self.passes = eps, rows, 0, 0.0

    def end_batch(self, target: Target) -> None:
        """Note that the attack has finished a batch."""
        self.through += len(target.forwards)
        self.passes += float((target.forwards + target.backwards).sum())

    def beat(self, target: Target) -> None:
        """Write to the log, if the last message is old enough. target: target of the batch under attack."""
        if time.monotonic() < self.last + self.SECONDS:
            return
        self.last = time.monotonic()
        done, share = self.progress(target.forwards + target.backwards)
        job = {"title": self.job.title, "key": self.job.key, "pid": os.getpid()}
        self.log.event("job running", **job, eps=self.eps, passes=round(done), share=round(share, 4))

    def progress(self, passes: Tensor) -> tuple[float, float]:
        """Return the number of passes so far, and the share of the attack. passes: those of the current batch, [n]."""
        active = (passes == 0) | (passes >= passes.max() - 2)
        done = float(passes.sum())
        left = float((self.most - passes[active]).clamp_min(0).sum())
        through, cost = (self.through, self.passes) if self.through else (len(passes), done + left)
        each = cost / max(through, 1)
        left += each * max(0, self.rows - self.through - len(passes)) + each * self.rows * self.eps_left
        done += self.before + self.passes
        return done, done / max(done + left, 1.0)
