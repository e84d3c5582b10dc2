"""What the harness itself finds out about an attack's output. The attack's own opinion plays no part."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from manifold_bench.attacks.batching import blockwise
from manifold_bench.attacks.contract import Verdict
from manifold_bench.attacks.threat import Norm, flat_norm, inside
from manifold_bench.defenses.base import Defense


@dataclass(frozen=True)
class ScoredVerdict(Verdict):
    """A verdict whose scores are always there: float64 [N], NaN where the defense doesn't say."""

    scores: Tensor


def verdict(defense: Defense, x: Tensor, y: Tensor, draws: int, seed: int, aims: Tensor | None = None) -> ScoredVerdict:
    """A fresh answer of the full-strength defense for x [N,C,H,W] with labels y [N]; aims [N] as in `succeeded`.

    A randomized defense is asked `draws` times: an input counts as beaten if any answer is, else as rejected if any
    answer is; the score is that of the answer that counts. No answer is kept between calls.
    """
    defense.eval()
    times = draws if defense.randomized else 1
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        worst = _asked(defense, x)
        for _ in range(times - 1):
            new = _asked(defense, x)
            takes = ~succeeded(worst, y, aims) & (succeeded(new, y, aims) | (new.rejected & ~worst.rejected))
            worst = ScoredVerdict(
                torch.where(takes, new.labels, worst.labels),
                torch.where(takes, new.rejected, worst.rejected),
                torch.where(takes, new.scores, worst.scores),
            )
    return worst


def succeeded(answer: Verdict, y: Tensor, aims: Tensor | None) -> Tensor:
    """Whether an attack that got these answers was a success → [N] bool: accepted and wrong, whatever was aimed at.

    Noise has no label (y = −1): accepted, and as the class aimed at where there is one (aims [N]; −1 or None: none).
    """
    wrong = answer.wrong(y)
    if aims is None:
        return wrong
    return wrong & ((y >= 0) | (aims < 0) | (answer.labels == aims))


def _asked(defense: Defense, x: Tensor) -> ScoredVerdict:
    answer = scored_answers(defense, x)
    return ScoredVerdict(answer[:, 0].long(), answer[:, 1].bool(), answer[:, 2])


def _as_columns(answer: Verdict) -> Tensor:
    """[N,3]: label, rejected, score; float64 holds every label exactly."""
    scores = torch.full_like(answer.labels, torch.nan, dtype=torch.float64) if answer.scores is None else answer.scores
    columns = (answer.labels, answer.rejected, scores)
    if len({column.shape for column in columns}) > 1 or answer.labels.dim() != 1:
        raise ValueError(f"the verdict has shapes {', '.join(str(tuple(column.shape)) for column in columns)}")
    return torch.stack([column.double() for column in columns], dim=1)


def batch_invariant(defense: Defense, x: Tensor) -> bool:
    """Whether a deterministic defense answers the same for inputs alone and in a batch (the first eight of x).

    The answer is label and rejection: a score may differ in its last bits and mean the same.
    """
    together, alone = (scored_answers(defense, x[:8], size) for size in (None, 1))
    return torch.equal(together[:, :2], alone[:, :2])


def scored_answers(defense: Defense, x: Tensor, batch_size: int | None = None) -> Tensor:
    """Label, rejection and score (NaN where the defense gives none), float64 [N,3], of images [N,C,H,W].

    Nothing is cached: a randomized defense draws again. batch_size: see `blockwise`.
    """
    return blockwise(lambda part: _as_columns(defense.verdict(part)), x, batch_size)


@dataclass(frozen=True)
class Judgement:
    """All [N]: the answer that counts, the measured distances, whether the output was valid, whether it succeeded."""

    labels: Tensor
    rejected: Tensor
    scores: Tensor
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
    clean: ScoredVerdict,
    norm: Norm,
    eps: float,
    draws: int,
    seed: int,
    aims: Tensor | None = None,
) -> Judgement:
    """Judges the outputs of an attack on x [N,C,H,W] with labels y [N]; aims [N] as in `succeeded`.

    What is not finite, outside [0,1] or outside the ε-ball is not valid: the clean answer stands in its place, and
    it is no success. Raises ValueError where the attack returned another shape.
    """
    if adversarial.shape != x.shape:
        raise ValueError(f"the attack returned shape {tuple(adversarial.shape)} for inputs {tuple(x.shape)}")
    valid = inside(adversarial, x, norm, eps)
    judged = torch.where(valid.view(-1, 1, 1, 1), adversarial, x).clamp(0, 1)
    answer = verdict(defense, judged, y, draws, seed, aims)
    delta = (adversarial.double() - x.double()).nan_to_num(torch.inf, torch.inf, torch.inf)
    return Judgement(
        labels=torch.where(valid, answer.labels, clean.labels),
        rejected=torch.where(valid, answer.rejected, clean.rejected),
        scores=torch.where(valid, answer.scores, clean.scores),
        linf=flat_norm(delta, "linf"),
        l2=flat_norm(delta, "l2"),
        l0=flat_norm(delta, "l0"),
        valid=valid,
        success=valid & succeeded(answer, y, aims),
    )
