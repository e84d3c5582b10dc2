"""One job in progress: its attack, and the judgement of the attack's outputs at each ε."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from manifold_bench.attacks.threat import expand, grey_levels, on_the_grid, to_levels, within
from manifold_bench.bench.planning.jobs import Job
from manifold_bench.bench.running.attacking import AttackProcess, Found
from manifold_bench.bench.running.judge import Inputs, Judge, Judgement, WorstVerdict, unperturbed
from manifold_bench.bench.running.remarks import levels_of_jumps


@dataclass(frozen=True)
class AttemptAtSize:
    """The results of a job at one ε.

    outputs: judged images [N,C,H,W], which are overwritten at the next ε. judgement: their judgement. distance: size of
    the smallest perturbation so far that was a success, [N]; ∞ if there is none. effort: effort of the attack at this
    ε. seconds: time of attacking and judging all inputs.
    """

    eps: float
    outputs: Tensor
    judgement: Judgement
    distance: Tensor
    effort: Effort
    seconds: float


@dataclass(frozen=True)
class Effort:
    """The effort of an attack for each input, all [N]; inputs that were not attacked show no sign of a weak attack.

    forwards, backwards: numbers of passes. unreturned: whether the judged image is an image of a query that the attack
    did not return, or its output rounded to whole grey levels. The others cover the time before the first success.
    blind: share of the gradients that were exactly zero or not finite; NaN without gradients. moved: whether any query
    or the output differed from the input. improved: whether any query came nearer to success than the first one.
    """

    forwards: Tensor
    backwards: Tensor
    unreturned: Tensor
    blind: Tensor
    moved: Tensor
    improved: Tensor

    @classmethod
    def none(cls, n: int) -> Effort:
        """Return the effort for n inputs that were not attacked."""
        zeros, nothing = torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.bool)
        return cls(zeros, zeros.clone(), nothing, zeros + torch.nan, ~nothing, ~nothing)

    def store(self, rows: Tensor, found: Found) -> None:
        """Store the effort of an attack for the inputs at rows [n]."""
        for name in ("forwards", "backwards", "blind", "moved", "improved"):
            getattr(self, name)[rows.cpu()] = getattr(found, name)

    def add(self, rows: Tensor, found: Found) -> None:
        """Add the passes of one more attack on the inputs at rows [n]; the first one alone shows whether it tried."""
        self.forwards[rows.cpu()] += found.forwards
        self.backwards[rows.cpu()] += found.backwards

    def without_passes(self) -> Effort:
        """Return the same effort with 0 passes."""
        return replace(self, forwards=self.forwards * 0, backwards=self.backwards * 0)


@dataclass(frozen=True)
class Attacked:
    """Images [A,C,H,W] of an attack on A of N inputs, their judgement, and the effort for all inputs.

    nearest: size of the smallest perturbation that was judged a success, [A]; ∞ if there is none.
    """

    outputs: Tensor
    judgement: Judgement
    effort: Effort
    nearest: Tensor


@dataclass(frozen=True)
class Attempt:
    """A job in progress: the process that attacks, the judge, the inputs, and the clean answers to them."""

    job: Job
    attacker: AttackProcess
    judge: Judge
    inputs: Inputs
    clean: WorstVerdict

    def at_each_size(self) -> Iterator[AttemptAtSize]:
        """Attack and judge at each ε in ascending order; yield the results at each."""
        assert self.job.attack is not None
        return self._one_run() if self.job.attack.minimal else self._run_at_each_eps()

    def _run_at_each_eps(self) -> Iterator[AttemptAtSize]:
        """Run the attack at each ε on the inputs that are not beaten yet; without a ladder, on all inputs.

        An input of a randomized defense is attacked until every answer is a success. On the ladder it keeps the image
        of a smaller ε where more answers to that one are successes.
        """
        adversarial = self.inputs.x.clone()
        state = unperturbed(self.inputs, self.clean)
        distance = torch.where(state.success, 0.0, torch.inf).double()
        for eps in self.job.eps:
            begun = time.perf_counter()
            active = (~state.beaten if self.job.ladder else torch.ones_like(state.success)).nonzero()[:, 0]
            found = self._attack(active, eps)
            takes = (found.judgement.wins >= state.wins[active]) | (not self.job.ladder)
            changed = active[takes]
            adversarial[changed] = found.outputs[takes]
            state = state.replaced(changed, found.judgement.of(takes))
            distance = distance.index_put((active,), torch.minimum(distance[active], found.nearest))
            seconds = time.perf_counter() - begun
            yield AttemptAtSize(eps, adversarial, state, distance, found.effort, seconds)

    def _one_run(self) -> Iterator[AttemptAtSize]:
        """Run a minimal attack once; at each ε the inputs with a perturbation within ε count as beaten.

        The passes of the run are recorded at the smallest ε alone.
        """
        begun = time.perf_counter()
        clean = unperturbed(self.inputs, self.clean)
        active = (~clean.beaten).nonzero()[:, 0]
        run = self._attack(active, float("inf"))
        takes = run.judgement.wins >= clean.wins[active]
        changed = active[takes]
        adversarial = self.inputs.x.clone()
        adversarial[changed] = run.outputs[takes]
        found = clean.replaced(changed, run.judgement.of(takes))
        size = found.distance(self.judge.norm)
        distance = torch.where(clean.success, 0.0, torch.inf).double()
        distance = distance.index_put((active,), torch.minimum(distance[active], run.nearest))
        seconds = time.perf_counter() - begun
        for number, eps in enumerate(self.job.eps):
            reached = found.success & within(size, self.judge.norm, eps)
            state = found.where(reached | ~found.valid, clean)
            shown = torch.where(expand(reached, adversarial), adversarial, self.inputs.x)
            effort = run.effort if number == 0 else run.effort.without_passes()
            yield AttemptAtSize(eps, shown, state, distance, effort, seconds if number == 0 else 0.0)

    def _attack(self, rows: Tensor, eps: float) -> Attacked:
        """Attack those rows of the inputs, and judge all images that may be successes.

        These are the outputs, the best images of queries, and rejected outputs rounded to whole grey levels. If the
        defense jumps between grey levels (`levels_of_jumps`), a second attack rounds all images. Of several
        the one with the most successful answers counts, and the later one where these are equal; of a minimal attack
        the later success, which is the nearer one.
        """
        effort = Effort.none(len(self.inputs))
        tried, before = self.inputs[rows], self.clean.of(rows)
        if not len(rows):  # all were beaten at a smaller ε, and networks may not take an empty batch
            return Attacked(tried.x, unperturbed(tried, before), effort, rows.double())
        found = self.attacker.attack(rows, eps)
        effort.store(rows, found)
        outputs, judgement = found.outputs, self.judge.judge(tried, before, found.outputs, eps)
        nearest = self._size_of_success(judgement)
        minimal = self.job.attack is not None and self.job.attack.minimal

        def judge_instead(points: Tensor, chosen: Tensor) -> None:
            """Judge points [A,C,H,W] in place of the outputs where chosen [A]; successes replace these."""
            nonlocal judgement
            again = chosen.nonzero()[:, 0]
            if not len(again):
                return
            answer = self.judge.judge(tried[again], before.of(again), points[again], eps)
            nearest[again] = torch.minimum(nearest[again], self._size_of_success(answer))
            takes = answer.success & ((answer.wins >= judgement.wins[again]) | minimal)
            better, answer = again[takes], answer.of(takes)
            outputs[better], judgement = points[better], judgement.replaced(better, answer)
            effort.unreturned[rows[better].cpu()] = True

        judge_instead(found.met, found.met_distance < nearest)
        left = (~judgement.success).nonzero()[:, 0]
        if len(left) and (levels := self._levels_of_jumps) and (size := self._size_on(levels, eps)):
            found = self.attacker.attack(rows[left], size, levels)
            effort.add(rows[left], found)
            for points in (found.outputs, found.met):
                rounded = outputs.index_copy(0, left, to_levels(points, levels))
                judge_instead(rounded, ~judgement.success)
        rejected = judgement.valid & judgement.rejected
        # A detector may reject an image only because its pixels are not whole grey levels
        if rejected.any() and (levels := grey_levels(tried.x)) is not None:
            judge_instead(on_the_grid(outputs, tried.x, levels), rejected)
        return Attacked(outputs, judgement, effort, nearest)

    @cached_property
    def _levels_of_jumps(self) -> int | None:
        return levels_of_jumps(self.judge.defense, self.inputs.x)

    def _size_on(self, levels: int, eps: float) -> float:
        """Return the size for an attack whose images are rounded to grey levels, and are at most ε away then.

        It is 0 where no other grey level is so near.
        """
        if self.judge.norm != "linf" or math.isinf(eps):
            return eps
        steps = math.floor(eps * levels + 1e-6)
        return (steps + 0.49) / levels if steps else 0.0

    def _size_of_success(self, judgement: Judgement) -> Tensor:
        """Return the size of each perturbation that is a success, ∞ for the others."""
        return judgement.distance(self.judge.norm).masked_fill(~judgement.success, torch.inf)
