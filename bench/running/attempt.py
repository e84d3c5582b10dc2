"""One attempt to break a defense: the attack of a job, run on its inputs and judged at each ε."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from manifold_bench.attacks.base import Attack
from manifold_bench.attacks.batching import batch_rows
from manifold_bench.attacks.target import Attacker, Target
from manifold_bench.attacks.threat import expand, within
from manifold_bench.bench.planning.jobs import Job
from manifold_bench.bench.running.heartbeat import Heartbeat
from manifold_bench.bench.running.judge import Inputs, Judge, Judgement, ScoredVerdict, unperturbed
from manifold_bench.defenses.base import Defense


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
    """A job in progress: its loaded defense, its inputs, the clean answers to them, and who tells how far it is."""

    job: Job
    defense: Defense
    inputs: Inputs
    clean: ScoredVerdict
    heartbeat: Heartbeat

    @property
    def attack(self) -> Attack:
        assert self.job.attack is not None
        return self.job.attack

    @cached_property
    def judge(self) -> Judge:
        return Judge(self.defense, self.attack.norm, self.job.draws, self.job.seed)

    def cells(self) -> Iterator[Cell]:
        """Attack and judge at each ε, in ascending order."""
        return self._one_run() if self.attack.minimal else self._run_at_each_eps()

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
            size = state.distance(self.attack.norm)
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
        size = found.distance(self.attack.norm)
        distance = torch.where(found.success, size, torch.inf)
        seconds = time.perf_counter() - begun
        for number, eps in enumerate(self.job.eps):
            reached = found.success & within(size, self.attack.norm, eps)
            state = found.where(reached | ~found.valid, clean)
            shown = torch.where(expand(reached, adversarial), adversarial, self.inputs.x)
            once = 1.0 if number == 0 else 0.0
            yield Cell(eps, shown, state, distance, run.forwards * once, run.backwards * once, seconds * once)

    def _attack(self, rows: Tensor, eps: float) -> Attacked:
        """Attack those rows of the inputs in batches, and judge the outputs."""
        job, attack = self.job, self.attack
        forwards = torch.zeros(len(self.inputs), dtype=torch.float64)
        backwards = torch.zeros_like(forwards)
        tried, before = self.inputs[rows], self.clean.of(rows)
        outputs = tried.x.clone()
        self.heartbeat.begin(eps, len(rows))
        if not len(rows):  # all beaten at a smaller ε: networks need not take an empty batch
            return Attacked(outputs, unperturbed(tried, before), forwards, backwards)
        for part in torch.arange(len(rows), device=rows.device).split(batch_rows(tried.x)):
            batch = tried[part]
            attacker = Attacker(
                aims=None if attack.aims == "none" else batch.aims,
                held_out=self._held_out,
                source=partial(job.source.load, job.device) if job.source else None,
                max_forwards=attack.max_forwards,
            )
            target = Target(self.defense, len(batch), attacker, self.heartbeat.beat)
            found = attack.run(target, batch.x.clone(), batch.y.clone(), eps, job.seed)
            if not isinstance(found, Tensor):
                raise TypeError(f"the attack returned {type(found).__name__}, not a tensor of images")
            if found.shape != batch.x.shape:
                raise ValueError(f"the attack returned shape {tuple(found.shape)} for inputs {tuple(batch.x.shape)}")
            outputs[part] = found.detach().to(outputs)
            forwards[rows[part].cpu()], backwards[rows[part].cpu()] = target.forwards, target.backwards
            self.heartbeat.end_batch(target)
        return Attacked(outputs, self.judge.judge(tried, before, outputs, eps), forwards, backwards)

    def _held_out(self) -> tuple[Tensor, Tensor]:
        """The attacker's own images and labels: the validation split."""
        data = self.job.dataset.load().validation
        return data.images.to(self.job.device), data.labels.to(self.job.device)
