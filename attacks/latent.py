"""Attacks that search the latents of a generator, with the distance to the input as a Lagrangian term.

They start from a real image and its latent, and descend by `lagrangian.descend`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor
from torch.nn import functional as F

from manifold_bench.attacks.base import Attack
from manifold_bench.attacks.batching import all_rows, blockwise, padded
from manifold_bench.attacks.contract import AttackableDefense, projects
from manifold_bench.attacks.gradient import Best
from manifold_bench.attacks.lagrangian import SAMPLES, Descent, IterateValues, ProblemValues, descend, l2_distance
from manifold_bench.attacks.losses import likeliest_wrong, margin, typical_temperature
from manifold_bench.attacks.target import Target
from manifold_bench.attacks.threat import Norm, draw_per_input, project

CONFIRMATIONS = 5
"""Number of times in a descent that the deployed defense answers possible successes."""

DRAWS = 3
"""Number of answers of a randomized defense that have to be wrong before an input leaves the batch."""


class RangeProblem:
    """Images x [N,C,H,W] with labels y [N], and the parts of a defense that projects, for one attack; it counts passes.

    start: z*(x) [N,k], by the defense's own inversion. rivals: images [N,C,H,W] of the generator that are classified
    rightly, first G(z*); an adversarial image has to be nearer to a wrongly classified one than to any rival. eta:
    largest accepted L2 distance between an image and its projection.
    """

    def __init__(self, target: Target, x: Tensor, y: Tensor, norm: Norm, eps: float) -> None:
        self.target, self.x, self.y, self.norm, self.eps = target, x, y, norm, eps
        defense = target.defense
        if not projects(defense):
            raise ValueError("this defense has no generator that it inverts")
        self.generator, self.classifier = padded(defense.generator), target.outputs("classifier")
        self.inverter, self.eta = padded(defense.inverter), float(defense.eta)
        self.rows = all_rows(x)
        self.start = self.inverted(x, self.rows)
        self.rivals = [blockwise(self.generator, self.start)]

    @cached_property
    def unit(self) -> Tensor:
        """The unit of the logits, [N,1]: the `typical_temperature` of the logits of G(z*)."""
        logits = blockwise(self.classifier, self.rivals[0])
        return typical_temperature(logits, self.target.num_classes)[:, None]

    def inverted(self, images: Tensor, rows: Tensor) -> Tensor:
        """Return latents [n,k] of images [n,C,H,W] by the defense's full inversion; it counts as one forward pass."""
        self.target.count(rows, 1, 0)
        with torch.no_grad():
            return self.inverter(images)

    def margin_loss(self, logits: Tensor, rows: Tensor, confidence: float) -> Tensor:
        """Return by how much the margin of the likeliest wrong class is below `confidence`, [n], at least 0."""
        return F.relu(confidence - margin(logits, self.y[rows], self.target.num_classes))

    def wrong(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Return whether logits [n,K] name a class other than the label of the inputs `rows` [n], as [n] bool."""
        return logits.argmax(1) != self.y[rows]

    def distance_limit(self, images: Tensor, rows: Tensor) -> Tensor:
        """Return the largest allowed distance of images [n,C,H,W] to their projections, [n].

        It is η, or the distance to the nearest of `rivals` where that is smaller.
        """
        return torch.stack([l2_distance(images, rival[rows]) for rival in self.rivals]).amin(0).clamp_max(self.eta)

    def add_rivals(self, images: Tensor, rows: Tensor) -> Tensor:
        """Add the projections of images [n,C,H,W] to the rivals, and return the latents [n,k] of these projections.

        A projection that is classified wrongly, which a randomized defense may find, is not added.
        """
        z = self.inverted(images, rows)
        found = blockwise(self.generator, z)
        right = ~self.wrong(blockwise(self.classifier, found), rows)
        rival = self.rivals[0].clone()
        rival[rows[right]] = found[right]
        self.rivals.append(rival)
        return z

    def fooled(self, images: Tensor, rows: Tensor, claimed: Tensor) -> Tensor:
        """Return in what share of its answers the deployed defense is fooled by each claimed image [n]; 0 for others.

        A deterministic defense answers once. A randomized one answers up to DRAWS times, until it is not fooled.
        """
        share, tried = self.x.new_zeros(len(rows)), claimed.nonzero()[:, 0]
        draws = DRAWS if self.target.defense.randomized else 1
        for draw in range(1, draws + 1):
            if not len(tried):
                break
            tried = tried[self.target.verdict(images[tried], rows[tried]).wrong(self.y[rows[tried]])]
            share[tried] = draw / draws
        return share

    def projected(self, images: Tensor, rows: Tensor) -> Tensor:
        """Return the images of the balls around the inputs of those rows that are nearest to `images`, [n,C,H,W]."""
        return project(images, self.x[rows], self.norm, self.eps)

    def starts(self, count: int, seed: int) -> Iterator[Tensor]:
        """Yield `count` starts [N,k], one after the other.

        The first is z*. Then two kinds alternate: the point where the class changes on the way from z* to the nearest
        random sample of a wrong class, nearest classes first; and z* plus noise of half its size.
        """
        yield self.start
        if count == 1:
            return
        drawn = torch.randn(SAMPLES, self.start.shape[1], generator=torch.Generator().manual_seed(seed)).to(self.start)
        images = blockwise(self.generator, drawn)
        labels = blockwise(self.classifier, images).argmax(1)
        self.target.count(self.rows, SAMPLES / len(self.rows), 0)
        distance = torch.cdist(
            self.rivals[0].flatten(1), images.flatten(1), compute_mode="donot_use_mm_for_euclid_dist"
        )
        classes = range(self.target.num_classes)
        nearest = [distance.masked_fill(labels != c, torch.inf).min(1) for c in classes]
        # The nearest class first; classes without a sample, and the true class, last
        order = likeliest_wrong(-torch.stack([near.values for near in nearest], 1), self.y, len(classes))
        goals = drawn[torch.stack([near.indices for near in nearest], 1).gather(1, order)]
        for number in range(1, count):
            if number % 2:
                yield self._crossing(goals[:, (number // 2) % goals.shape[1]])
            else:
                noise = draw_per_input(self.x, seed + number, lambda g: torch.randn(self.start.shape[1], generator=g))
                yield self.start + noise * (self.start.square().mean(1, keepdim=True).sqrt() / 2)

    def _crossing(self, goal: Tensor) -> Tensor:
        """Return the first of seven points from z* to `goal` [N,k] whose image gets a wrong class, or else `goal`."""
        found, open_ = goal.clone(), torch.ones_like(self.rows, dtype=torch.bool)
        for eighth in range(1, 8):
            point = self.start + (goal - self.start) * eighth / 8
            self.target.count(self.rows, 1, 0)
            wrong = blockwise(lambda z: self.classifier(self.generator(z)), point).argmax(1) != self.y
            found = torch.where((wrong & open_)[:, None], point, found)
            open_ &= ~wrong
        return found


@dataclass(frozen=True, kw_only=True)
class RangeAttack(Attack):
    """The base of attacks that search the latents of a defense that projects.

    steps, rate: number of steps and learning rate of each descent, by Adam on z.
    starts: number of descents, each from its own start (`RangeProblem.starts`).
    confidence: margin of the wrong class that the attack demands, in units of `RangeProblem.unit`.
    ascent: share of the constraint's excess by which its multiplier grows in a step.
    """

    knowledge = "white-box"
    version: ClassVar[int] = 4

    steps: Annotated[int, Ge(1)] = 200
    starts: Annotated[int, Ge(1)] = 1
    rate: Annotated[float, Gt(0), Lt(math.inf)] = 0.1
    ascent: Annotated[float, Gt(0), Lt(math.inf)] = 0.2
    confidence: Annotated[float, Ge(0), Lt(math.inf)] = 5.0

    def steps_of_a_pass(self, defense: AttackableDefense) -> int:
        """Return the mean number of solver steps for each pass; only confirmations run the solver."""
        return math.ceil(defense.inference_steps * self.starts * CONFIRMATIONS / sum(self.passes()))

    def unsuited(self, defense: AttackableDefense) -> str | None:
        return None if projects(defense) else "this attack is for defenses that project images on a generator's range"

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        problem = RangeProblem(target, x, y, self.norm, eps)
        rows, best = problem.rows, None
        for number, start in enumerate(problem.starts(self.starts, seed)):
            point = self.first_points(problem, start)
            best = best or Best(point.clone(), x.new_full((len(x),), -torch.inf))
            rows = self._search(problem, point[rows], rows, best, number)
            if not len(rows):
                break
        assert best is not None
        return self.adversarial(problem, best.point, problem.rows)

    def _search(self, problem: RangeProblem, point: Tensor, rows: Tensor, best: Best, number: int) -> Tensor:
        """Run one descent of those rows [n] from points [n,k], update `best`, and return the rows without a success.

        Every few steps the deployed defense answers all points that the classifier gets wrong: a point outside the
        constraint may still fool the real, unconverged search, so it is checked too. The best point is the one with the
        largest share of wrong answers, or else the one that is nearest to success.
        """
        left = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        every = max(1, self.steps // CONFIRMATIONS)

        def callback(point: Tensor, at: Tensor, values: IterateValues, step: int) -> Tensor:
            last, own = step == self.steps, rows[at]
            values.record_gradients(problem.target, own)
            beaten = torch.zeros_like(values.succeeded)
            if not last and step % every:
                return beaten
            value = -(values.loss + values.excess.clamp_min(0))
            if values.succeeded.any():
                fooled = self.confirmed(problem, point, own, values.succeeded)
                beaten = fooled == 1
                value = torch.where(fooled > 0, fooled, value)
            best.update(own, point, value, beaten)
            left[at[beaten]] = False
            return beaten

        descend(
            lambda point, at: self.evaluate(problem, point, rows[at]),
            point,
            callback,
            Descent(self.steps, self.learning_rates(problem), self.ascent),
            lambda point, at: self.feasible(problem, point, rows[at]),
        )
        return rows[left]

    def pass_limits(self, passes_per_step: int) -> tuple[int, int]:
        """Return the largest numbers of forward and backward passes.

        passes_per_step: number of passes through generator and classifier that each step takes.
        """
        # The samples are shared by a batch of about a hundred
        finding_starts = 0 if self.starts == 1 else SAMPLES // 100 + 7 * (self.starts // 2)
        descents = self.starts * passes_per_step * (self.steps + 1)
        return 1 + finding_starts + descents + passes_per_step * self.starts * (CONFIRMATIONS + 1), descents

    def confirmed(self, problem: RangeProblem, point: Tensor, rows: Tensor, claimed: Tensor) -> Tensor:
        """Return the share of the deployed defense's answers that each claimed point [n] fools, [n]; 0 for others."""
        share = problem.fooled(self.adversarial(problem, point, rows), rows, claimed)
        failed = claimed & (share < 1)
        if failed.any():
            self.on_failed_confirmation(problem, point, rows, failed)
        return share

    def on_failed_confirmation(self, problem: RangeProblem, point: Tensor, rows: Tensor, failed: Tensor) -> None:
        """Called with points [n,k]; may change those at `failed` [n], which did not fool the deployed defense."""

    def first_points(self, problem: RangeProblem, start: Tensor) -> Tensor:
        """Return the points that the descent starts from, one row for each latent of `start` [N,k]."""
        return start

    def learning_rates(self, problem: RangeProblem) -> float | Tensor:
        """Return Adam's learning rate: one for all coordinates of a point, or one for each."""
        return self.rate

    def feasible(self, problem: RangeProblem, point: Tensor, rows: Tensor) -> Tensor:
        """Return the feasible points that are nearest to `point` [n,k]."""
        return point

    @abstractmethod
    def evaluate(self, problem: RangeProblem, point: Tensor, rows: Tensor) -> ProblemValues:
        """Return the values of the constrained problem at points [n,k] of those rows."""

    @abstractmethod
    def adversarial(self, problem: RangeProblem, point: Tensor, rows: Tensor) -> Tensor:
        """Return images [n,C,H,W] within ε of the inputs `rows` [n], made from points [n,k]."""


@dataclass(frozen=True, kw_only=True)
class Latent(RangeAttack):
    """Searches the latents of a generator for a wrongly classified image near the input.

    It attacks z in C(G z), with the distance to x as a Lagrangian term (reparametrization).

    From the inversion of x it solves min_z max_{λ ≥ 0} margin_y(C(G z)) + λ · dist₂(G z, ball). It returns the image of
    the ball that is nearest to G z. In L2 that is often G z itself, for which the defense finds z again. An L∞ ball
    hardly contains images of the range: `combined` is stronger there.
    """

    paper = "athalye2018"

    def passes(self) -> tuple[int, int]:
        return self.pass_limits(1)

    def evaluate(self, problem: RangeProblem, point: Tensor, rows: Tensor) -> ProblemValues:
        problem.target.count(rows, 1, 1)
        images = problem.generator(point)
        logits = problem.classifier(images)
        nearest = problem.projected(images, rows)
        problem.target.record_logits(nearest, rows, logits)
        excess = l2_distance(images, nearest)
        loss = problem.margin_loss(logits / problem.unit[rows], rows, self.confidence)
        return ProblemValues(loss, excess, problem.wrong(logits, rows))

    def adversarial(self, problem: RangeProblem, point: Tensor, rows: Tensor) -> Tensor:
        return problem.projected(blockwise(problem.generator, point), rows)
