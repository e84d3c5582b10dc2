"""Forecasts how long a plan takes on this machine, from times of earlier runs or else from a short calibration."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from manifold_bench.attacks.gradient import PGD
from manifold_bench.attacks.target import Target
from manifold_bench.bench.errors import InputError
from manifold_bench.bench.planning.declared import solver_steps
from manifold_bench.bench.planning.jobs import Job
from manifold_bench.bench.planning.plan import Plan
from manifold_bench.bench.planning.usercode import contained
from manifold_bench.bench.records.store import Store
from manifold_bench.bench.running.estimate import ANSWER, OVERHEAD, Estimator, Kind, time_left
from manifold_bench.bench.running.job import inputs
from manifold_bench.bench.running.judge import load_defense, verdict
from manifold_bench.bench.running.reuse import baseline_folders
from manifold_bench.bench.running.timings import estimator_of

IMAGES, IMAGES_OPTIMISING = 64, 8
"""Numbers of images of a calibration; the second for defenses that optimise at inference."""

STEPS, STEPS_OPTIMISING = 2, 1
"""Numbers of steps of a calibration's ascent; the second for defenses that optimise at inference."""

UNBEATABLE = 1e-4
"""L∞ size of a calibration's perturbations, so small that no image leaves the ascent early."""

LARGE = 8.0
"""Billions of operations for a calibration's images above which a defense's time is computed from these instead."""

AROUND = 8.0
"""Seconds of a run outside its jobs: before the first one starts, and for the report."""


@dataclass(frozen=True)
class Forecast:
    """A forecast. jobs: wall seconds of each job that has to run, by its key. total: seconds of the whole run.

    calibrated: labels of the defenses whose speed was measured or computed for this forecast, as they have no earlier
    runs.
    """

    jobs: Mapping[str, float]
    total: float
    calibrated: tuple[str, ...]


class Forecaster:
    """Forecasts plans for this machine; a defense is calibrated once for all of them."""

    def __init__(self, device: str, workers: int) -> None:
        self.device, self.workers = device, max(1, workers)
        self._calibrated: dict[str, None] = {}

    @cached_property
    def _estimator(self) -> Estimator:
        """What earlier runs say, read when the first forecast is made: most runs make none."""
        return estimator_of(self.device)

    def forecast(self, plan: Plan, store: Store) -> Forecast:
        """Forecast the jobs of a plan that have no records in the store.

        Trainings and measurements are not counted.
        """
        waiting = [job for job in plan.jobs if not job.skip and store.status(job) != "ok"]
        of_defenses = {(job.dataset, job.defense.label): job for job in reversed(waiting)}.values()
        unknown = [job for job in of_defenses if job.defense.trained and not self._estimator.knows(Kind.of(job))]
        if unknown:
            self._calibrate(sorted(unknown, key=_work))
            self._estimator.compare_with(_baseline(plan))
        seconds = map(self._estimator.wall, self._estimator.seconds(waiting))
        jobs = {job.key: one for job, one in zip(waiting, seconds, strict=True)}
        total = time_left([], jobs.values(), self.workers) + AROUND if jobs else AROUND
        return Forecast(jobs, total, tuple(self._calibrated))

    def _calibrate(self, jobs: Iterable[Job]) -> None:
        """Learn the speeds of the jobs' defenses; those that come first take the fewest operations.

        Where the matrix limits work, operations are known, and the time of a slow defense is computed from them. The
        fastest defense that was measured says how long an operation takes, because large networks use a processor best.
        """
        rates: list[float] = []
        for job in jobs:
            self._calibrated[job.defense.label] = None
            if rates and _work(job) > LARGE:
                self._learn(job, 1.0, min(rates) * _work(job))
                continue
            # a user's code that fails here also fails in the run, with its reason
            with suppress(InputError), contained(f"defense {job.defense.label!r} cannot be timed"):
                answers, seconds = calibrate(job)
                self._learn(job, answers, seconds)
                if job.operations:
                    rates.append(seconds / answers / _work(job))

    def _learn(self, job: Job, answers: float, seconds: float) -> None:
        """Learn how long that many answers of a job's defense to each image of a calibration take."""
        guess = ANSWER * max(1, job.inference_steps) * len(_few(job)) * answers
        self._estimator.learn(Kind.of(job)._replace(attack=None, guess=guess), seconds, seconds + OVERHEAD)


def _few(job: Job) -> tuple[int, ...]:
    """Return the indices of the images of a calibration."""
    return job.indices[: IMAGES_OPTIMISING if job.inference_steps else IMAGES]


def _work(job: Job) -> float:
    """Return billions of operations of one answer to each image of a calibration; 0 where they are not known."""
    return (job.operations or 0.0) * len(_few(job))


def _baseline(plan: Plan) -> Estimator:
    """Return an estimator that knows from the baseline of the plan's matrix how early its attacks stop."""
    estimator = Estimator()
    stores = [Store(folder) for folder in baseline_folders(Path(plan.matrix.source).stem)]
    jobs = sorted((*plan.jobs, *plan.other_jobs), key=lambda job: job.attack is not None)
    for job in jobs:
        for store in stores:
            if not job.skip and store.status(job) == "ok":
                seconds = float(store.read(store.path(job))[0]["seconds"].sum())
                estimator.observe(job, seconds, seconds)
                break
    return estimator


def calibrate(job: Job) -> tuple[float, float]:
    """Let the job's defense answer a few images and attack it shortly; return answers for each image, and seconds."""
    small = replace(job, indices=_few(job), split="test", attack=None)
    attack = PGD(norm="linf", steps=STEPS_OPTIMISING if job.inference_steps else STEPS)
    with one_thread(), torch.random.fork_rng():
        rows = inputs(small).to(job.device)
        defense = load_defense(small, rows.x)
        for _ in range(1 if job.inference_steps else 2):  # the second time counts: a process' first passes are slower
            begun = time.perf_counter()
            verdict(defense, rows.x, rows.y, 1, 0)
            attack.run(Target(defense, len(rows)), rows.x, rows.y, UNBEATABLE, 0)
            seconds = time.perf_counter() - begun
    forwards, backwards = map(float, attack.passes())
    if job.inference_steps:  # in the units of `planning.jobs.Job`
        forwards *= max(1, solver_steps(attack, defense)) / job.inference_steps
        backwards /= job.inference_steps
    return 1 + forwards + backwards, seconds


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread, as in workers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def duration(seconds: float) -> str:
    """Return seconds as a short text: 40 s, 12 min, 1.5 h."""
    if seconds < 90:
        return f"{round(seconds)} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
