"""One attempt to break a defense: the outputs of a job's attack, judged at each ε."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from manifold_bench.attacks.threat import expand, within
from manifold_bench.bench.planning.jobs import Job
from manifold_bench.bench.running.attacking import AttackProcess
from manifold_bench.bench.running.judge import Inputs, Judge, Judgement, ScoredVerdict, unperturbed


@dataclass(frozen=True)
class Cell:
    """What came of a job at one ε.

    outputs [N,C,H,W]: the images that are judged, until the next cell is asked for. distance [N]: of the smallest
    perturbation so far that was a success, ∞ where there is none. forwards, backwards [N]: passes at this ε. seconds:
    of attacking and judging all inputs.
    """

    eps: float
    outputs: Tensor
    judgement: Judgement
    distance: Tensor
    forwards: Tensor
    backwards: Tensor
    seconds: float


@dataclass(frozen=True)
class Attacked:
    """Outputs [A,C,H,W] of an attack on A of the N inputs, their judgement, and the passes [N] of all inputs."""

    outputs: Tensor
    judgement: Judgement
    forwards: Tensor
    backwards: Tensor


@dataclass(frozen=True)
class Attempt:
    """A job in progress: the process that attacks, who judges, the inputs, and the clean answers to them."""

    job: Job
    attacker: AttackProcess
    judge: Judge
    inputs: Inputs
    clean: ScoredVerdict

    def cells(self) -> Iterator[Cell]:
        """Attack and judge at each ε, in ascending order."""
        assert self.job.attack is not None
        return self._one_run() if self.job.attack.minimal else self._run_at_each_eps()

    def _run_at_each_eps(self) -> Iterator[Cell]:
        """What is beaten at one ε stays beaten, larger ones attack the rest; without a ladder each attacks all."""
        adversarial = self.inputs.x.clone()
        state = unperturbed(self.inputs, self.clean)
        distance = torch.where(state.success, 0.0, torch.inf)
        for eps in self.job.eps:
            begun = time.perf_counter()
            active = (~state.success if self.job.ladder else torch.ones_like(state.success)).nonzero()[:, 0]
            found = self._attack(active, eps)
            adversarial[active] = found.outputs
            state = state.replaced(active, found.judgement)
            size = state.distance(self.judge.norm)
            distance = torch.where(state.success, torch.minimum(distance, size), distance)
            seconds = time.perf_counter() - begun
            yield Cell(eps, adversarial, state, distance, found.forwards, found.backwards, seconds)

    def _one_run(self) -> Iterator[Cell]:
        """At each ε the inputs whose smallest perturbation is no larger count as beaten; the others are as they were.

        The passes are those of the run: they are recorded at the smallest ε and nowhere else.
        """
        begun = time.perf_counter()
        clean = unperturbed(self.inputs, self.clean)
        active = (~clean.success).nonzero()[:, 0]
        run = self._attack(active, float("inf"))
        adversarial = self.inputs.x.clone()
        adversarial[active] = run.outputs
        found = clean.replaced(active, run.judgement)
        size = found.distance(self.judge.norm)
        distance = torch.where(found.success, size, torch.inf)
        seconds = time.perf_counter() - begun
        for number, eps in enumerate(self.job.eps):
            reached = found.success & within(size, self.judge.norm, eps)
            state = found.where(reached | ~found.valid, clean)
            shown = torch.where(expand(reached, adversarial), adversarial, self.inputs.x)
            once = 1.0 if number == 0 else 0.0
            yield Cell(eps, shown, state, distance, run.forwards * once, run.backwards * once, seconds * once)

    def _attack(self, rows: Tensor, eps: float) -> Attacked:
        """Have those rows of the inputs attacked, and judge the outputs."""
        forwards = torch.zeros(len(self.inputs), dtype=torch.float64)
        backwards = torch.zeros_like(forwards)
        tried, before = self.inputs[rows], self.clean.of(rows)
        if not len(rows):  # all beaten at a smaller ε: networks need not take an empty batch
            return Attacked(tried.x, unperturbed(tried, before), forwards, backwards)
        found = self.attacker.attack(rows, eps)
        forwards[rows.cpu()], backwards[rows.cpu()] = found.forwards, found.backwards
        return Attacked(found.outputs, self.judge.judge(tried, before, found.outputs, eps), forwards, backwards)
