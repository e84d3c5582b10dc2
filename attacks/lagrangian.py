"""Descents with Lagrangian terms for what has bounds; overpowered pairs of latents."""

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
"""Latents drawn from N(0, I) among which an attack looks for images of other classes."""


class Look(NamedTuple):
    """What a descent sees at n points.

    lacking: [n] what the answer lacks to be the wanted one, 0 where it lacks nothing; excess: [n] or [n,D], by how much
    each of D values is beyond its bound, ≤ 0 within (both differentiable); reached: [n] bool, whether the answer is
    wanted.
    """

    lacking: Tensor
    excess: Tensor
    reached: Tensor


class Seen(NamedTuple):
    """A `Look`, no longer differentiable, and the gradient [n,k] that the descent follows from its n points."""

    lacking: Tensor
    excess: Tensor
    reached: Tensor
    gradient: Tensor

    def differentiated(self, target: Target, rows: Tensor) -> None:
        """Show the harness the gradients of those of the inputs `rows` [n] whose answers lack something."""
        trying = self.lacking > 0
        target.differentiated(rows[trying], self.gradient[trying])


Problem = Callable[[Tensor, Tensor], Look]
"""Points [n,k] of certain rows [n] of the batch → what is seen there."""


Visit = Callable[[Tensor, Tensor, Seen, int], Tensor]
"""Points [n,k], their rows [n], what is seen there and the step's number → which of them are done, [n] bool."""


class Descent(NamedTuple):
    """How a descent goes. steps: number of them. rate: of Adam on the points, for each coordinate or for all.

    ascent: by how much of the excess the multiplier λ grows in a step.
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
    """min over z, max over λ ≥ 0 of lacking(z) + Σ λᵢ · excessᵢ(z) for every row of `point` [M,k] at once, λ₀ = 1.

    Each point is visited (`descent.steps` + 1 of them); what is done leaves the batch. settle: points [n,k] of certain
    rows → where they may be.
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
    """z, other: latents [M,k]; distance: ‖G z − G z′‖₂, [M] float64; found: differently classified within η, [M]."""

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
    """Latents z, z′ [M,k] whose images are classified differently within η in L2, found by a descent from `start`.

    For every pair max over z, z′, min over λ ≥ 0 of their disagreement − λ (‖G z − G z′‖₂ − η) (Ilyas et al. 2017,
    section 5), λ₀ = 1. The disagreement is the margin by which z keeps the class it begins with, and z′ has another;
    each counts up to `confidence`, so that what is classified differently only comes nearer. A pair that has both
    leaves the batch; of the others the most confident pair within η is kept. `found` is computed afresh at the end,
    from the images themselves. Costs 2 forward and 2 backward passes a step and pair.

    generator: [N,k] → images; classifier: images → logits [N,K]; both in eval mode.
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
        return Look(lacking, distance - eta * (1 - 1e-6), differ)  # the last digit is float32's

    ended = torch.cat([z, other], dim=1).detach().clone()
    least = z.new_full((len(z),), torch.inf)

    def visit(both: Tensor, rows: Tensor, seen: Seen, step: int) -> Tensor:
        valid = seen.reached & (seen.excess <= 0)
        lacking = torch.where(valid, seen.lacking, torch.inf)
        better = (lacking < least[rows]) | least[rows].isinf()  # what is no pair gives way to anything
        ended[rows[better]], least[rows[better]] = both[better], lacking[better]
        return valid & (seen.lacking <= 0)

    descend(problem, ended.clone(), visit, descent)
    z, other = ended[:, :latent], ended[:, latent:]
    images, others = blockwise(generator, z), blockwise(generator, other)
    distance = (images.double() - others.double()).flatten(1).norm(dim=1)
    differ = blockwise(classifier, images).argmax(1) != blockwise(classifier, others).argmax(1)
    return Pairs(z, other, distance, differ & (distance <= eta))


def apart(one: Tensor, other: Tensor) -> Tensor:
    """Euclidean distances of images [N,C,H,W], [N]; where they are equal the gradient is 0."""
    return (one - other).flatten(1).square().sum(1).clamp_min(1e-12).sqrt()
