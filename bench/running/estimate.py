"""Estimates how long jobs take, from the jobs that are finished, and when all of them will be."""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Hashable, Iterable, Sequence
from statistics import median
from typing import NamedTuple

from manifold_bench.attacks.base import Attack
from manifold_bench.bench.planning.jobs import Job
from manifold_bench.defenses.models import Handed

ANSWER = 1e-4
"""Seconds of a solver step of a deployed answer, before anything is measured."""

MEASURABLE = 0.01
"""Seconds below which a job's time is too inaccurate to learn from."""

OVERHEAD = 0.5
"""Seconds of a job that are neither attacking nor judging, before anything is measured: process and weights."""


class Kind(NamedTuple):
    """Everything that the time of a job depends on.

    system, defense: name and label of the defense. attack: label of the attack; None for a clean pass. guess: guess of
    its seconds, before anything is known. training: guess of the seconds that training a model of the attacker's own
    takes besides, which do not depend on the defense.
    """

    dataset: str
    system: str
    defense: str
    attack: str | None
    norm: str
    guess: float
    training: float = 0.0

    @classmethod
    def of(cls, job: Job) -> Kind:
        label = None if job.attack is None else job.label
        attack = job.attack
        training = ANSWER * attack.training_passes() if isinstance(attack, Attack) else 0.0
        return cls(job.dataset.name, _system(job), job.defense.label, label, job.norm, guess(job), training)

    @property
    def places(self) -> list[tuple[str, ...]]:
        """Keys of jobs of similar speed, the most similar first: same defense, same kind of it, same data set, all."""
        data = self.dataset
        return [(data, self.system, self.defense), (data, self.system, ""), (data, "", ""), ("", "", "")]

    @property
    def pairs(self) -> list[tuple[str, ...]]:
        """Keys of the same attack on the same defense, and on the same kind of defense."""
        return [] if self.attack is None else [(*place, self.attack, self.norm) for place in self.places[:2]]


class Estimator:
    """Predicts the seconds of jobs: largest number of passes × seconds of a pass × share of the passes that is used.

    Seconds in which an attack trains a substitute are added. Each factor is a median over the last finished jobs that
    are most similar to the job. Seconds of a pass come from clean passes of the defense, or else of its kind, its data
    set, or all. The share comes from the same attack on any defense. If the attack has run on that kind of defense, its
    time is used directly.
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

        seconds: seconds in its records, for attacking and judging. wall: seconds of the whole job, with its start.
        """
        self._overheads.append(max(0.0, wall - seconds))
        if seconds < MEASURABLE:
            return
        ratio, speed = seconds / (kind.guess + kind.training), self._median(kind.places)
        if kind.attack is None or speed is None:
            keys: Iterable[Hashable] = kind.places
        else:
            keys = kind.pairs
            if not kind.training:
                self._ratios[kind.attack, kind.norm].append(ratio / speed)
        for key in keys:
            self._ratios[key].append(ratio)

    def compare_with(self, elsewhere: Estimator) -> None:
        """Use another machine's estimator for the share of passes of attacks that have not run here."""
        self._elsewhere = elsewhere

    def share(self, kind: Kind) -> float | None:
        """Return the share of its most passes that an attack will use, as measured on that defense or else on any."""
        own, speed = self._median(kind.pairs), self._median(kind.places)
        return own / speed if own is not None and speed else self._median([(kind.attack, kind.norm)])

    def seconds(self, jobs: Sequence[Job]) -> list[float]:
        """Predict the seconds of each job, as in its records."""
        return [self._seconds(kind) for kind in map(Kind.of, jobs)]

    def knows(self, kind: Kind) -> bool:
        """Return whether the speed of that defense, or of its kind, was measured."""
        return any(place in self._ratios for place in kind.places[:2])

    def wall(self, seconds: float) -> float:
        """Return the wall seconds of a job with these seconds in its records."""
        return seconds + (median(self._overheads) if self._overheads else OVERHEAD)

    def _seconds(self, kind: Kind) -> float:
        own = self._median(kind.pairs)
        if own is not None:
            return (kind.guess + kind.training) * own
        speed, share = self._median(kind.places), self.share(kind)
        if self._elsewhere is not None and (known := self._elsewhere.share(kind)) is not None:
            share = known
        used = 1.0 if share is None or kind.attack is None else share
        return kind.guess * (1.0 if speed is None else speed) * used + kind.training

    def _median(self, keys: Iterable[Hashable]) -> float | None:
        """Return the median of the observations for the first key that has any; None if no key has."""
        return next((median(self._ratios[key]) for key in keys if key in self._ratios), None)


def _system(job: Job) -> str:
    """Return the name of a job's defense; for a user's object with its version, since others have the same name."""
    name, cls = job.defense.name, job.defense.cls
    return f"{name} {cls.version}" if isinstance(cls, Handed) else name


def guess(job: Job) -> float:
    """Return a job's seconds before anything is known, without trainings: a constant for each step of each pass."""
    return ANSWER * max(1, job.inference_steps) * max(job.passes, 1.0)


def seconds_left(expected: float, elapsed: float, share: float | None) -> float:
    """Return the seconds until a running job ends, by the share that is done if it is known, else by the estimate.

    A job that takes longer than estimated is assumed to take another quarter of its time.
    """
    return elapsed * (1 - share) / share if share else max(expected - elapsed, 0.25 * elapsed)


def time_left(running: Iterable[float], waiting: Iterable[float], workers: int) -> float:
    """Return the seconds until all work is done, if each free worker takes the longest piece of work that waits."""
    free, costs = heapq.nlargest(workers, running), sorted(waiting, reverse=True)
    free += [0.0] * min(workers - len(free), len(costs) + 1)
    heapq.heapify(free)
    for cost in costs:
        heapq.heapreplace(free, free[0] + cost)
    return max(free)
