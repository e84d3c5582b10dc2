"""Write to a run's log how far an attack is while it goes on."""

from __future__ import annotations

import os
import time

from torch import Tensor

from manifold_bench.attacks.base import Attack
from manifold_bench.attacks.target import Target
from manifold_bench.bench.planning.jobs import Job
from manifold_bench.bench.records.log import Log


class Heartbeat:
    """Writes to the log every few seconds how far a job's attack is: passes done, and those that are left at most.

    An input that the attack has let go gets no more passes; one that no batch has reached will get as many as those
    that are through; and larger ε are taken to need as many as this one.
    """

    SECONDS = 10.0
    """Between two messages of a job."""

    def __init__(self, job: Job, log: Log) -> None:
        assert isinstance(job.attack, Attack)
        self.job, self.log = job, log
        self.most = float(sum(job.attack.passes()))
        self.eps_left = 1 if job.attack.minimal else len(job.eps)
        self.eps = 0.0
        self.rows = 0  # attacked at this ε
        self.through, self.passes = 0, 0.0  # rows of this ε whose batch is finished, and what they cost
        self.before = 0.0  # passes at smaller ε
        self.last = time.monotonic()

    def begin(self, eps: float, rows: int) -> None:
        """The attack begins with this ε, on so many rows."""
        self.eps_left -= 1
        self.before += self.passes
        self.eps, self.rows, self.through, self.passes = eps, rows, 0, 0.0

    def end_batch(self, target: Target) -> None:
        """The attack has finished a batch."""
        self.through += len(target.forwards)
        self.passes += float((target.forwards + target.backwards).sum())

    def beat(self, target: Target) -> None:
        """Write to the log, unless that was done a moment ago; target: the batch under attack."""
        if time.monotonic() < self.last + self.SECONDS:
            return
        self.last = time.monotonic()
        done, share = self.progress(target.forwards + target.backwards)
        job = {"title": self.job.title, "key": self.job.key, "pid": os.getpid()}
        self.log.event("job running", **job, eps=self.eps, passes=round(done), share=round(share, 4))

    def progress(self, passes: Tensor) -> tuple[float, float]:
        """Return passes done, and the share of the attack that this is; passes: [n] of the batch under attack."""
        active = (passes == 0) | (passes >= passes.max() - 2)
        done = float(passes.sum())
        left = float((self.most - passes[active]).clamp_min(0).sum())
        through, cost = (self.through, self.passes) if self.through else (len(passes), done + left)
        each = cost / max(through, 1)
        left += each * max(0, self.rows - self.through - len(passes)) + each * self.rows * self.eps_left
        done += self.before + self.passes
        return done, done / max(done + left, 1.0)
