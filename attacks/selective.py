"""Attacks for defenses that reject: they include the detectors in the objective, and try the wrong classes in turn.

`AimedAscent` chooses target classes and starts, `ProjectedAscent` takes the steps; each attack defines an objective.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor
from torch.nn import functional as F

from manifold_bench.attacks.adam import Moments
from manifold_bench.attacks.base import Attack
from manifold_bench.attacks.batching import all_rows, blockwise, padded
from manifold_bench.attacks.contract import AttackableDefense, encodes, without_rejection
from manifold_bench.attacks.gradient import Best, Climb, Evaluator, ProjectedAscent
from manifold_bench.attacks.losses import likeliest_wrong, margin, spread
from manifold_bench.attacks.target import Target
from manifold_bench.attacks.threat import Norm, expand, flat_norm, project, random_in_ball, steepest
from manifold_bench.attacks.view import View

FALL = 0.002
"""Length of the last step of an ascent as a share of the first: from across the ball to a fraction of a grey level."""

POOL = 100
"""Number of held-out images of each class from which guide images are chosen."""

SLACK = 0.02
"""How far below its threshold a detector's score should end, as a share of the threshold."""

REACH = 0.36
"""Length of the first L2 step within an L∞ ball, as a share of the ball's largest L2 perturbation, ε √D."""

Objective = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""The objective that an attack maximises: (rows [n], points [n,C,H,W], logits, ratios [n,D]) → [n]."""


@dataclass(frozen=True)
class Aim:
    """One ascent of inputs x [N,C,H,W] towards target classes.

    classes: target classes [N]. rows: indices of the inputs that take part. guides: for each of these rows a clean
    held-out image of its target class; None for attacks without guide images.
    """

    target: Target
    view: View
    x: Tensor
    classes: Tensor
    rows: Tensor
    guides: Tensor | None

    def margin(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Return the target class' logit minus the largest other one at those rows, [n], without the reject score."""
        return margin(logits, self.classes[rows], self.view.num_classes, self.classes[rows])


