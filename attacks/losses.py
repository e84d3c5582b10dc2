"""What a gradient attack climbs.

Every loss takes logits [N,K], or [N,K+1] with the reject score last, labels y [N], the number of classes K, and the
classes aimed at [N] or None for «any but y»; it gives [N].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from manifold_bench.attacks.contract import answered

LossName = Literal["auto", "cross-entropy", "margin", "selective-margin", "selective"]
Loss = Callable[[Tensor, Tensor, int, Tensor | None], Tensor]


SHARPNESS = 8.0
"""How many temperatures of its softmax a trained network's logits spread over, about."""


def largest_other(logits: Tensor, y: Tensor, classes: int) -> Tensor:
    """The largest logit of a class that is not y, the reject score left out → [N]."""
    return logits[:, :classes].scatter(1, y[:, None], -torch.inf).amax(1)


def reject_excess(logits: Tensor, classes: int) -> Tensor:
    """Reject score minus the largest class logit, of logits [N,K+1] → [N]: > 0 exactly where the input is rejected."""
    return logits[:, classes] - logits[:, :classes].amax(1)


def cross_entropy(logits: Tensor, y: Tensor, classes: int, aims: Tensor | None = None) -> Tensor:
    """log Σ_{j≠y} p_j − log p_y of the softmax over every output, the reject score included; untargeted.

    That is a monotone function of −log p_y with a gradient of the same direction, and does not vanish where p_y
    rounds to 1. Its softmax has the `typical_temperature`, in whose units it is measured: a network whose logits are
    multiplied by 10 is attacked in the same way.
    """
    ahead = (logits - logits.gather(1, y[:, None])).scatter(1, y[:, None], -torch.inf)
    temperature = typical_temperature(logits, classes)
    return (ahead / temperature[:, None]).logsumexp(1) * temperature


def spread(logits: Tensor, classes: int) -> Tensor:
    """Mean distance of the finite class logits from their mean, [N]; a constant to gradients, tiny where all agree."""
    real = logits[:, :classes].detach()
    finite = real.isfinite()
    count = finite.sum(1).clamp_min(1)
    mean = real.masked_fill(~finite, 0.0).sum(1) / count
    return ((real - mean[:, None]).abs().masked_fill(~finite, 0.0).sum(1) / count).clamp_min(1e-30)


def typical_temperature(logits: Tensor, classes: int) -> Tensor:
    """The temperature at which the softmax of these logits is as sharp as that of a trained network at 1, [N]."""
    return spread(logits, classes) / SHARPNESS


def margin(logits: Tensor, y: Tensor, classes: int, aims: Tensor | None = None) -> Tensor:
    """Largest wrong logit minus the true one (Carlini & Wagner 2017); rejection is not seen.

    With aims: the logit aimed at minus the largest other.
    """
    if aims is None:
        return largest_other(logits, y, classes) - logits.gather(1, y[:, None])[:, 0]
    return logits.gather(1, aims[:, None])[:, 0] - largest_other(logits, aims, classes)


def selective_margin(logits: Tensor, y: Tensor, classes: int, aims: Tensor | None = None) -> Tensor:
    """The wrong logit minus the larger of its rivals and the reject score: `margin` with the reject score as a rival.

    Without aims it is positive exactly where the input is accepted and wrong. With K outputs it is `margin`.
    """
    plain = margin(logits, y, classes, aims)
    if logits.shape[1] == classes:
        return plain
    wrong = largest_other(logits, y, classes) if aims is None else logits.gather(1, aims[:, None])[:, 0]
    return torch.minimum(plain, wrong - logits[:, classes])


def selective(logits: Tensor, y: Tensor, classes: int, aims: Tensor | None = None) -> Tensor:
    """First wrong, then accepted: `margin` until the answer is the wrong class, from there minus the reject excess.

    A detector that is tight around each class is a wall between them: a loss that minds it on the way (the selective
    margin) stays on its side, one that minds it on arrival gets across (the idea of orthogonal and selective PGD,
    Bryniarski et al. 2022). Positive exactly where the input is accepted and wrong; with K outputs it is `margin`.
    """
    plain = margin(logits, y, classes, aims)
    if logits.shape[1] == classes:
        return plain
    return torch.where(plain <= 0, plain, -reject_excess(logits, classes))


def dlr(logits: Tensor, y: Tensor, classes: int, aims: Tensor | None = None) -> Tensor:
    """Difference of logits ratio (Croce & Hein 2020): `margin` over the gap from the first to the third logit.

    With aims their targeted form: z_t − z_y over z_π1 − (z_π3 + z_π4)/2. Scaling the logits changes neither. Needs 4
    classes; rejection is not seen. Where a class among these is masked by −∞ the logits' spread takes their place.
    """
    first, _, third, fourth = logits[:, :classes].topk(4, dim=1).values.unbind(1)
    if aims is None:
        ahead, scale = margin(logits[:, :classes], y, classes), first - third
    else:
        ahead = (logits.gather(1, aims[:, None]) - logits.gather(1, y[:, None]))[:, 0]
        scale = first - (third + fourth) / 2
    return ahead / torch.where(scale.isfinite() & (scale > 0), scale, spread(logits, classes))


def wrong_first(loss: Loss) -> Loss:
    """That loss of the class logits until the answer is wrong, then minus the reject excess; float64.

    It is `selective` for searches that compare values: squashed so that whatever is wrong beats whatever isn't, however
    clearly it is rejected, a best point never falls back behind the wall. Positive exactly where accepted and wrong.
    """

    def climbed(logits: Tensor, y: Tensor, classes: int, aims: Tensor | None = None) -> Tensor:
        real = logits[:, :classes]
        excess = reject_excess(logits, classes).double()
        plain = loss(real, y, classes, aims).double()
        return torch.where(real.argmax(1) == y, F.softsign(plain) - 2, F.softsign(-excess))

    return climbed


def boundary(logits: Tensor, y: Tensor, classes: int, aims: Tensor) -> Tensor:
    """What is zero on the boundary to be crossed next, negative on this side of it. aims: [N,M] → [N,M].

    z_aim − z_y, and where the answer is wrong already but may be rejected, minus the reject excess.
    """
    real = logits[:, :classes]
    ahead = real.gather(1, aims) - real.gather(1, y[:, None])
    if logits.shape[1] == classes:
        return ahead
    return torch.where((real.argmax(1) == y)[:, None], ahead, -reject_excess(logits, classes)[:, None])


def likeliest_wrong(logits: Tensor, y: Tensor, classes: int) -> Tensor:
    """The wrong classes of each input, largest logit first → [N,K−1]; for one masked by −∞ the likeliest again."""
    others = logits[:, :classes].scatter(1, y[:, None], -torch.inf)
    order = others.argsort(dim=1, descending=True, stable=True)[:, : classes - 1]
    return torch.where(others.gather(1, order) == -torch.inf, order[:, :1], order)


def named_loss(name: LossName, rejects: bool, targeted: bool) -> Loss:
    """The loss of that name; `auto` is `selective` where outputs can reject, else cross-entropy (targeted: margin)."""
    if name == "auto":
        name = "selective" if rejects else "margin" if targeted else "cross-entropy"
    return {
        "cross-entropy": cross_entropy,
        "margin": margin,
        "selective-margin": selective_margin,
        "selective": selective,
    }[name]


def accepted_and_wrong(logits: Tensor, y: Tensor, classes: int) -> Tensor:
    """Whether the answer is a class, and not y → [N] bool. A NaN among the outputs is no answer; ±∞ is a value."""
    return answered(logits, classes).wrong(y) & ~logits.isnan().any(1)
