"""The inspections of the diagnosis: measurements of a defense that are not the outcome of an attack.

Their results are stored like those of other measurements, in the folder `measurements` of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from manifold_bench.attacks.batching import blockwise, remaining
from manifold_bench.attacks.losses import LossName, accepted_and_wrong, named_loss, reject_excess
from manifold_bench.attacks.target import Target
from manifold_bench.attacks.threat import (
    Norm,
    expand,
    flat_norm,
    grey_levels,
    inside,
    on_the_grid,
    project,
    random_in_ball,
    steepest,
)
from manifold_bench.bench.datasets.base import Dataset
from manifold_bench.bench.measurements.base import Measurement
from manifold_bench.bench.planning import probes
from manifold_bench.bench.running.judge import scored_answers
from manifold_bench.bench.running.kernels import LayerCheck
from manifold_bench.defenses.base import Defense, append_reject_score

ALONE, ALONE_OPTIMISING = 8, 2
"""Number of inputs that are answered in batches of one: in general, and by a defense that optimises at inference."""

PROBLEMS_OPTIMISING = 3
"""Number of problems of `Planted` on a defense that optimises at inference."""

SHRINKINGS = 4
"""Largest number of ball sizes that `Planted` tries, each half the last one, if the detector rejects most of a ball."""

PILOT = 32
"""Number of points with which `Planted` checks whether the detector rejects most of a ball."""

HALF_A_LEVEL = 0.5 / 255
"""L∞ size of noise that is invisible: half a step of an 8-bit image."""

INNER_SHARE = 0.95
"""Share of ε within which the inner points of `Planted` lie (η in Zimmermann et al.)."""

CLOSENESS = 0.9
"""Position of the threshold of `Planted` between the largest inner score (0) and the score of the planted point (1)."""


@dataclass(frozen=True, kw_only=True)
class Inspection(Measurement):
    """A measurement on the first inputs of a data set.

    n: largest number of inputs, the first ones of the clean pass. norm, eps: the ball around each input.
    """

    n: int
    norm: Norm
    eps: float

    def first(self, defense: Defense, data: Dataset) -> tuple[Tensor, Tensor]:
        """Return images [n,C,H,W] and labels [n] on the defense's device.

        There are fewer than n for a defense that optimises at inference (`probes.inputs`).
        """
        count = min(self.n, probes.inputs(defense.inference_steps > 0))
        rows = torch.from_numpy(np.asarray(data.chosen(count), dtype=np.int64))
        device = next(chain(defense.parameters(), defense.buffers()), torch.empty(0)).device
        return data.test.images[rows].to(device), data.test.labels[rows].to(device)


@dataclass(frozen=True, kw_only=True)
class Gradients(Inspection):
    """Counts inputs whose gradient is zero, not finite or missing, at the input or at a random point of its ball.

    `zero`, `nonfinite`: number of inputs whose loss has such a gradient. `none`: number of inputs whose outputs do not
    depend on the input as autograd sees it. `zero_margin`: number of inputs with a zero gradient of the margin of the
    logits, which does not saturate as a softmax does.
    """

    headline: ClassVar[str] = "zero"
    title: ClassVar[str] = "inputs whose gradient is zero or not finite"

    def measure(self, defense: Defense, others: Mapping[str, Defense], data: Dataset, seed: int) -> dict[str, float]:
        x, y = self.first(defense, data)
        points = (x, random_in_ball(x, self.norm, self.eps, seed))
        faults = torch.stack([_gradient_faults(defense, point, y) for point in points]).any(0)
        counts = faults.sum(1).tolist()
        return {"n": len(x), **dict(zip(("zero", "nonfinite", "none", "zero_margin"), counts, strict=True))}


def _gradient_faults(defense: Defense, x: Tensor, y: Tensor) -> Tensor:
    """Return bool [4,N]: whether the gradient at x [N,C,H,W] is zero, not finite, missing, and zero for the margin."""
    view = Target(defense, len(x)).view()
    losses: tuple[LossName, ...] = ("auto", "margin")
    sizes = []
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        logits = view.logits(x, None)
        for name in losses:
            values = named_loss(name, view.rejects, targeted=False)(logits, y, view.num_classes, None)
            gradient = None
            if values.requires_grad:
                (gradient,) = torch.autograd.grad(values.sum(), x, retain_graph=True, allow_unused=True)
            if gradient is None:
                return torch.tensor([False, False, True, False], device=x.device)[:, None].expand(4, len(x))
            sizes.append(flat_norm(gradient, "linf"))
    own, of_margin = sizes
    return torch.stack([own == 0, ~own.isfinite(), torch.zeros_like(own, dtype=torch.bool), of_margin == 0])


@dataclass(frozen=True, kw_only=True)
class Progress(Inspection):
    """Counts inputs that PGD does not beat and whose loss has not converged, or never rose. steps: steps of PGD.

    `moving`: number of inputs with more than a twentieth of the loss' whole rise in the last tenth of the steps.
    `flat`: number of inputs whose loss never rose. `rounded`: number of inputs that PGD does not beat, but that its
    last point beats after rounding to the grid of pixel values of the data; 0 for data without such a grid.
    """

    version: ClassVar[int] = 2
    headline: ClassVar[str] = "moving"
    title: ClassVar[str] = "inputs whose loss still rises in the last tenth of an ascent"
    steps: int

    def measure(self, defense: Defense, others: Mapping[str, Defense], data: Dataset, seed: int) -> dict[str, float]:
        x, y = self.first(defense, data)
        steps = min(self.steps, probes.steps(defense.inference_steps > 0))
        view = Target(defense, len(x)).view()
        loss = named_loss("auto", view.rejects, targeted=False)
        rows = torch.arange(len(x), device=x.device)
        point = random_in_ball(x, self.norm, self.eps, seed)
        trace = []
        beaten = torch.zeros_like(rows, dtype=torch.bool)
        for _ in range(steps + 1):
            logits, values, gradient = view.ascent(point, lambda z: loss(z, y, view.num_classes, None), rows)
            trace.append(values)
            beaten |= accepted_and_wrong(logits, y, view.num_classes)
            last, point = point, _step(point, gradient, x, self.norm, self.eps, steps)
        best = torch.stack(trace).double().cummax(0).values  # [steps + 1, n]
        rise, late = best[-1] - best[0], best[-1] - best[steps - max(1, steps // 10)]
        levels = grey_levels(x)
        rounded = torch.zeros_like(beaten)
        if levels:
            on_grid = on_the_grid(last, x, levels)
            allowed = inside(on_grid, x, self.norm, self.eps)
            rounded = allowed & accepted_and_wrong(blockwise(defense, on_grid), y, defense.num_classes)
        return {
            "n": len(x),
            "unbeaten": int((~beaten).sum()),
            "moving": int((~beaten & (late > 0.05 * rise)).sum()),
            "flat": int((~beaten & (rise == 0)).sum()),
            "rounded": int((~beaten & rounded).sum()),
        }


def _step(point: Tensor, gradient: Tensor, x: Tensor, norm: Norm, eps: float, steps: int) -> Tensor:
    """Return the next point of projected gradient ascent around x, whose number of steps sets the step size."""
    return project(point + 2.5 * eps / steps * steepest(gradient, norm), x, norm, eps)


@dataclass(frozen=True, kw_only=True)
class Repeats(Inspection):
    """Counts answers that change in a second call, in a batch of one image, or with other images in the batch.

    `again`: number of answers that change when the same batch is evaluated a second time. `alone`: of `alone_n`
    inputs, number of answers that change in a batch of one image, which numerical kernels may round differently.
    `others`: of `others_n` inputs, number whose answer or score changes in any bit when the other images of the batch
    are replaced, on which rounding does not depend. `noisy`: of the `noisy_n` accepted inputs, number rejected with
    uniform noise of half a grey level. `uneven`: number of layers of the defense that round differently for different
    batch sizes (`kernels.LayerCheck`).
    """

    version: ClassVar[int] = 3
    headline: ClassVar[str] = "again"
    title: ClassVar[str] = "answers that change in a second call"

    def measure(self, defense: Defense, others: Mapping[str, Defense], data: Dataset, seed: int) -> dict[str, float]:
        x, _ = self.first(defense, data)
        alone = min(ALONE_OPTIMISING if defense.inference_steps else ALONE, len(x))
        kept = torch.arange(len(x), device=x.device) % 2 == 0
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # only once, so that a randomized defense can draw new numbers in each call
            with LayerCheck(defense, x) as layers:
                first = scored_answers(defense, x)
            again = scored_answers(defense, x)
            single = scored_answers(defense, x[:alone], batch_size=1)
            with_others = scored_answers(defense, torch.where(expand(kept, x), x, 1 - x))
            noisy = scored_answers(defense, random_in_ball(x, "linf", HALF_A_LEVEL, seed))
        accepted = first[:, 1] == 0
        changed = (first != with_others) & ~(first.isnan() & with_others.isnan())
        return {
            "n": len(x),
            "again": int((first != again)[:, :2].any(1).sum()),
            "alone_n": alone,
            "alone": int((first[:alone] != single)[:, :2].any(1).sum()),
            "others_n": int(kept.sum()),
            "others": int(changed[kept].any(1).sum()),
            "noisy_n": int(accepted.sum()),
            "noisy": int((accepted & (noisy[:, 1] != 0)).sum()),
            "uneven": len(layers.uneven()),
            "optimises": float(defense.inference_steps > 0),
            "randomized": float(defense.randomized),
        }


@dataclass(frozen=True, kw_only=True)
class Planted(Inspection):
    """Counts how many adversarial examples PGD finds that are known to exist (Zimmermann et al., NeurIPS 2022).

    A problem with two classes is set around each of n inputs: a linear readout of the defense's class logits assigns
    `inner` random points of the ball to one class, and one point of its surface to the other. So an adversarial example
    exists within ε, and an attack that does not find nearly all of them is too weak for this defense. `planted`: number
    of problems. `found`: number that PGD solves. `random`: number solved by as many random points as PGD has queries.
    `shrunk`: number of problems in a smaller ball. steps, restarts: of PGD. candidates: number of surface points.

    Two things differ from the paper. The readout is the Fisher discriminant in closed form over the logits, which every
    defense has, instead of a fitted logistic regression over features. The planted point is the most distant one of
    several by that measure, so that few dimensions suffice. As in the paper, points that the detector rejects are
    ignored; where it rejects most of the ball, the problem is set in a ball of half the size, or half of that.
    """

    headline: ClassVar[str] = "found"
    title: ClassVar[str] = "planted adversarial examples found"
    steps: int
    restarts: int = 3
    inner: int = 256
    candidates: int = 64

    def measure(self, defense: Defense, others: Mapping[str, Defense], data: Dataset, seed: int) -> dict[str, float]:
        x, _ = self.first(defense, data)
        optimising = defense.inference_steps > 0
        # a defense that optimises at inference is slow, so it gets few problems with fewer points
        x, share = (x[:PROBLEMS_OPTIMISING], 8) if optimising else (x, 1)
        queries = self.restarts * (self.steps + 1) // share
        sizes = [self.eps / 2**k for k in range(1 if optimising else SHRINKINGS)]
        problems: dict[float, list[tuple[Tensor, Readout]]] = {}
        for image in x.split(1):
            for eps in sizes:
                if (readout := self._plant(defense, image, eps, seed, share)) is not None:
                    problems.setdefault(eps, []).append((image, readout))
                    break
        found = by_chance = 0
        for eps, planted in problems.items():
            # all problems in balls of one size are attacked as one batch
            images, readout = torch.cat([image for image, _ in planted]), Readout.joined([one for _, one in planted])
            found += int(self._attacked(defense, readout, images, eps, seed).sum())
            for image, one in planted:
                tried = one.read(blockwise(defense, _inside(image, self.norm, eps, seed, queries)), None)
                by_chance += bool((tried.argmax(1) == 1).any())
        counts = {"planted": sum(map(len, problems.values())), "found": found, "random": by_chance}
        shrunk = sum(len(planted) for eps, planted in problems.items() if eps < self.eps)
        return {"n": len(x), **counts, "shrunk": shrunk, "queries": queries}

    def _attacked(self, defense: Defense, readout: Readout, x: Tensor, eps: float, seed: int) -> Tensor:
        """Return bool [P]: whether PGD solves each problem within ε. x: its images [P,C,H,W]."""
        found, points = torch.zeros(len(x), dtype=torch.bool, device=x.device), x.clone()
        for restart in range(self.restarts):
            rows = (~found).nonzero()[:, 0]
            if not len(rows):
                break
            view = Target(defense, len(x)).view()
            point = random_in_ball(x[rows], self.norm, eps, seed + restart)
            for _ in range(self.steps + 1):
                logits, _, gradient = view.ascent(point, readout.loss(rows), rows)
                points[rows] = point
                if not defense.inference_steps:  # an unrolled answer may differ from the final one
                    going = readout.read(logits, rows).argmax(1) != 1
                    rows, point, gradient = remaining(going, rows, point, gradient)
                if not len(rows):
                    break
                point = _step(point, gradient, x[rows], self.norm, eps, self.steps)
            found |= readout.read(blockwise(defense, points), None).argmax(1) == 1
        return found

    def _plant(self, defense: Defense, image: Tensor, eps: float, seed: int, share: int) -> Readout | None:
        """Return the problem around an image [1,C,H,W].

        Returns None where no surface point lies beyond all inner points, or where the detector accepts too few points.
        share: factor by which there are fewer points than `inner` and `candidates` say.
        """
        inner, candidates, norm = self.inner // share, self.candidates // share, self.norm
        inside = torch.cat([image, _inside(image, norm, INNER_SHARE * eps, seed + 1, inner)])
        if len(_accepted(defense, inside[:PILOT])) < PILOT // 4:  # the detector rejects most of the ball
            return None
        surface = _surface(image, norm, eps, seed + 2, candidates)
        logits, outer = (_accepted(defense, points) for points in (inside, surface))
        if len(logits) < inner // 2 or not len(outer):
            return None
        mean = logits.mean(0)
        spread = torch.cov((logits - mean).T)
        scale = spread.diagonal().mean()
        if not scale > 0 or not spread.isfinite().all():
            return None
        inverse = torch.linalg.inv(
            spread + 1e-6 * scale * torch.eye(len(mean), dtype=spread.dtype, device=spread.device)
        )
        away = outer - mean
        distances = ((away @ inverse) * away).sum(1).clamp_min(0).sqrt()
        chosen = int(distances.argmax())
        direction = inverse @ away[chosen] / distances[chosen]
        most, planted = float(((logits - mean) @ direction).max()), float(distances[chosen])
        if planted <= most:
            return None
        threshold = most + CLOSENESS * (planted - most)
        return Readout(mean[None], direction[None], mean.new_tensor([threshold]), defense.rejects)


def _inside(image: Tensor, norm: Norm, eps: float, seed: int, n: int) -> Tensor:
    """Return n random points of the ball around an image [1,C,H,W]: [n,C,H,W]."""
    # random points follow from the pixels, so each copy of the image gets a tiny offset to draw different ones
    tags = 1e-6 * torch.arange(n, device=image.device, dtype=image.dtype).view(-1, 1, 1, 1)
    return project(random_in_ball(image + tags, norm, eps, seed), image, norm, eps)


def _surface(image: Tensor, norm: Norm, eps: float, seed: int, n: int) -> Tensor:
    """Return n random points [n,C,H,W] of the ball's surface: corners in L∞, the sphere in L2, clipped to the box."""
    generator = torch.Generator().manual_seed(seed)
    delta = torch.randn((n, *image.shape[1:]), generator=generator).to(image)
    delta = delta.sign() if norm == "linf" else delta / expand(flat_norm(delta, "l2"), delta)
    return project(image + eps * delta, image, norm, eps)


