"""One attack on one batch of images, judged as in a run."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from manifold_bench.attacks.base import Attack
from manifold_bench.attacks.queries import Queries
from manifold_bench.attacks.target import Attacker, BudgetSpent, Target
from manifold_bench.attacks.threat import expand
from manifold_bench.attacks.view import WITHOUT_GRADIENT
from manifold_bench.bench.metrics.effort import LIMIT
from manifold_bench.bench.running.judge import FEW, Inputs, Judge, answers_are_plain, begun, verdict
from manifold_bench.bench.running.remarks import repeats
from manifold_bench.defenses.base import Defense, LabelledImages
from manifold_bench.defenses.weights import weights_hash

BLIND = "the gradient was exactly zero or not finite"
"""What is said of images for which more than half of the gradients were that."""


@dataclass(frozen=True)
class Attacked:
    """Outputs of an attack. adversarial [N,C,H,W]; success [N]: accepted and wrong, within ε; distance [N]."""

    adversarial: Tensor
    success: Tensor
    distance: Tensor

    def __repr__(self) -> str:
        return f"Attacked({int(self.success.sum())} of {len(self.success)} images are beaten)"


def attack_once(
    attack: Attack, eps: float, attacked: Defense, judging: Defense, images: LabelledImages
) -> tuple[Attacked, list[str]]:
    """Attack images within ε, and have the outputs, and the best points that the attack met, judged.

    attacked, judging: two instances of a defense, of which the attack gets the first. Returns also sentences on why the
    figures may mislead. Raises RuntimeError if the attack changes weights, and TypeError for outputs of another shape.
    """
    x, y = images.images, images.labels
    attacked, judging = begun(attacked, x), begun(judging, x)
    size = math.inf if attack.minimal else eps
    queries = Queries(x, y, None, attack.norm, size)
    target = Target(attacked, len(x), Attacker(clean=x, max_passes=attack.max_passes), queries=queries)
    before = weights_hash(attacked)
    try:
        found = attack.run(target, x.clone(), y.clone(), size, 0)
    except BudgetSpent:
        found = queries.point
    if not isinstance(found, Tensor) or found.shape != x.shape:
        shown = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise TypeError(f"the attack returned {shown}; expected a tensor of shape {tuple(x.shape)}, as its inputs")
    if weights_hash(attacked) != before:
        raise RuntimeError("the attack changed the weights or buffers of the defense, so that its outputs do not count")
    outputs = torch.where(expand(target.spent, x), queries.point, found.detach().to(x))
    inputs = Inputs(x, y, torch.full_like(y, -1), torch.arange(len(y)))
    judge, clean = Judge(judging, attack.norm, 1, 0), verdict(judging, x, y, 1, 0)
    judged, met = (judge.judge(inputs, clean, points, eps) for points in (outputs, queries.point))
    smaller = met.distance(attack.norm) < judged.distance(attack.norm)
    nearer = queries.distance.isfinite() & met.success & (~judged.success | smaller)
    judged, outputs = judged.where(~nearer, met), torch.where(expand(nearer, x), queries.point, outputs)
    odd: list[str] = []
    if answers_are_plain(judging):
        odd += repeats(judging, x[:FEW], 1, uneven=True)
    if gave_up := _gave_up(queries, outputs, ~judged.success):
        advice = f"; {WITHOUT_GRADIENT}" if BLIND in gave_up else ""
        odd.append(f"{gave_up}; this is no evidence of robustness{advice}")
    return Attacked(outputs, judged.success, judged.distance(attack.norm)), odd


def _gave_up(queries: Queries, outputs: Tensor, held: Tensor) -> str:
    """Return a phrase on images that hold because the attack stopped trying; "" where they are at most `LIMIT`."""
    signs = {
        BLIND: queries.blind / queries.gradients > 0.5,
        "the image was never changed": ~(queries.moved | (outputs != queries.x).flatten(1).any(1)),
        "no query came nearer to a wrong answer": ~queries.improved,
    }
    counts = {sign: int((held & found).sum()) for sign, found in signs.items()}
    concerned = int((held & torch.stack(list(signs.values())).any(0)).sum())
    if concerned <= LIMIT * len(held):
        return ""
    shown = ", ".join(f"{sign} on {count}" for sign, count in counts.items() if count)
    return f"the attack stopped trying on {concerned} of {len(held)} images: {shown}"
