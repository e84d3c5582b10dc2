"""Gradient descent with Lagrange multipliers for constraints, and the search for overpowered pairs of latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from manifold_bench.attacks.adam import Moments
from manifold_bench.attacks.batching import blockwise, pad_to_block, remaining
from manifold_bench.attacks.losses import margin
from manifold_bench.attacks.target import Target

SAMPLES = 1000
"""Number of latents, drawn from N(0, I), among which an attack looks for images of other classes."""


class Look(NamedTuple):
    """The values of a constrained problem at n points.

    lacking: [n], the objective: how far the margin of the wanted answer is below the demanded one; 0 where it is not.
    excess: [n] or [n,D], how far each of D constraints is violated; ≤ 0 where it holds. Both are differentiable.
    reached: [n] bool, whether the answer is the wanted one.
    """

    lacking: Tensor
    excess: Tensor
    reached: Tensor


class Seen(NamedTuple):
    """A detached `Look` at n points, and the gradient [n,k] that the descent follows from there."""

    lacking: Tensor
    excess: Tensor
    reached: Tensor
    gradient: Tensor

    def differentiated(self, target: Target, rows: Tensor) -> None:
        """Record the gradients of those of the inputs `rows` [n] whose answers are not yet the wanted ones."""
        trying = self.lacking > 0
        target.differentiated(rows[trying], self.gradient[trying])


Problem = Callable[[Tensor, Tensor], Look]
"""A function of points [n,k] of some rows [n] of the batch → the values of the problem there."""

Visit = Callable[[Tensor, Tensor, Seen, int], Tensor]
"""A function of points [n,k], their rows [n], their values and the number of the step → which are done, [n] bool."""


class Descent(NamedTuple):
    """The parameters of a descent.

    steps: number of steps. rate: Adam's learning rate, one for all coordinates of a point or one for each. ascent:
    share of the excess by which a multiplier λ grows in a step.
    """

    steps: int = 500
    rate: float | Tensor = 0.05
    ascent: float = 0.02


def descend(
    problem: Problem,
    point: Tensor,
    visit: Visit,
    descent: Descent,
    settle: Callable[[Tensor, Tensor], Tensor] = lambda point, rows: point,
) -> None:
    """Solve min over z, max over λ ≥ 0 of lacking(z) + Σ λᵢ · excessᵢ(z) for each row of `point` [M,k], from λ = 1.

    `visit` is called with each of the `descent.steps` + 1 points of a row; rows that are done leave the batch. settle:
    function that moves points [n,k] of some rows to the nearest allowed ones.
    """
    rows = torch.arange(len(point), device=point.device)
    point, memory = point.detach(), Moments.none(point)
    multiplier = point.new_ones(())
    for step in range(descent.steps + 1):
        with torch.enable_grad():
            variable = point.clone().requires_grad_(True)
            seen = problem(variable, rows)
            multiplier = multiplier.expand_as(seen.excess)
            (gradient,) = torch.autograd.grad(seen.lacking.sum() + (multiplier * seen.excess).sum(), variable)
        going = ~visit(point, rows, Seen(seen.lacking.detach(), seen.excess.detach(), seen.reached, gradient), step)
        rows, point, multiplier, gradient = remaining(going, rows, point, multiplier, gradient)
        if step == descent.steps or not len(rows):
            return
        memory = memory.only(going).after(gradient.nan_to_num(0.0, 0.0, 0.0))
        point = settle(point - memory.step(descent.rate, step + 1, epsilon=1e-12), rows)
        multiplier = (multiplier + descent.ascent * seen.excess.detach()[going]).clamp_min(0)


class Pairs(NamedTuple):
    """Pairs of latents z and z′.

    z, other: latents z and z′, [M,k]. distance: ‖G z − G z′‖₂, [M] float64. found: whether the two images are within η
    and get different answers, [M] bool.
    """

    z: Tensor
    other: Tensor
    distance: Tensor
    found: Tensor


def overpowered_pairs(
    generator: Callable[[Tensor], Tensor],
    classifier: Callable[[Tensor], Tensor],
    start: tuple[Tensor, Tensor],
    eta: float,
    descent: Descent = Descent(),  # noqa: B008 - a tuple never changes
    confidence: float = 0.0,
) -> Pairs:
    """Search for pairs of latents whose images are within η in L2 and get different answers (the "overpowered attack").

    For every pair it solves max over z, z′, min over λ ≥ 0 of disagreement − λ (‖G z − G z′‖₂ − η), from λ = 1 (Ilyas
    et al. 2017, section 5). The disagreement is the margin by which z keeps its first class, plus the margin by which
    z′ has another one; each counts up to `confidence` only. A pair leaves the batch once both margins reach it and the
    images are within η. Of the other pairs, the most confident one within η is kept. At the end `found` is computed
    from the images themselves. Each step costs 2 forward and 2 backward passes for each pair.

    generator: latents [N,k] → images. classifier: images → logits [N,K]. Both are in eval mode. start: the first z and
    z′, both [M,k]. eta: η.
    """
    z, other = start
    latent = z.shape[1]

    def logits_of(latents: Tensor) -> tuple[Tensor, Tensor]:
        images = generator(pad_to_block(latents))
        return classifier(images)[: len(latents)], images[: len(latents)]

    own = blockwise(lambda latents: logits_of(latents)[0], z).argmax(1)

    def problem(both: Tensor, rows: Tensor) -> Look:
        n = len(both)
        logits, images = logits_of(torch.cat([both[:, :latent], both[:, latent:]]))
        classes, label = logits.shape[1], own[rows]
        lacking = F.relu(confidence + margin(logits[:n], label, classes))
        lacking = lacking + F.relu(confidence - margin(logits[n:], label, classes))
        distance = apart(images[:n], images[n:])
        differ = logits[:n].argmax(1) != logits[n:].argmax(1)
        return Look(lacking, distance - eta * (1 - 1e-6), differ)  # a margin for rounding of float32

    ended = torch.cat([z, other], dim=1).detach().clone()
    least = z.new_full((len(z),), torch.inf)

    def visit(both: Tensor, rows: Tensor, seen: Seen, step: int) -> Tensor:
        valid = seen.reached & (seen.excess <= 0)
        lacking = torch.where(valid, seen.lacking, torch.inf)
        better = (lacking < least[rows]) | least[rows].isinf()  # anything replaces what is no valid pair
        ended[rows[better]], least[rows[better]] = both[better], lacking[better]
        return valid & (seen.lacking <= 0)

    descend(problem, ended.clone(), visit, descent)
    z, other = ended[:, :latent], ended[:, latent:]
    images, others = blockwise(generator, z), blockwise(generator, other)
    distance = (images.double() - others.double()).flatten(1).norm(dim=1)
    differ = blockwise(classifier, images).argmax(1) != blockwise(classifier, others).argmax(1)
    return Pairs(z, other, distance, differ & (distance <= eta))


def apart(one: Tensor, other: Tensor) -> Tensor:
    """Return Euclidean distances [N] of images [N,C,H,W]; where two images are equal, the gradient is 0."""
    return (one - other).flatten(1).square().sum(1).clamp_min(1e-12).sqrt()
