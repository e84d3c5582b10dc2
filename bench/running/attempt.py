"""One attempt to break a defense: the outputs of a job's attack, judged at each ε."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from manifold_bench.attacks.threat import expand, grey_levels, on_the_grid, within
from manifold_bench.bench.planning.jobs import Job
from manifold_bench.bench.running.attacking import AttackProcess, Found
from manifold_bench.bench.running.judge import Inputs, Judge, Judgement, ScoredVerdict, unperturbed


@dataclass(frozen=True)
class Cell:
    """What came of a job at one ε.

    outputs [N,C,H,W]: the images that are judged, until the next cell is asked for. distance [N]: of the smallest
    perturbation so far that was a success, ∞ where there is none. effort: what the attack did at this ε. seconds: of
    attacking and judging all inputs.
    """

    eps: float
    outputs: Tensor
    judgement: Judgement
    distance: Tensor
    effort: Effort
    seconds: float


@dataclass(frozen=True)
class Effort:
    """What an attack did for each input, all [N]; of an input that was not attacked, that nothing is wrong.

    forwards, backwards: passes. unreturned: whether the judged image is one that the attack met on a query and did not
    return, or its output rounded to whole grey levels. Of the time before the first success: blind, the share of the
    gradients that were exactly zero or not finite (NaN: none was asked for); moved, whether any query or the output was
    another image than the input; improved, whether any query came nearer to success than the first one.
    """

    forwards: Tensor
    backwards: Tensor
    unreturned: Tensor
    blind: Tensor
    moved: Tensor
    improved: Tensor

    @classmethod
    def none(cls, n: int) -> Effort:
        """Of n inputs that nothing has been done for."""
        zeros, nothing = torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.bool)
        return cls(zeros, zeros.clone(), nothing, zeros + torch.nan, ~nothing, ~nothing)

    def store(self, rows: Tensor, found: Found) -> None:
        """Take in what an attack did for the inputs at rows [n]."""
        for name in ("forwards", "backwards", "blind", "moved", "improved"):
            getattr(self, name)[rows.cpu()] = getattr(found, name)

    def without_passes(self) -> Effort:
        return replace(self, forwards=self.forwards * 0, backwards=self.backwards * 0)


@dataclass(frozen=True)
class Attacked:
    """Images [A,C,H,W] that an attack on A of the N inputs came to, their judgement, and the effort for all inputs."""

    outputs: Tensor
    judgement: Judgement
    effort: Effort


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
            yield Cell(eps, adversarial, state, distance, found.effort, seconds)

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
            effort = run.effort if number == 0 else run.effort.without_passes()
            yield Cell(eps, shown, state, distance, effort, seconds if number == 0 else 0.0)

    def _attack(self, rows: Tensor, eps: float) -> Attacked:
        """Have those rows of the inputs attacked, and judge what may be a success.

        These are the outputs, the best points that were met, and rejected outputs rounded to whole grey levels.
        """
        effort = Effort.none(len(self.inputs))
        tried, before = self.inputs[rows], self.clean.of(rows)
        if not len(rows):  # all beaten at a smaller ε: networks need not take an empty batch
            return Attacked(tried.x, unperturbed(tried, before), effort)
        found = self.attacker.attack(rows, eps)
        effort.store(rows, found)
        outputs, judgement = found.outputs, self.judge.judge(tried, before, found.outputs, eps)
        returned = judgement.distance(self.judge.norm).masked_fill(~judgement.success, torch.inf)
        others = [(found.met, found.met_distance < returned)]
        if (levels := grey_levels(tried.x)) is not None:
            # A detector may reject an image merely because its pixels are no whole grey levels
            others.append((on_the_grid(outputs, tried.x, levels), judgement.valid & judgement.rejected))
        for points, chosen in others:
            again = chosen.nonzero()[:, 0]
            if not len(again):
                continue
            answer = self.judge.judge(tried[again], before.of(again), points[again], eps)
            better, answer = again[answer.success], answer.of(answer.success)
            outputs[better], judgement = points[better], judgement.replaced(better, answer)
            effort.unreturned[rows[better].cpu()] = True
        return Attacked(outputs, judgement, effort)
