"""Attacks on the range of a generator: latents instead of images, and their distance as a Lagrangian.

`descend` is the engine. `overpowered_pairs` looks for two images of the range (Ilyas et al. 2017, section 5: the
"overpowered attack"); the attacks begin with a real image and its latent.
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
from manifold_bench.attacks.lagrangian import SAMPLES, Descent, Look, Seen, apart, descend
from manifold_bench.attacks.losses import likeliest_wrong, margin, typical_temperature
from manifold_bench.attacks.outputs import Scored
from manifold_bench.attacks.target import Target
from manifold_bench.attacks.threat import Norm, draw_per_input, project

CONFIRMATIONS = 5
"""Times in a descent that the full-strength defense is asked about what may be a success."""


DRAWS = 3
"""Answers of a randomized defense that have to be wrong for an input to leave the batch."""


class Scene:
    """What an attack knows of images x [N,C,H,W] with labels y [N] and of a defense that projects; counts its passes.

    start: z*(x) [N,k], by the defense's own inversion; rivals: images [N,C,H,W] of right answers, G(z*) the first: an
    attacked image has to be nearer to another one; eta: what lies further from its projection is rejected.
    """

    def __init__(self, target: Target, x: Tensor, y: Tensor, norm: Norm, eps: float) -> None:
        self.target, self.x, self.y, self.norm, self.eps = target, x, y, norm, eps
        defense = target.defense
        if not projects(defense):
            raise ValueError("this defense has no generator that it inverts")
        self.generator, self.classifier = padded(defense.generator), Scored(defense.classifier, target.num_classes)
        self.inverter, self.eta = padded(defense.inverter), float(defense.eta)
        self.all = all_rows(x)
        self.start = self.inverted(x, self.all)
        self.rivals = [blockwise(self.generator, self.start)]

    @cached_property
    def unit(self) -> Tensor:
        """What logits are measured in, [N,1]: the `typical_temperature` of those of G(z*)."""
        logits = blockwise(self.classifier, self.rivals[0])
        return typical_temperature(logits, self.target.num_classes)[:, None]

    def inverted(self, images: Tensor, rows: Tensor) -> Tensor:
        """Their latents [n,k] by the full inversion; it counts as a forward pass, as an answer does."""
        self.target.count(rows, 1, 0)
        with torch.no_grad():
            return self.inverter(images)

    def lacking(self, logits: Tensor, rows: Tensor, confidence: float) -> Tensor:
        """What the margin of a wrong class lacks to `confidence`, [n]."""
        return F.relu(confidence - margin(logits, self.y[rows], self.target.num_classes))

    def wrong(self, logits: Tensor, rows: Tensor) -> Tensor:
        return logits.argmax(1) != self.y[rows]

    def room(self, images: Tensor, rows: Tensor) -> Tensor:
        """How far from images [n,C,H,W] their projections may lie: nearer than every rival, and within η, [n]."""
        return torch.stack([apart(images, rival[rows]) for rival in self.rivals]).amin(0).clamp_max(self.eta)

    def add_rivals(self, images: Tensor, rows: Tensor) -> Tensor:
        """Makes what the full inversion finds for those images rivals; returns their latents [n,k].

        Where a randomized defense finds a wrong one this time there is none to add.
        """
        z = self.inverted(images, rows)
        found = blockwise(self.generator, z)
        right = ~self.wrong(blockwise(self.classifier, found), rows)
        rival = self.rivals[0].clone()
        rival[rows[right]] = found[right]
        self.rivals.append(rival)
        return z

    def fooled(self, images: Tensor, rows: Tensor, claimed: Tensor) -> Tensor:
        """In what share of its answers the full-strength defense is fooled by each claimed image [n]; 0 for the others.

        A deterministic one answers once; of a randomized one that was fooled the next answer is asked for.
        """
        share, asked = self.x.new_zeros(len(rows)), claimed.nonzero()[:, 0]
        draws = DRAWS if self.target.defense.randomized else 1
        for draw in range(1, draws + 1):
            if not len(asked):
                break
            asked = asked[self.target.verdict(images[asked], rows[asked]).wrong(self.y[rows[asked]])]
            share[asked] = draw / draws
        return share

    def projected(self, images: Tensor, rows: Tensor) -> Tensor:
        """The nearest images of their balls, [n,C,H,W]."""
        return project(images, self.x[rows], self.norm, self.eps)

    def starts(self, count: int, seed: int) -> Iterator[Tensor]:
        """`count` starts [N,k], one after the other.

        The first is z*; then in turn the way from z* to the sample that is nearest among those of a wrong class, as far
        as where the class changes, classes by nearness; and z* with noise half its size.
        """
        yield self.start
        if count == 1:
            return
        drawn = torch.randn(SAMPLES, self.start.shape[1], generator=torch.Generator().manual_seed(seed)).to(self.start)
        images = blockwise(self.generator, drawn)
        labels = blockwise(self.classifier, images).argmax(1)
        self.target.count(self.all, SAMPLES / len(self.all), 0)
        distance = torch.cdist(
            self.rivals[0].flatten(1), images.flatten(1), compute_mode="donot_use_mm_for_euclid_dist"
        )
        classes = range(self.target.num_classes)
        nearest = [distance.masked_fill(labels != c, torch.inf).min(1) for c in classes]
        # The nearest class first; one that has no sample, and the own one, last
        order = likeliest_wrong(-torch.stack([near.values for near in nearest], 1), self.y, len(classes))
        goals = drawn[torch.stack([near.indices for near in nearest], 1).gather(1, order)]
        for number in range(1, count):
            if number % 2:
                yield self._crossing(goals[:, (number // 2) % goals.shape[1]])
            else:
                noise = draw_per_input(self.x, seed + number, lambda g: torch.randn(self.start.shape[1], generator=g))
                yield self.start + noise * (self.start.square().mean(1, keepdim=True).sqrt() / 2)

    def _crossing(self, goal: Tensor) -> Tensor:
        """The first of eight points on the way from z* to `goal` [N,k] whose image is of a wrong class, else it."""
        found, open_ = goal.clone(), torch.ones_like(self.all, dtype=torch.bool)
        for eighth in range(1, 8):
            point = self.start + (goal - self.start) * eighth / 8
            self.target.count(self.all, 1, 0)
            wrong = blockwise(lambda z: self.classifier(self.generator(z)), point).argmax(1) != self.y
            found = torch.where((wrong & open_)[:, None], point, found)
            open_ &= ~wrong
        return found


@dataclass(frozen=True, kw_only=True)
class RangeAttack(Attack):
    """What searches the latents of a defense that projects.

    steps, rate: number of steps and learning rate of each descent, by Adam on z.
    starts: number of descents, each from a start of its own (`Scene.starts`).
    confidence: margin of the wrong class up to which is climbed, in units of `Scene.unit`.
    ascent: share of its excess by which the multiplier grows in a step.
    """

    knowledge = "white-box"
    version: ClassVar[int] = 4

    steps: Annotated[int, Ge(1)] = 200
    starts: Annotated[int, Ge(1)] = 1
    rate: Annotated[float, Gt(0), Lt(math.inf)] = 0.1
    ascent: Annotated[float, Gt(0), Lt(math.inf)] = 0.2
    confidence: Annotated[float, Ge(0), Lt(math.inf)] = 5.0

    def steps_of_a_pass(self, defense: AttackableDefense) -> int:
        """Nearly all of its passes are the generator's and the classifier's, but for its confirmations."""
        return math.ceil(defense.inference_steps * self.starts * CONFIRMATIONS / sum(self.passes()))

    def unsuited(self, defense: AttackableDefense) -> str | None:
        return None if projects(defense) else "the defense has no generator that it inverts: no latents to search"

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        scene = Scene(target, x, y, self.norm, eps)
        rows, best = scene.all, None
        for number, start in enumerate(scene.starts(self.starts, seed)):
            point = self.begin(scene, start)
            best = best or Best(point.clone(), x.new_full((len(x),), -torch.inf))
            rows = self._search(scene, point[rows], rows, best, number)
            if not len(rows):
                break
        assert best is not None
        return self.answer(scene, best.point, scene.all)

    def _search(self, scene: Scene, point: Tensor, rows: Tensor, best: Best, number: int) -> Tensor:
        """The descent of that number of those rows [n] from points [n,k]; returns the rows that aren't beaten yet.

        Every few steps the full-strength defense answers all points that the classifier gets wrong: a point outside the
        constraint may still fool the real, unconverged search, so it is checked too. `best` is updated by the share of
        wrong answers, and where there is none, by what the point lacks and its excess.
        """
        left = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        every = max(1, self.steps // CONFIRMATIONS)

        def visit(point: Tensor, at: Tensor, seen: Seen, step: int) -> Tensor:
            last, own = step == self.steps, rows[at]
            seen.differentiated(scene.target, own)
            beaten = torch.zeros_like(seen.reached)
            if not last and step % every:
                return beaten
            value = -(seen.lacking + seen.excess.clamp_min(0))
            if seen.reached.any():
                fooled = self.asked(scene, point, own, seen.reached)
                beaten = fooled == 1
                value = torch.where(fooled > 0, fooled, value)
            best.update(own, point, value, beaten)
            left[at[beaten]] = False
            return beaten

        descend(
            lambda point, at: self.look(scene, point, rows[at]),
            point,
            visit,
            Descent(self.steps, self.rates(scene), self.ascent),
            lambda point, at: self.settle(scene, point, rows[at]),
        )
        return rows[left]

    def cost(self, looks: int) -> tuple[int, int]:
        """Passes at the most, where a step takes that many looks through generator and classifier."""
        # The samples are shared by a batch of some hundred
        finding_starts = 0 if self.starts == 1 else SAMPLES // 100 + 7 * (self.starts // 2)
        descents = self.starts * looks * (self.steps + 1)
        return 1 + finding_starts + descents + looks * self.starts * (CONFIRMATIONS + 1), descents

    def asked(self, scene: Scene, point: Tensor, rows: Tensor, claimed: Tensor) -> Tensor:
        """In what share of its answers each claimed point [n] fools the full-strength defense, see `Scene.fooled`."""
        share = scene.fooled(self.answer(scene, point, rows), rows, claimed)
        failed = claimed & (share < 1)
        if failed.any():
            self.denied(scene, point, rows, failed)
        return share

    def denied(self, scene: Scene, point: Tensor, rows: Tensor, failed: Tensor) -> None:
        """Told of the points [n,k] that looked like successes and weren't; may change them."""

    def begin(self, scene: Scene, start: Tensor) -> Tensor:
        """Latents [N,k] → the points that the descent begins with, a row each."""
        return start

    def rates(self, scene: Scene) -> float | Tensor:
        """Adam's, of all coordinates of a point or of each."""
        return self.rate

    def settle(self, scene: Scene, point: Tensor, rows: Tensor) -> Tensor:
        """The nearest points that are allowed."""
        return point

    @abstractmethod
    def look(self, scene: Scene, point: Tensor, rows: Tensor) -> Look:
        """What is seen at points of those rows; success is claimed where it is reached and not in excess."""

    @abstractmethod
    def answer(self, scene: Scene, point: Tensor, rows: Tensor) -> Tensor:
        """The adversarial images [n,C,H,W] that the points of those rows stand for, within their balls."""


@dataclass(frozen=True, kw_only=True)
class Latent(RangeAttack):
    """Searches the latents of a generator for a wrongly classified image near the input.

    Reparametrization: z is attacked in C(G z), with the distance to x as Lagrangian.

    From the inversion of x, min over z, max over λ ≥ 0 of the margin of the label + λ · excess, the L2 distance of G z
    from the ball. The answer is the image of the ball nearest to G z. In L2 that is G z itself as soon as the ball
    reaches the range, and the defense finds z again; the range hardly meets a ball in L∞: `combined` is stronger there.
    """

    paper = "athalye2018"

    def passes(self) -> tuple[int, int]:
        return self.cost(1)

    def look(self, scene: Scene, point: Tensor, rows: Tensor) -> Look:
        scene.target.count(rows, 1, 1)
        images = scene.generator(point)
        logits = scene.classifier(images)
        nearest = scene.projected(images, rows)
        scene.target.scored(nearest, rows, logits)
        excess = apart(images, nearest)
        return Look(scene.lacking(logits / scene.unit[rows], rows, self.confidence), excess, scene.wrong(logits, rows))

    def answer(self, scene: Scene, point: Tensor, rows: Tensor) -> Tensor:
        return scene.projected(blockwise(scene.generator, point), rows)