@dataclass(frozen=True, kw_only=True)
class AimedAscent(ProjectedAscent):
    """Ascents towards the wrong classes in turn, the likeliest of the clean input first, until one is accepted.

    steps: number of steps of each ascent. restarts: number of ascents towards each class.
    targets: number of wrong classes that are tried; None: all.
    step_size: length of the first step; None: ε. The steps shorten geometrically to a five-hundredth of it.
    start: where the first ascent towards a class starts: `random`, a point of the ball; `clean`, the input;
    `interpolation`, the class' nearest held-out image, projected on the ball. Further ascents start at random points.
    step_norm: norm in which the steps are steepest; None: the attack's own. Within an L∞ ball steps in L2 keep
    the gradient's proportions; sign steps change every pixel equally and trip detectors that watch a few pixels.
    """

    guided: ClassVar[bool] = False
    """Whether the attack needs guide images: the nearest one in pixels first, the next one with every restart."""

    steps: Annotated[int, Ge(1)] = 100
    targets: Annotated[int, Ge(1)] | None = None
    start: Literal["random", "clean", "interpolation"] = "random"
    step_norm: Literal["linf", "l2"] | None = None

    def __post_init__(self) -> None:
        if self.part != "defense":
            raise ValueError(f"part: {self.part!r} has no detectors, which this attack needs; leave part out")

        if self.step_norm == "linf" and self.norm != "linf":
            raise ValueError("step_norm: 'linf' is for norm = 'linf'; leave it out")

    @abstractmethod
    def evaluator(self, aim: Aim) -> Evaluator:
        """Return the function that evaluates the points of an ascent."""

    def size(self, step: int, eps: float) -> float:
        return (eps if self.step_size is None else self.step_size) * FALL ** (step / self.steps)

    def direction(self, gradient: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        step = steepest(gradient, self.step_norm or self.norm)
        if self.step_norm == "l2" and self.norm == "linf":
            step = REACH * gradient[0].numel() ** 0.5 * step
        return step, memory

    def passes(self) -> tuple[int, int]:
        climbs = self.restarts * (self.targets or 9)  # a guess, since the number of classes is not known here
        return 1 + climbs * (self.steps + 1), climbs * self.steps

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        best = Best(x.clone(), x.new_full((len(x),), -torch.inf))
        rows = all_rows(x)
        clean = self.view(target).answer(x, rows)
        likely = likeliest_wrong(clean, y, target.num_classes)
        tried = min(self.targets or target.num_classes, target.num_classes - 1)
        climbs = list(product(range(self.restarts), range(tried)))
        pool = HeldOut(target, x.device) if self.guided or self.start == "interpolation" else None
        for number, (rank, place) in enumerate(climbs):
            aims = likely[:, place]
            guides = None if pool is None else pool.nearest(x[rows], aims[rows], rank)
            if rank or self.start == "random":
                point = random_in_ball(x[rows], self.norm, eps, seed + number)
            else:
                point = x[rows] if self.start == "clean" or guides is None else project(guides, x[rows], self.norm, eps)
            view = self.view(target)
            evaluate = self.evaluator(Aim(target, view, x, aims, rows, guides))
            rows = self.climb(Climb(view, evaluate, x, y, eps, best, final=number == len(climbs) - 1), rows, point)
            if not len(rows):
                break
        return best.point


class HeldOut:
    """The attacker's own clean images, the first POOL of each class, from which guide images are chosen.

    Guide images are ones that the defense accepts as their class, if the class has any. The queries about them are made
    once for all inputs, and are not counted.
    """

    def __init__(self, target: Target, device: torch.device) -> None:
        images, labels = (held.to(device) for held in target.held_out())
        kept = torch.cat([(labels == label).nonzero()[:POOL, 0] for label in labels.unique()])
        self.images, self.labels = images[kept], labels[kept]
        view = target.view()
        self.accepted = blockwise(lambda part: view.logits(part, None), self.images).argmax(1) == self.labels

    def nearest(self, x: Tensor, classes: Tensor, rank: int) -> Tensor:
        """Return for each x [n,C,H,W] the image of its target class with `rank` nearer ones in pixels, [n,C,H,W].

        Raises ValueError for a class without a held-out image.
        """
        found = []
        for image, label in zip(x, classes.tolist(), strict=True):
            own = self.labels == label
            usable = self.images[own & self.accepted if (own & self.accepted).any() else own]
            if not len(usable):
                raise ValueError(
                    f"the held-out images contain none of class {label}, which this attack starts from; use another "
                    "attack, or a data set with validation images of every class"
                )
            order = (usable - image).square().flatten(1).sum(1).argsort(stable=True)
            found.append(usable[order[rank % len(order)]])
        return torch.stack(found)


def detecting(aim: Aim, objective: Objective) -> Evaluator:
    """Return a function that evaluates an objective of the logits and of the detectors' ratios for the target class."""

    def evaluate(point: Tensor, rows: Tensor, last: bool) -> tuple[Tensor, Tensor, Tensor]:
        labels = aim.classes[rows]
        if not last:
            logits, _, values, gradient = aim.view.detected_ascent(
                point, labels, lambda x, logits, ratios: objective(rows, x, logits, ratios), rows
            )
            return logits, values, gradient
        aim.target.count(rows, 1, 0)
        with torch.no_grad():
            logits, ratios = aim.view.detection(point, labels, rows)
            aim.view.record(point, rows, logits)
            return logits, objective(rows, point, logits, ratios), torch.zeros_like(point)

    return evaluate


@dataclass(frozen=True, kw_only=True)
class SelectivePGD(AimedAscent):
    """PGD past detectors: first towards a wrong class, then below the detectors' thresholds.

    It is eq. 5 of the paper, towards every wrong class.

    It maximises the margin of the target class until that is the answer, and from then on −Σᵢ max(rᵢ − 1 + slack, 0),
    where rᵢ are the detectors' scores over their thresholds for the target class as the answer. Tight detectors reject
    everything between two classes: an attack that obeyed them on the way would never leave the true class.
    """

    paper = "bryniarski2022"
    adapted_to = ("detection", "generative rejection")

    def unsuited(self, defense: AttackableDefense) -> str | None:
        return super().unsuited(defense) or without_rejection(defense)

    def evaluator(self, aim: Aim) -> Evaluator:
        def objective(rows: Tensor, x: Tensor, logits: Tensor, ratios: Tensor) -> Tensor:
            ahead = aim.margin(logits, rows)
            return torch.where(ahead > 0, -F.relu(ratios - 1 + SLACK).sum(1), ahead)

        return detecting(aim, objective)


@dataclass(frozen=True, kw_only=True)
class OrthogonalPGD(SelectivePGD):
    """Selective PGD whose steps for the class leave the detectors' scores unchanged, and the reverse.

    The margin's gradient ∇f loses its component along the detectors' gradient ∇g, ∇f − (∇f·∇g / ∇g·∇g) ∇g, and the
    reverse (eq. 6 of the paper). Each step costs two passes.

    projected: which gradients lose that component; the authors' code has the same options. Where margin and detectors
    depend on one encoding, as in a GMVAE, both gradients are parallel once the answer is the target class, and the
    equation removes what the attack needs: after 25 steps 15 of 16 images of the GMVAE are robust at L∞ 0.2, but only 9
    with `classifier`, where the detectors' gradients stay whole. Behind an auxiliary detector they are not parallel,
    but steps along signs keep the images rejected; with `step_norm = "l2"` they do not.
    """

    paper = "bryniarski2022"
    version: ClassVar[int] = 2

    projected: Literal["both", "classifier", "detector"] = "both"

    def passes(self) -> tuple[int, int]:
        forwards, backwards = super().passes()
        return forwards + backwards, 2 * backwards

    def evaluator(self, aim: Aim) -> Evaluator:
        def left_alone(rows: Tensor, x: Tensor, logits: Tensor, ratios: Tensor) -> Tensor:
            ahead = aim.margin(logits, rows)
            return torch.where(ahead > 0, ahead, ratios.amax(1))

        own, other = super().evaluator(aim), detecting(aim, left_alone)

        def evaluate(point: Tensor, rows: Tensor, last: bool) -> tuple[Tensor, Tensor, Tensor]:
            logits, values, gradient = own(point, rows, last)
            if last:
                return logits, values, gradient
            rest = without(gradient, other(point, rows, last)[2])
            whole = {
                "both": torch.zeros_like(rows, dtype=torch.bool),
                "classifier": aim.margin(logits, rows) > 0,
                "detector": aim.margin(logits, rows) <= 0,
            }[self.projected]
            return logits, values, torch.where(expand(whole, gradient), gradient, rest)

        return evaluate


def without(gradient: Tensor, other: Tensor) -> Tensor:
    """Return the directions of `gradient` without their components along `other`, row by row, both [N,C,H,W].

    Where the two are parallel, the direction of `gradient` is returned as it is.
    """
    gradient, other = steepest(gradient, "l2"), steepest(other, "l2")
    rest = gradient - expand((gradient * other).flatten(1).sum(1), other) * other
    return torch.where(expand(flat_norm(rest, "l2") > 1e-3, rest), rest, gradient)


@dataclass(frozen=True, kw_only=True)
class Matching(AimedAscent):
    """The base of attacks that minimise ‖s(x′) − s(x_t)‖², x_t a clean held-out image of the target class.

    An input whose signature s equals that of a clean image is accepted like one. Every restart takes the next nearest
    x_t.
    """

    guided: ClassVar[bool] = True

    @abstractmethod
    def signature(self, target: Target, x: Tensor, logits: Tensor, ratios: Tensor, rows: Tensor) -> Tensor:
        """Return s, the values that are matched, [n,F]; differentiable, with its own passes counted.

        logits: of the classes, [n,K], in units of the `spread` of the clean image's, so their scale does not matter.
        """

    def evaluator(self, aim: Aim) -> Evaluator:
        assert aim.guides is not None
        classes, named = aim.view.num_classes, bool(aim.target.defense.detectors)
        aim.target.count(aim.rows, 1, 0)
        units = aim.x.new_ones(len(aim.x), 1)

        def matched(rows: Tensor, x: Tensor, logits: Tensor, ratios: Tensor) -> Tensor:
            if not named:
                ratios = ratios / units[rows]  # the reject excess is a difference of outputs
            return self.signature(aim.target, x, logits[:, :classes] / units[rows], ratios, rows)

        with torch.no_grad():
            logits, ratios = aim.view.detection(aim.guides, aim.classes[aim.rows], None)
            units[aim.rows, 0] = spread(logits, classes)
            guide = matched(aim.rows, aim.guides, logits, ratios)
        wanted = guide.new_zeros(len(aim.x), guide.shape[1])
        wanted[aim.rows] = guide

        def objective(rows: Tensor, x: Tensor, logits: Tensor, ratios: Tensor) -> Tensor:
            return -(matched(rows, x, logits, ratios) - wanted[rows]).square().sum(1)

        return detecting(aim, objective)


@dataclass(frozen=True, kw_only=True)
class LatentMatching(Matching):
    """Moves the encoding of an input onto that of a clean image of another class.

    It minimises ‖f(x′) − f(x_t)‖², so that detectors of the encoding alone accept x′ like a clean image.
    """

    def unsuited(self, defense: AttackableDefense) -> str | None:
        return super().unsuited(defense) or (None if encodes(defense) else "the defense has no encoder")

    def passes(self) -> tuple[int, int]:
        forwards, backwards = super().passes()
        climbs = backwards // self.steps
        return 1 + 2 * (forwards - 1 + climbs), backwards

    def signature(self, target: Target, x: Tensor, logits: Tensor, ratios: Tensor, rows: Tensor) -> Tensor:
        target.count(rows, 1, 0)  # in addition to the pass that says whether x is accepted
        assert encodes(target.defense)
        return padded(target.defense.encoder)(x).flatten(1)


@dataclass(frozen=True, kw_only=True)
class LogitMatching(Matching):
    """Moves the logits of the classes and the detectors' ratios onto those of a clean image of another class.

    It minimises ‖s(x′) − s(x_t)‖², s the logits and ratios. Deep Bayes, a generative classifier, was broken in this way
    (99.7 % success, 0.4 % detected).
    """

    version: ClassVar[int] = 2

    def passes(self) -> tuple[int, int]:
        forwards, backwards = super().passes()
        return forwards + backwards // self.steps, backwards

    def signature(self, target: Target, x: Tensor, logits: Tensor, ratios: Tensor, rows: Tensor) -> Tensor:
        return torch.cat([logits.masked_fill(logits.isinf(), 0.0), ratios], dim=1)  # classes masked by −∞ match


@dataclass(frozen=True, kw_only=True)
class GMVAEWhiteBox(Attack):
    """The white-box attack with which the GMVAE paper attacked its own defense (eq. 10).

    As in the paper, it minimises Σᵢ rᵢ^power + weight · ‖η‖₂² over η, from η = 0.

    The ratios rᵢ are SSE(x+η, g(f(x+η)))/τ_dec and d_t/τ_enc, where d_t is the squared Mahalanobis distance to the mean
    of the target class (by the inverse covariance; the paper's formula shows Σ, which would make no sense). Every wrong
    class is a target class. x+η is clipped to [0,1] after every step. Nothing bounds η: the attack returns the smallest
    perturbation that was accepted as the target class, or else the last one.

    power: exponents a and b of the paper, which does not give them; 2 is this project's choice. rate: learning rate of
    Adam, this project's choice. steps: number of steps of Adam, this project's choice. weight: factor of the size of
    the perturbation η in the objective.
    """

    paper = "ghosh2019"
    norms: ClassVar[tuple[Norm, ...]] = ("l2",)
    knowledge = "white-box"
    aims = "wrong"
    minimal = True

    norm: Norm = "l2"
    steps: Annotated[int, Ge(1)] = 200
    rate: Annotated[float, Gt(0), Lt(math.inf)] = 0.01
    power: Annotated[float, Gt(0), Lt(math.inf)] = 2.0
    weight: Annotated[float, Ge(0), Lt(math.inf)] = 1.0

    def passes(self) -> tuple[int, int]:
        return self.steps, self.steps

    def unsuited(self, defense: AttackableDefense) -> str | None:
        if "encoding" in defense.detectors and defense.gradient_modes == ("default",) and not defense.randomized:
            return None
        return "eq. 10 needs a detector named 'encoding', and a deterministic defense that does not optimise"

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        assert target.aims is not None
        aims, view = target.aims, target.view()
        rows = all_rows(x)
        point, found, shortest = x.clone(), x.clone(), x.new_full((len(x),), torch.inf)
        memory = Moments.none(x)

        def descended(here: Tensor, logits: Tensor, ratios: Tensor) -> Tensor:
            return ratios.pow(self.power).sum(1) + self.weight * (here - x).square().flatten(1).sum(1)

        for step in range(1, self.steps + 1):
            logits, _, _, gradient = view.detected_ascent(point, aims, descended, rows)
            length = flat_norm(point - x, "l2")
            shorter = (logits.argmax(1) == aims) & (length < shortest)
            found[shorter], shortest[shorter] = point[shorter], length[shorter]
            memory = memory.after(gradient)
            point = (point - self.rate * memory.step(1.0, step, epsilon=1e-8)).clamp(0, 1)
        return torch.where(expand(shortest.isfinite(), x), found, point)
