"""How long jobs take, learnt from those that are done, and when the last one will be."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from statistics import median

from manifold_bench.bench.planning.jobs import Job

REMEMBERED = 400
"""Finished jobs that estimates are made from: the last ones. It bounds what an estimate costs in a run of many."""


ANSWER = 1e-4
"""Seconds of a step of a full-strength answer, before anything is measured."""


DEPTH = 40
"""Passes for an input that an attack usually uses up."""


MEASURABLE = 0.01
"""Seconds below which a job's time says more about the clock than about its passes."""


QUICK = 0.2
"""Seconds below which a job takes as long as any job does: loading, storing."""


PRIOR_SHARE = 0.15
"""The share of a job that has to be done for its own pace to count as much as what other jobs make one expect."""


class Estimator:
    """Predicts the seconds of jobs: passes at most × seconds per pass of the defense × share of them that is used.

    Seconds per pass are the median over clean passes of the defense, or else of its kind, its data set, or all. The
    share is the median over finished jobs of the same attack, on whatever defense; where an attack has run on that kind
    of defense, its own time counts. So one clean pass tells something of every job of a defense, and one job of an
    attack whose inputs leave the batch early tells that they do so elsewhere, too.
    """

    def __init__(self) -> None:
        self.done: list[tuple[Job, float]] = []
        """Finished jobs, each with its seconds over what was first guessed."""
        self._walls: list[tuple[float, float]] = []

    def observe(self, job: Job, seconds: float, wall: float) -> None:
        """Learn from a finished job.

        seconds: of its records, which hold attacking and judging. wall: of the whole job, from its first moment.
        """
        self._walls = [*self._walls, (seconds, wall)][-REMEMBERED:]
        if seconds >= MEASURABLE:
            self.done = [*self.done, (job, seconds / guess(job))][-REMEMBERED:]

    def seconds(self, jobs: Sequence[Job]) -> list[float]:
        """Predict the seconds of each of the jobs, of the kind that their records hold."""
        clean = [(job, ratio) for job, ratio in self.done if job.attack is None]
        speeds = _medians((place, ratio) for job, ratio in clean or self.done for place in _places(job))
        attacked = [(job, ratio) for job, ratio in self.done if job.attack is not None]
        shares = _medians(((job.label, job.norm), ratio / _first(_places(job), speeds)) for job, ratio in attacked)
        exact = _medians(
            ((*place, job.label, job.norm), ratio) for job, ratio in attacked for place in _places(job)[:2]
        )

        def ratio(job: Job) -> float:
            share = 1.0 if job.attack is None else shares.get((job.label, job.norm), 1.0)
            own = [] if job.attack is None else [(*place, job.label, job.norm) for place in _places(job)[:2]]
            return _first(own, exact, otherwise=_first(_places(job), speeds) * share)

        return [guess(job) * ratio(job) for job in jobs]

    def wall(self, seconds: float) -> float:
        """Wall seconds of a job with so many in its records: what quick jobs take, and a factor over all jobs."""
        quick = [wall for measured, wall in self._walls if measured < QUICK]
        fixed = median(quick) if quick else QUICK
        beyond = sum(max(0.0, wall - fixed) for _, wall in self._walls)
        return fixed + seconds * max(1.0, (1.0 + beyond) / (1.0 + sum(measured for measured, _ in self._walls)))


def _places(job: Job) -> list[tuple[str, ...]]:
    """What a job shares its speed with, the nearest first: its defense, its kind of defense, its data set, all jobs."""
    data, system = job.dataset.name, job.defense.name
    return [(data, system, job.defense.label), (data, system), (data,), ()]


def _medians(pairs: Iterable[tuple[Hashable, float]]) -> dict[Hashable, float]:
    """The median of the values with the same key."""
    values: defaultdict[Hashable, list[float]] = defaultdict(list)
    for key, value in pairs:
        values[key].append(value)
    return {key: median(few) for key, few in values.items()}


def _first(keys: Iterable[Hashable], values: Mapping[Hashable, float], otherwise: float = 1.0) -> float:
    """The value of the first key that has one."""
    return next((values[key] for key in keys if key in values), otherwise)


def guess(job: Job) -> float:
    """Seconds, before anything is known: a constant for each step of each pass.

    The passes are those at the most. The more an attack may take for an input, the earlier most inputs leave it.
    """
    each = job.forwards + job.backwards
    return ANSWER * max(1, job.inference_steps) * max(job.passes, 1.0) * (DEPTH / max(each, DEPTH)) ** 0.25


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
