"""How far an attack is, told to the run's log while it goes on."""

from __future__ import annotations

import os
import time

from torch import Tensor

from manifold_bench.attacks.base import Attack
from manifold_bench.attacks.target import Target
from manifold_bench.bench.planning.jobs import Job
from manifold_bench.bench.records.log import Log


class Pace:
    """Tells the log every few seconds how far an attack is: passes done beside those that are left at the most.

    An input that the attack has let go gets no more passes; one that no batch has reached will get as many as those
    that are through; and larger ε are taken to need as many as this one.
    """

    SECONDS = 10.0
    """Between two messages of a job."""

    def __init__(self, job: Job, attack: Attack, rows: int, log: Log) -> None:
        self.job, self.log = job, log
        self.most = float(sum(attack.passes()))
        self.strengths = 1 if attack.minimal else len(job.eps)
        self.eps = 0.0
        self.here = rows  # attacked at this ε
        self.through, self.passes = 0, 0.0  # rows of this ε whose batch is finished, and what they cost
        self.before = 0.0  # passes at smaller ε
        self.told = time.monotonic()

    def strength(self, eps: float, rows: int) -> None:
        """The attack begins with this ε, on so many rows."""
        self.strengths -= 1
        self.before += self.passes
        self.eps, self.here, self.through, self.passes = eps, rows, 0, 0.0

    def batch(self, target: Target) -> None:
        """A batch is finished."""
        self.through += len(target.forwards)
        self.passes += float((target.forwards + target.backwards).sum())

    def tell(self, target: Target) -> None:
        """Writes to the log, unless it did a moment ago; target: the batch under attack."""
        if time.monotonic() < self.told + self.SECONDS:
            return
        self.told = time.monotonic()
        done, share = self.progress(target.forwards + target.backwards)
        self.log.event(
            "job running", title=self.job.title, key=self.job.key, pid=os.getpid(),
            eps=self.eps, passes=round(done), share=round(share, 4),
        )  # fmt: skip

    def progress(self, passes: Tensor) -> tuple[float, float]:
        """Passes done, and the share of the attack that this is; passes: [n] of the batch under attack."""
        active = (passes == 0) | (passes >= passes.max() - 2)
        done = float(passes.sum())
        left = float((self.most - passes[active]).clamp_min(0).sum())
        through, cost = (self.through, self.passes) if self.through else (len(passes), done + left)
        each = cost / max(through, 1)
        left += each * max(0, self.here - self.through - len(passes)) + each * self.here * self.strengths
        done += self.before + self.passes
        return done, done / max(done + left, 1.0)
