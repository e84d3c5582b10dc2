"""What a gradient attack climbs. logits: [N,K], or [N,K+1] with the reject score last; y: [N] → [N]."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

LossName = Literal["auto", "cross-entropy", "margin", "selective-margin"]
Loss = Callable[[Tensor, Tensor, int], Tensor]


def largest_wrong(logits: Tensor, y: Tensor, classes: int) -> Tensor:
    """The largest logit of a wrong class, the reject score left out → [N]."""
    true = F.one_hot(y, classes).bool()
    return logits[:, :classes].masked_fill(true, -torch.inf).amax(1)


def cross_entropy(logits: Tensor, y: Tensor, classes: int) -> Tensor:
    """−log softmax(logits)_y over every output, the reject score included."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor, classes: int) -> Tensor:
    """Largest wrong logit minus the true one (Carlini & Wagner 2017); rejection is not seen."""
    return largest_wrong(logits, y, classes) - logits.gather(1, y[:, None])[:, 0]


def selective_margin(logits: Tensor, y: Tensor, classes: int) -> Tensor:
    """Largest wrong logit minus the larger of the true logit and the reject score.

    Positive exactly where the input is accepted and wrong. With K outputs it is `margin`.
    """
    true = logits.gather(1, y[:, None])[:, 0]
    if logits.shape[1] > classes:
        true = torch.maximum(true, logits[:, classes])
    return largest_wrong(logits, y, classes) - true


def named_loss(name: LossName, rejects: bool) -> Loss:
    """The loss of that name; `auto` is cross-entropy, and the selective margin where the outputs can reject."""
    if name == "auto":
        name = "selective-margin" if rejects else "cross-entropy"
    return {"cross-entropy": cross_entropy, "margin": margin, "selective-margin": selective_margin}[name]


def accepted_and_wrong(logits: Tensor, y: Tensor, classes: int) -> Tensor:
    """Whether the answer is a class, and not y → [N] bool. A NaN among the outputs is no answer."""
    answer = logits.argmax(1)
    return (answer != y) & (answer < classes) & logits.isfinite().all(1)