def _accepted(defense: Defense, x: Tensor) -> Tensor:
    """Return the class logits, float64 [M,K], of the M images in x that the defense accepts."""
    logits = blockwise(defense, x)
    kept = logits.argmax(1) < defense.num_classes
    return logits[kept, : defense.num_classes].double()


@dataclass(frozen=True)
class Readout:
    """P problems with two classes, set over logits: class 1 where (logits − mean) · direction > threshold, else 0.

    mean, direction: [P,K]. threshold: [P]. rejects: whether the defense has a detector, whose rejections stay.
    """

    mean: Tensor
    direction: Tensor
    threshold: Tensor
    rejects: bool

    @staticmethod
    def joined(parts: Sequence[Readout]) -> Readout:
        """Return several readouts as one with all their problems."""
        mean, direction, threshold = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("mean", "direction", "threshold")
        )
        return Readout(mean, direction, threshold, parts[0].rejects)

    def read(self, logits: Tensor, rows: Tensor | None) -> Tensor:
        """Return two logits and, with a detector, the reject logit for a defense's logits: [N,K+1] → [N,2] or [N,3].

        rows: [N], index of the problem of each row; None where row i belongs to problem i.
        """
        mean, direction, threshold = (
            part if rows is None else part[rows] for part in (self.mean, self.direction, self.threshold)
        )
        classes = logits[:, : mean.shape[1]]
        score = (((classes.double() - mean) * direction).sum(1) - threshold).to(logits.dtype)
        two = torch.stack([torch.zeros_like(score), score], dim=1)
        return append_reject_score(two, reject_excess(logits, mean.shape[1])) if self.rejects else two

    def loss(self, rows: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the loss that PGD maximises for the problems `rows`: a function of logits [n,K+1] → [n]."""
        climbed, y = named_loss("auto", self.rejects, targeted=False), torch.zeros_like(rows)
        return lambda logits: climbed(self.read(logits, rows), y, 2, None)
