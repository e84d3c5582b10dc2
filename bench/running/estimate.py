"""How long jobs take, learnt from those that are done, and when the last one will be."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from manifold_bench.bench.planning.jobs import Job

REMEMBERED = 400
"""Finished jobs that estimates are made from: the last ones. It bounds what an estimate costs in a run of many."""


LEVELS = (2.0, 1.5, 1.0, 0.5, 0.4, 0.3, 0.9, 0.4)
"""How far apart (standard deviation of the logarithm) jobs are for each of: anything at all, data set, system of the
defense, its label; attacks at all, the kind of attack, its label and norm, this attack on this system."""


ANSWER = 1e-4
"""Seconds of a step of a full-strength answer, before anything is measured."""


DEPTH = 40
"""Passes for an input that an attack usually uses up."""


QUICK = 0.2
"""Seconds below which a job takes as long as any job does: loading, storing."""


PRIOR_SHARE = 0.15
"""The share of a job that has to be done for its own pace to count as much as what other jobs make one expect."""


def made_of(job: Job) -> tuple[str | None, ...]:
    """What tells jobs apart, one entry for each of LEVELS: jobs that share an entry differ less.

    Clean passes are what all passes are measured by: they have no entry for an attack.
    """
    data, system = job.dataset.name, f"{job.dataset.name}/{job.defense.name}"
    defended = "", data, system, f"{system}/{job.defense.label}"
    if job.attack is None:
        return *defended, None, None, None, None
    exact = f"{job.label}/{job.norm}"
    return *defended, "", type(job.attack).__name__, exact, f"{system}/{exact}"


@dataclass
class Done:
    """A finished job: what it is made of, and the logarithm of its seconds over what was first guessed."""

    parts: tuple[str | None, ...]
    log_ratio: float
    variance: float


class Estimator:
    """Predicts the seconds of jobs.

    The first guess is the passes at the most times a constant. Its logarithm is off by a sum of effects of LEVELS,
    unknown and independent, and noise: what the finished jobs say of them follows by linear regression under those
    priors (in its Gaussian-process form). So one clean pass tells something of every job of that defense, and one job
    of an attack whose inputs leave the batch early tells that they do so elsewhere, too.
    """

    def __init__(self) -> None:
        self.done: list[Done] = []
        self._walls: list[tuple[float, float]] = []
        self._codes: dict[str, int] = {}

    def observe(self, job: Job, seconds: float, wall: float) -> None:
        """Learns from a finished job. What takes milliseconds is measured badly and counts for little.

        seconds: of its records, which hold attacking and judging. wall: of the whole job, from its first moment.
        """
        self._walls = [*self._walls, (seconds, wall)][-REMEMBERED:]
        seconds = max(seconds, 1e-3)
        variance = 0.2**2 + (0.005 / seconds) ** 2
        self.done = [*self.done, Done(made_of(job), float(np.log(seconds / guess(job))), variance)][-REMEMBERED:]

    def seconds(self, jobs: Sequence[Job]) -> list[float]:
        """Predicted seconds of each of the jobs, of the kind that their records hold."""
        guesses = np.array([guess(job) for job in jobs])
        if not self.done or not jobs:
            return list(guesses)
        known = self._coded([done.parts for done in self.done])
        asked = self._coded([made_of(job) for job in jobs])
        noise = np.diag([done.variance for done in self.done])
        weights = np.linalg.solve(_likeness(known, known) + noise, [done.log_ratio for done in self.done])
        return list(guesses * np.exp(_likeness(asked, known) @ weights))

    def wall(self, seconds: float) -> float:
        """Wall seconds of a job with so many in its records: what quick jobs take, and a factor over all jobs."""
        quick = [wall for measured, wall in self._walls if measured < QUICK]
        fixed = float(np.median(quick)) if quick else QUICK
        beyond = sum(max(0.0, wall - fixed) for _, wall in self._walls)
        return fixed + seconds * max(1.0, (1.0 + beyond) / (1.0 + sum(measured for measured, _ in self._walls)))

    def _coded(self, rows: list[tuple[str | None, ...]]) -> np.ndarray:
        """Numbers for the entries, equal where these are; NaN, which equals nothing, where there is none."""
        codes = self._codes
        return np.array(
            [[np.nan if part is None else codes.setdefault(part, len(codes)) for part in row] for row in rows]
        )


def guess(job: Job) -> float:
    """Seconds, before anything is known: a constant for each step of each pass.

    The passes are those at the most. The more an attack may take for an input, the earlier most inputs leave it.
    """
    each = job.forwards + job.backwards
    return ANSWER * max(1, job.inference_steps) * max(job.passes, 1.0) * (DEPTH / max(each, DEPTH)) ** 0.25


def _likeness(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Covariances [A,B] of jobs [A,L] and [B,L]: the variances of the levels at which they are the same."""
    return sum(
        (size**2 * (one[:, [level]] == other[:, level]) for level, size in enumerate(LEVELS)),
        start=np.zeros((len(one), len(other))),
    )


def left_of(expected: float, elapsed: float, share: float | None) -> float:
    """Seconds that a running job still takes: by what was expected of it and, the further it is, by its own pace."""
    if not share:
        return max(expected - elapsed, 0.25 * elapsed)
    trust = share / (share + PRIOR_SHARE)
    whole = max(expected, 1e-3) ** (1 - trust) * (max(elapsed, 1e-3) / share) ** trust
    return whole * (1 - share)


def time_left(running: Iterable[float], waiting: Iterable[float], workers: int) -> float:
    """Seconds until all is done, if each worker that becomes free takes the longest piece of work that waits."""
    free = heapq.nlargest(workers, running)
    free += [0.0] * (workers - len(free))
    heapq.heapify(free)
    for cost in sorted(waiting, reverse=True):
        heapq.heapreplace(free, free[0] + cost)
    return max(free)
