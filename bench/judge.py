"""What the harness itself finds out about an attack's output. The attack's own opinion plays no part."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.target import Verdict, blockwise
from attacks.threat import Norm, flat_norm, inside
from defenses.base import Defense

BATCH = 256
"""Inputs judged at once."""


def verdict(defense: Defense, x: Tensor, y: Tensor, draws: int, seed: int) -> Verdict:
    """A fresh answer of the full-strength defense for x [N,C,H,W].

    A randomized defense is asked `draws` times: an input counts as accepted and wrong if any answer is, else as
    rejected if any answer is. No answer is kept between calls.
    """
    defense.eval()
    times = draws if defense.randomized else 1
    labels, rejected = torch.empty(0), torch.empty(0)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for draw in range(times):
            answer = blockwise(lambda part: _as_columns(defense.verdict(part)), x, BATCH)
            new_labels, new_rejected = answer[:, 0], answer[:, 1].bool()
            if draw == 0:
                labels, rejected = new_labels, new_rejected
                continue
            wrong = ~rejected & (labels != y)
            new_wrong = ~new_rejected & (new_labels != y)
            takes = ~wrong & (new_wrong | (new_rejected & ~rejected))
            labels = torch.where(takes, new_labels, labels)
            rejected = torch.where(takes, new_rejected, rejected)
    return Verdict(labels, rejected)


def _as_columns(answer: Verdict) -> Tensor:
    if answer.labels.shape != answer.rejected.shape or answer.labels.dim() != 1:
        raise ValueError(f"the verdict has shapes {tuple(answer.labels.shape)} and {tuple(answer.rejected.shape)}")
    return torch.stack([answer.labels, answer.rejected.to(answer.labels.dtype)], dim=1)


def protocol(randomized: bool, draws: int) -> str:
    """How answers were asked for, as it stands in the records."""
    if not randomized:
        return "deterministic"
    return "single-shot" if draws == 1 else f"worst-of-{draws}"


def batch_invariant(defense: Defense, x: Tensor) -> bool:
    """Whether a deterministic defense answers the same for inputs alone and in a batch (the first eight of x)."""
    some = x[:8]
    together = blockwise(lambda part: _as_columns(defense.verdict(part)), some)
    alone = blockwise(lambda part: _as_columns(defense.verdict(part)), some, batch_size=1)
    return torch.equal(together, alone)


@dataclass(frozen=True)
class Judgement:
    """All [N]: the answer that counts, the measured distances, whether the output was valid, whether it succeeded."""

    labels: Tensor
    rejected: Tensor
    linf: Tensor
    l2: Tensor
    l0: Tensor
    valid: Tensor
    success: Tensor


def judge(
    defense: Defense,
    x: Tensor,
    adversarial: Tensor,
    y: Tensor,
    clean: Verdict,
    norm: Norm,
    eps: float,
    draws: int,
    seed: int,
) -> Judgement:
    """Judges the outputs of an attack on x [N,C,H,W] with labels y [N].

    What is not finite, outside [0,1] or outside the ε-ball is not valid: the clean answer stands in its place, and
    it is no success. Raises ValueError where the attack returned another shape.
    """
    if adversarial.shape != x.shape:
        raise ValueError(f"the attack returned shape {tuple(adversarial.shape)} for inputs {tuple(x.shape)}")
    valid = inside(adversarial, x, norm, eps)
    judged = torch.where(valid.view(-1, 1, 1, 1), adversarial, x).clamp(0, 1)
    answer = verdict(defense, judged, y, draws, seed)
    labels = torch.where(valid, answer.labels, clean.labels)
    rejected = torch.where(valid, answer.rejected, clean.rejected)
    delta = (adversarial.double() - x.double()).nan_to_num(torch.inf, torch.inf, torch.inf)
    return Judgement(
        labels=labels,
        rejected=rejected,
        linf=flat_norm(delta, "linf"),
        l2=flat_norm(delta, "l2"),
        l0=flat_norm(delta, "l0"),
        valid=valid,
        success=valid & ~rejected & (labels != y),
    )
