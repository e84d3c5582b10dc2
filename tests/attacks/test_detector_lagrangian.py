"""The descent with a multiplier for each detector, on detectors whose distances are known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from rejecting import TwoDetectors
from torch import Tensor
from toys import Linear

from manifold_bench.attacks.detector_lagrangian import DetectorLagrangian
from manifold_bench.attacks.lagrangian import Descent, ProblemValues, descend
from manifold_bench.attacks.target import Target
from manifold_bench.attacks.threat import inside

TWO = TwoDetectors()
ATTACK = DetectorLagrangian(steps=200, rate=0.05, ascent=0.5, confidence=0.1)


def falls(attack: DetectorLagrangian, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Whether each input is beaten; what comes back is inside the ball in any case."""
    out = attack.run(Target(TWO, len(x)), x, y, eps, 0)
    assert inside(out, x, attack.norm, eps).all()
    return TWO.verdict(out).wrong(y)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_what_is_robust_is_what_lies_further_away_than_eps(norm):
    x, y = TWO.images(40)
    distance = TWO.distance(x, norm)
    eps = float(distance.median()) + 1e-4
    beaten = falls(replace(ATTACK, norm=norm), x, y, eps)
    assert not beaten[distance > eps].any()
    assert beaten[distance < 0.9 * eps].all() and 5 < beaten.sum() < 35


def test_a_multiplier_for_each_bound_finds_the_constrained_minimum():
    """min (a − 1)² + (b − 1)² with a ≤ 0.5 and b ≤ 2: the first bound holds the point, the second does nothing."""
    ended = torch.zeros(1, 2)

    def problem(point: Tensor, rows: Tensor) -> ProblemValues:
        excess = torch.stack([point[:, 0] - 0.5, point[:, 1] - 2.0], dim=1)
        return ProblemValues((point - 1).square().sum(1), excess, torch.zeros(1, dtype=torch.bool))

    def callback(point: Tensor, rows: Tensor, values: ProblemValues, step: int) -> Tensor:
        ended[rows] = point
        return torch.zeros(1, dtype=torch.bool)

    descend(problem, torch.zeros(1, 2), callback, Descent(2000, rate=0.01, ascent=0.05))
    assert torch.allclose(ended, torch.tensor([[0.5, 1.0]]), atol=0.02)


def test_passes_are_counted_and_an_output_is_the_same_alone():
    x, y = TWO.images(24)
    attack = replace(ATTACK, steps=20, targets=2)
    target = Target(TWO, 24)
    whole = attack.run(target, x, y, 0.02, 0)
    assert target.forwards.tolist() == [43] * 24 and target.backwards.tolist() == [42] * 24
    assert attack.passes() == (43, 42)
    assert torch.equal(attack.run(Target(TWO, 1), x[5:6], y[5:6], 0.02, 0)[0], whole[5])


def test_what_rejects_nothing_is_skipped_with_the_reason():
    assert ATTACK.unsuited(Linear(2)) and ATTACK.unsuited(TWO) is None
    with pytest.raises(ValueError, match="part"):
        DetectorLagrangian(part="classifier")
