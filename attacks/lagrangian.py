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


class ProblemValues(NamedTuple):
    """The values of a constrained problem at n points.

    loss: [n], the objective: how far the margin of the wanted answer is below the demanded one; 0 where it is not.
    excess: [n] or [n,D], how far each of D constraints is violated; ≤ 0 where it holds. Both are differentiable.
    succeeded: [n] bool, whether the answer is the wanted one.
    """

    loss: Tensor
    excess: Tensor
    succeeded: Tensor


class IterateValues(NamedTuple):
    """A detached `ProblemValues` at n points, and the gradient [n,k] that the descent follows from there."""

    loss: Tensor
    excess: Tensor
    succeeded: Tensor
    gradient: Tensor

    def record_gradients(self, target: Target, rows: Tensor) -> None:
        """Record the gradients of the inputs `rows` [n] whose margin is still below the demanded one (loss > 0)."""
        trying = self.loss > 0
        target.record_gradients(rows[trying], self.gradient[trying])


Problem = Callable[[Tensor, Tensor], ProblemValues]
"""A function of points [n,k] of some rows [n] of the batch → the values of the problem there."""

Callback = Callable[[Tensor, Tensor, IterateValues, int], Tensor]
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
    callback: Callback,
    descent: Descent,
    feasible: Callable[[Tensor, Tensor], Tensor] = lambda point, rows: point,
) -> None:
    """Solve min over z, max over λ ≥ 0 of loss(z) + Σ λᵢ · excessᵢ(z) for each row of `point` [M,k], from λ = 1.

    callback: function that is called with each of the `descent.steps` + 1 points of a row; rows that are done leave the
    batch. feasible: function that returns the feasible points that are nearest to points [n,k] of some rows.
    """
    rows = torch.arange(len(point), device=point.device)
    point, memory = point.detach(), Moments.none(point)
    multiplier = point.new_ones(())
    for step in range(descent.steps + 1):
        with torch.enable_grad():
            variable = point.clone().requires_grad_(True)
            values = problem(variable, rows)
            multiplier = multiplier.expand_as(values.excess)
            (gradient,) = torch.autograd.grad(values.loss.sum() + (multiplier * values.excess).sum(), variable)
        loss, excess = values.loss.detach(), values.excess.detach()
        going = ~callback(point, rows, IterateValues(loss, excess, values.succeeded, gradient), step)
        rows, point, multiplier, gradient = remaining(going, rows, point, multiplier, gradient)
        if step == descent.steps or not len(rows):
            return
        memory = memory.only(going).after(gradient.nan_to_num(0.0, 0.0, 0.0))
        point = feasible(point - memory.step(descent.rate, step + 1, epsilon=1e-12), rows)
        multiplier = (multiplier + descent.ascent * excess[going]).clamp_min(0)


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

    def problem(both: Tensor, rows: Tensor) -> ProblemValues:
        n = len(both)
        logits, images = logits_of(torch.cat([both[:, :latent], both[:, latent:]]))
        classes, label = logits.shape[1], own[rows]
        loss = F.relu(confidence + margin(logits[:n], label, classes))
        loss = loss + F.relu(confidence - margin(logits[n:], label, classes))
        distance = l2_distance(images[:n], images[n:])
        differ = logits[:n].argmax(1) != logits[n:].argmax(1)
        return ProblemValues(loss, distance - eta * (1 - 1e-6), differ)  # a margin for rounding of float32

    ended = torch.cat([z, other], dim=1).detach().clone()
    least = z.new_full((len(z),), torch.inf)

    def callback(both: Tensor, rows: Tensor, values: IterateValues, step: int) -> Tensor:
        valid = values.succeeded & (values.excess <= 0)
        loss = torch.where(valid, values.loss, torch.inf)
        better = (loss < least[rows]) | least[rows].isinf()  # anything replaces what is no valid pair
        ended[rows[better]], least[rows[better]] = both[better], loss[better]
        return valid & (values.loss <= 0)

    descend(problem, ended.clone(), callback, descent)
    z, other = ended[:, :latent], ended[:, latent:]
    images, others = blockwise(generator, z), blockwise(generator, other)
    distance = (images.double() - others.double()).flatten(1).norm(dim=1)
    differ = blockwise(classifier, images).argmax(1) != blockwise(classifier, others).argmax(1)
    return Pairs(z, other, distance, differ & (distance <= eta))


def l2_distance(one: Tensor, other: Tensor) -> Tensor:
    """Return Euclidean distances [N] of images [N,C,H,W]; where two images are equal, the gradient is 0."""
    return (one - other).flatten(1).square().sum(1).clamp_min(1e-12).sqrt()
