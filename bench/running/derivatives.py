"""Whether the gradients that attacks get are the derivatives of a defense's outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from manifold_bench.attacks.outputs import Scored
from manifold_bench.defenses.base import Defense
from manifold_bench.defenses.bpda import approximated

STEPS = 1 / 1024, 1 / 256, 1 / 64, 1 / 32, 1 / 16
"""Largest change of a pixel by each size of step."""

DIRECTIONS = 8
"""Number of random directions of the steps."""

AWAY = 0.05
"""Largest distance of a pixel from clean images, whose many equal pixels make derivatives other to each side."""

STEADY = 0.9
"""Least concordance of the changes by steps of two sizes from which on a value is taken to have a derivative."""

FITS = 0.85
"""Least correlation of the changes with those that the gradient predicts, by the best size of step, if it is the
derivative. Trained models have 0.98 and more, and one with half of its margin detached has 0.8."""

UNSEEN = 0.1
"""Largest change by pixels whose gradient is zero, for each of them, as a share of the change by all pixels."""


def gradients_fit(defense: Defense, few: Tensor) -> bool:
    """Return whether gradients near images [n,C,H,W] are the derivatives of the outputs, as far as these have any.

    The outputs are the margin between the two likeliest classes, and the reject score. A step that declares its
    gradient as that of another function (`mb.bpda`) computes that function here. Nothing is said of a defense with a
    step whose gradient a library estimates, nor of one whose margin has no gradient at all: what remains are attacks
    that need none.
    """
    classes = defense.num_classes
    scored = Scored(defense, classes, few)

    def values(x: Tensor) -> Tensor:  # [V,n], V = 1 or 2
        outputs = scored(x)
        first, second = outputs.gather(1, likeliest).unbind(1)
        return torch.stack([first - second, *outputs[:, classes:].unbind(1)])

    near = _away(few)
    x = near.clone().requires_grad_()
    try:
        with approximated() as estimated:
            with torch.no_grad():
                likeliest = scored(near)[:, :classes].topk(2).indices
            with torch.enable_grad():
                gradients = [torch.autograd.grad(value.sum(), x, retain_graph=True)[0] for value in values(x)]
            return bool(estimated) or not gradients[0].any() or _fit(values, near, gradients)
    except Exception:  # a user's code may raise anything, and an attack then fails by name
        return True


def rejection_has_gradient(defense: Defense, few: Tensor) -> bool:
    """Return whether a rejecting defense's reject score, beyond its largest logit, changes with images [n,C,H,W]."""
    x = _away(few).requires_grad_()
    try:
        with torch.enable_grad():
            outputs = defense(x)
            excess = outputs[:, defense.num_classes] - outputs[:, : defense.num_classes].amax(1)
            return bool(torch.autograd.grad(excess.sum(), x)[0].any())
    except Exception:  # as in `gradients_fit`
        return True


def _away(few: Tensor) -> Tensor:
    """Return images at most `AWAY` from images [n,C,H,W] in each pixel, and in [0,1] where these are."""
    return few + AWAY * draws(few.shape, 0).to(few) * torch.where(few < 0.5, 1.0, -1.0).to(few)


@torch.no_grad()
def _fit(values: Callable[[Tensor], Tensor], x: Tensor, gradients: Sequence[Tensor]) -> bool:
    """Return whether V gradients [n,C,H,W] are the derivatives of values: images x [n,C,H,W] → [V,n].

    The changes of a value by small steps in random directions are compared with those that its gradient predicts. The
    pixels whose gradient is zero are tried alone as well: they should change next to nothing. Where changes by steps of
    different sizes disagree, as behind a step that rounds, the value has no derivative, and nothing is said.
    """
    directions, base = 2 * draws((DIRECTIONS, *x.shape), 1).to(x) - 1, values(x)

    def changes(pixels: Tensor) -> list[Tensor]:  # for each size of step [DIRECTIONS,V,n]
        moved = [(size, (x + size * direction).clamp(0, 1)) for size in STEPS for direction in directions * pixels]
        return [*torch.stack([(values(image) - base) / size for size, image in moved]).split(DIRECTIONS)]

    everywhere = torch.ones_like(x)
    of_all = changes(everywhere)
    for i, gradient in enumerate(gradients):
        seen, zero = [each[:, i] for each in of_all], (gradient == 0).to(x)
        predicted = (gradient * directions).flatten(2).sum(2)
        if gradient.any() and _steady(seen) and max(_correlation(each, predicted) for each in seen) < FITS:
            return False
        hidden = [each[:, i] for each in changes(zero)] if zero.any() else []
        if _steady(hidden) and _for_each(hidden, zero) > UNSEEN * _for_each(seen, everywhere):
            return False
    return True


def draws(shape: Sequence[int], seed: int) -> Tensor:
    """Return random numbers in [0,1), the same whatever the default device and type are."""
    random = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=random, device="cpu", dtype=torch.float32)


def _steady(changes: list[Tensor]) -> bool:
    """Return whether the changes [D,n] by steps of two neighbouring sizes agree, by the median over images.

    The measure is Lin's concordance with means of zero: unlike a correlation it falls where sizes differ.
    """
    wide = [part.double() for part in changes]
    pairs = [2 * (a * b).sum(0) / (a.square() + b.square()).sum(0) for a, b in pairwise(wide)]
    return any(float(each.nanmedian()) > STEADY for each in pairs)


def _correlation(one: Tensor, other: Tensor) -> float:
    """Return the median over images of the correlation of [D,n] with [D,n], means of zero; NaN if nothing changes."""
    a, b = one.double(), other.double()
    return float(((a * b).sum(0) / (a.norm(dim=0) * b.norm(dim=0))).nanmedian())


def _for_each(changes: list[Tensor], pixels: Tensor) -> float:
    """Return the smallest over the sizes of steps of the mean change for each of the changed pixels [n,C,H,W].

    Changes by many pixels add up like random numbers, so that they grow with the root of their number.
    """
    return min(float(one.abs().mean()) for one in changes) / float(pixels.flatten(1).sum(1).mean().sqrt())
