"""Losses that gradient attacks maximise.

Every loss takes logits [N,K], or [N,K+1] with the reject score last, labels y [N], the number of classes K, and target
classes `aims` [N], or None if any wrong class will do. It returns [N].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from manifold_bench.attacks.contract import verdict_of
from manifold_bench.attacks.scales import spreads

LossName = Literal["auto", "cross-entropy", "margin", "selective-margin", "selective"]
Loss = Callable[[Tensor, Tensor, int, Tensor | None], Tensor]

SHARPNESS = 8.0
"""Typical spread of a trained network's logits, in units of the temperature of its softmax."""


def largest_other(logits: Tensor, y: Tensor, classes: int) -> Tensor:
    """Return the largest logit of a class other than y, the reject score left out → [N]."""
    return logits[:, :classes].scatter(1, y[:, None], -torch.inf).amax(1)


def reject_excess(logits: Tensor, classes: int) -> Tensor:
    """Return the reject score minus the largest class logit, for logits [N,K+1] → [N]; > 0 exactly where rejected."""
    return logits[:, classes] - logits[:, :classes].amax(1)


def cross_entropy(logits: Tensor, y: Tensor, classes: int, aims: Tensor | None = None) -> Tensor:
    """Return log Σ_{j≠y} p_j − log p_y, p the softmax over all outputs, the reject score included; aims are ignored.

    This is a monotone function of the cross-entropy −log p_y. Its gradient has the same direction, and does not vanish
    where p_y rounds to 1. The logits are divided by the `typical_temperature`, their usual spread, so that a network
    whose logits are multiplied by 10 is attacked in the same way.
    """
    ahead = (logits - logits.gather(1, y[:, None])).scatter(1, y[:, None], -torch.inf)
    temperature = typical_temperature(logits, classes)
    return (ahead / temperature[:, None]).logsumexp(1) * temperature


def spread(logits: Tensor, classes: int) -> Tensor:
    """Return the mean absolute deviation of the finite class logits, [N], at least 1e-30; without a gradient."""
    return spreads(logits[:, :classes].detach()).clamp_min(1e-30)


def typical_temperature(logits: Tensor, classes: int) -> Tensor:
    """Return the temperature [N] at which the softmax of these logits is as sharp as a trained network's usually is."""
    return spread(logits, classes) / SHARPNESS


def margin(logits: Tensor, y: Tensor, classes: int, aims: Tensor | None = None) -> Tensor:
    """Return the largest wrong logit minus the true one (Carlini & Wagner 2017); the reject score plays no part.

    With aims: the target class' logit minus the largest other one.
    """
    if aims is None:
        return largest_other(logits, y, classes) - logits.gather(1, y[:, None])[:, 0]
    return logits.gather(1, aims[:, None])[:, 0] - largest_other(logits, aims, classes)


def selective_margin(logits: Tensor, y: Tensor, classes: int, aims: Tensor | None = None) -> Tensor:
    """Return the `margin` in which the reject score counts as one more logit that the wrong class has to exceed.

    Without aims it is positive exactly where the input is accepted and wrong. With K outputs it equals `margin`.
    """
    plain = margin(logits, y, classes, aims)
    if logits.shape[1] == classes:
        return plain
    wrong = largest_other(logits, y, classes) if aims is None else logits.gather(1, aims[:, None])[:, 0]
    return torch.minimum(plain, wrong - logits[:, classes])


def selective(logits: Tensor, y: Tensor, classes: int, aims: Tensor | None = None) -> Tensor:
    """Return the `margin` until the answer is a wrong class, and from there minus the reject excess.

    A tight detector rejects everything between two classes. A loss that includes it from the beginning (the selective
    margin) never leaves the true class; one that includes it only once the answer is wrong does (the idea of selective
    and orthogonal PGD, Bryniarski et al. 2022). Positive exactly where the input is accepted and wrong. With K outputs
    it equals `margin`.
    """
    plain = margin(logits, y, classes, aims)
    if logits.shape[1] == classes:
        return plain
    return torch.where(plain <= 0, plain, -reject_excess(logits, classes))


def dlr(logits: Tensor, y: Tensor, classes: int, aims: Tensor | None = None) -> Tensor:
    """Return the difference of logits ratio (Croce & Hein 2020): `margin` over the largest minus the third logit.

    With aims it is their targeted form, (z_t − z_y) / (z_π1 − (z_π3 + z_π4)/2). Scaling the logits changes neither.
    Needs at least 4 classes; the reject score plays no part. Where −∞ masks one of the classes in the denominator, the
    denominator is the logits' `spread`.
    """
    first, _, third, fourth = logits[:, :classes].topk(4, dim=1).values.unbind(1)
    if aims is None:
        ahead, scale = margin(logits[:, :classes], y, classes), first - third
    else:
        ahead = (logits.gather(1, aims[:, None]) - logits.gather(1, y[:, None]))[:, 0]
        scale = first - (third + fourth) / 2
    return ahead / torch.where(scale.isfinite() & (scale > 0), scale, spread(logits, classes))


def wrong_first(loss: Loss) -> Loss:
    """Return a loss that is `loss` of the class logits until the answer is wrong, then minus the reject excess.

    Its values are float64. It is a form of `selective` for searches that compare values. Both stages are squashed so
    that every wrong answer, however clearly rejected, has a larger value than every right one: the best point is never
    a right answer again. Positive exactly where the input is accepted and wrong.
    """

    def climbed(logits: Tensor, y: Tensor, classes: int, aims: Tensor | None = None) -> Tensor:
        real = logits[:, :classes]
        excess = reject_excess(logits, classes).double()
        plain = loss(real, y, classes, aims).double()
        return torch.where(real.argmax(1) == y, F.softsign(plain) - 2, F.softsign(-excess))

    return climbed


def boundary(logits: Tensor, y: Tensor, classes: int, aims: Tensor) -> Tensor:
    """Return a function that is zero on the boundary to cross next, and negative before it; for M target classes.

    It is z_aim − z_y, and minus the reject excess once the answer is wrong. aims: [N,M] → [N,M].
    """
    real = logits[:, :classes]
    ahead = real.gather(1, aims) - real.gather(1, y[:, None])
    if logits.shape[1] == classes:
        return ahead
    return torch.where((real.argmax(1) == y)[:, None], ahead, -reject_excess(logits, classes)[:, None])


def likeliest_wrong(logits: Tensor, y: Tensor, classes: int) -> Tensor:
    """Return the wrong classes of each input, largest logit first → [N,K−1].

    In place of a class that is masked by −∞ the likeliest wrong class is repeated.
    """
    others = logits[:, :classes].scatter(1, y[:, None], -torch.inf)
    order = others.argsort(dim=1, descending=True, stable=True)[:, : classes - 1]
    return torch.where(others.gather(1, order) == -torch.inf, order[:, :1], order)


def named_loss(name: LossName, rejects: bool, targeted: bool) -> Loss:
    """Return the loss of that name; `auto`: `selective` if the defense rejects, else cross-entropy (targeted: margin).

    rejects: whether the outputs have a reject score. targeted: whether the loss gets target classes.
    """
    if name == "auto":
        name = "selective" if rejects else "margin" if targeted else "cross-entropy"
    return {
        "cross-entropy": cross_entropy,
        "margin": margin,
        "selective-margin": selective_margin,
        "selective": selective,
    }[name]


def accepted_and_wrong(logits: Tensor, y: Tensor, classes: int) -> Tensor:
    """Return whether each answer is accepted and not y → [N] bool; outputs with a NaN count as no answer."""
    return verdict_of(logits, classes).wrong(y) & ~logits.isnan().any(1)
