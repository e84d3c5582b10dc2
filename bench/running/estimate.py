"""How long jobs take, learnt from those that are done, and when the last one will be."""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Hashable, Iterable, Sequence
from statistics import median
from typing import NamedTuple

from manifold_bench.bench.planning.jobs import Job

ANSWER = 1e-4
"""Seconds of a step of a full-strength answer, before anything is measured."""


MEASURABLE = 0.01
"""Seconds below which a job's time says more about the clock than about its passes."""


OVERHEAD = 0.5
"""Seconds of a job that are neither attacking nor judging, before anything is measured: its process, its weights."""


class Kind(NamedTuple):
    """What the time of a job depends on. system, defense: name and label; attack: its label, None for a clean pass.

    guess: of its seconds, before anything is known.
    """

    dataset: str
    system: str
    defense: str
    attack: str | None
    norm: str
    guess: float

    @classmethod
    def of(cls, job: Job) -> Kind:
        label = None if job.attack is None else job.label
        return cls(job.dataset.name, job.defense.name, job.defense.label, label, job.norm, guess(job))

    @property
    def places(self) -> list[tuple[str, ...]]:
        """What it shares its speed with, the nearest first: its defense, its kind of defense, its data set, all."""
        data = self.dataset
        return [(data, self.system, self.defense), (data, self.system, ""), (data, "", ""), ("", "", "")]

    @property
    def pairs(self) -> list[tuple[str, ...]]:
        """The attack on its defense, and on its kind of defense."""
        return [] if self.attack is None else [(*place, self.attack, self.norm) for place in self.places[:2]]


class Estimator:
    """Predicts the seconds of jobs: passes at most × seconds per pass of the defense × share of them that is used.

    Each factor is the median over the last finished jobs that have the most in common with the job. Seconds per pass
    are those of clean passes: of the defense, or else of its kind, its data set, or all. The share is that of the same
    attack on whatever defense. Where the attack has run on that kind of defense, its own time counts.
    """

    def __init__(self) -> None:
        self._ratios: defaultdict[Hashable, deque[float]] = defaultdict(lambda: deque(maxlen=25))
        """What finished jobs have in common → their seconds over `guess`, or the share of their passes."""
        self._overheads: deque[float] = deque(maxlen=25)
        self._elsewhere: Estimator | None = None

    @property
    def knows_anything(self) -> bool:
        return bool(self._ratios)

    def observe(self, job: Job, seconds: float, wall: float) -> None:
        """Learn from a finished job; see `learn`."""
        self.learn(Kind.of(job), seconds, wall)

    def learn(self, kind: Kind, seconds: float, wall: float) -> None:
        """Learn from a finished job of that kind.

        seconds: of its records, which hold attacking and judging. wall: of the whole job, from its first moment.
        """
        self._overheads.append(max(0.0, wall - seconds))
        if seconds < MEASURABLE:
            return
        ratio, speed = seconds / kind.guess, self._median(kind.places)
        if kind.attack is None or speed is None:
            keys: Iterable[Hashable] = kind.places
        else:
            keys = kind.pairs
            self._ratios[kind.attack, kind.norm].append(ratio / speed)
        for key in keys:
            self._ratios[key].append(ratio)

    def compare_with(self, elsewhere: Estimator) -> None:
        """Where an attack has not run here, use the share of its passes that an estimator of another machine knows."""
        self._elsewhere = elsewhere

    def share(self, kind: Kind) -> float | None:
        """Which share of its passes at most the attack takes: on that defense, or else on whatever defense."""
        own, speed = self._median(kind.pairs), self._median(kind.places)
        return own / speed if own is not None and speed else self._median([(kind.attack, kind.norm)])

    def seconds(self, jobs: Sequence[Job]) -> list[float]:
        """Predict the seconds of each of the jobs, of the kind that their records hold."""
        return [kind.guess * self._ratio(kind) for kind in map(Kind.of, jobs)]

    def knows(self, kind: Kind) -> bool:
        """Whether the speed of that very defense, or of its kind, was measured."""
        return any(place in self._ratios for place in kind.places[:2])

    def wall(self, seconds: float) -> float:
        """Wall seconds of a job with so many in its records."""
        return seconds + (median(self._overheads) if self._overheads else OVERHEAD)

    def _ratio(self, kind: Kind) -> float:
        own = self._median(kind.pairs)
        if own is not None:
            return own
        speed, share = self._median(kind.places), self.share(kind)
        if self._elsewhere is not None and (known := self._elsewhere.share(kind)) is not None:
            share = known
        return (1.0 if speed is None else speed) * (1.0 if share is None or kind.attack is None else share)

    def _median(self, keys: Iterable[Hashable]) -> float | None:
        """The median of what was observed with the first key that anything was observed with."""
        return next((median(self._ratios[key]) for key in keys if key in self._ratios), None)


def guess(job: Job) -> float:
    """Seconds, before anything is known: a constant for each step of each pass."""
    return ANSWER * max(1, job.inference_steps) * max(job.passes, 1.0)


def left_of(expected: float, elapsed: float, share: float | None) -> float:
    """Seconds that a running job still takes: by its own pace where it has told its share, else by what was expected.

    A job that takes longer than expected is expected to take another quarter of its time.
    """
    return elapsed * (1 - share) / share if share else max(expected - elapsed, 0.25 * elapsed)


def time_left(running: Iterable[float], waiting: Iterable[float], workers: int) -> float:
    """Seconds until all is done, if each worker that becomes free takes the longest piece of work that waits."""
    free = heapq.nlargest(workers, running)
    free += [0.0] * (workers - len(free))
    heapq.heapify(free)
    for cost in sorted(waiting, reverse=True):
        heapq.heapreplace(free, free[0] + cost)
    return max(free)
