"""Noise: the attack that must not work, except where anything would."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from manifold_bench.attacks.contract import Verdict
from manifold_bench.attacks.noise import RandomNoise
from manifold_bench.attacks.target import Attacker, BudgetSpent, Target
from manifold_bench.attacks.threat import NORMS, UNBOUNDED, inside, random_in_ball


class Threshold(nn.Module):
    """Class 1 where the mean of the image [N,1,2,2] exceeds `at`; rejects where it exceeds `reject`."""

    num_classes = 2
    rejects = True
    randomized = False
    gradient_modes = ("default",)
    classifier = None

    def __init__(self, at: float, reject: float = 2.0) -> None:
        super().__init__()
        self.at, self.reject = at, reject

    def verdict(self, x: Tensor) -> Verdict:
        mean = x.mean((1, 2, 3))
        return Verdict((mean > self.at).long(), mean > self.reject)


X = torch.rand(6, 1, 2, 2, generator=torch.Generator().manual_seed(0))
ZEROS = torch.zeros(6, dtype=torch.long)


@pytest.mark.parametrize("norm", NORMS)
def test_noise_stays_in_its_ball_and_depends_on_no_batch(norm):
    eps = 2.0 if norm == "l0" else 0.3
    attack = RandomNoise(norm=norm, draws=4)
    out = attack.run(Target(Threshold(0.9), 6), X, ZEROS, eps, 5)
    assert inside(out, X, norm, eps).all()
    for i in (0, 3):
        alone = attack.run(Target(Threshold(0.9), 1), X[i : i + 1], ZEROS[:1], eps, 5)
        assert torch.equal(alone[0], out[i])


def test_gaussian_noise_is_where_any_image_is_allowed_and_has_its_moments():
    x = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for norm in UNBOUNDED:
        out = RandomNoise(norm=norm, draws=1, distribution="gaussian").run(
            Target(Threshold(2.0), 40), x, torch.full((40,), -1), torch.inf, 5
        )
        assert inside(out, x, norm, torch.inf).all()
        assert out.mean().item() == pytest.approx(0.5, abs=0.02)
        # 0.25, less the tails beyond two standard deviations: E[min(z², 4)] = 0.92
        assert out.std().item() == pytest.approx(0.25 * 0.92**0.5, abs=0.02)
    for norm in set(NORMS) - set(UNBOUNDED):
        with pytest.raises(ValueError, match="distribution: 'gaussian' is for"):
            RandomNoise(norm=norm, distribution="gaussian")


def test_noise_without_a_label_wins_where_it_is_accepted():
    target, labels = Target(Threshold(at=2.0, reject=0.5), 6), torch.full((6,), -1)
    out = RandomNoise(norm="fooling", draws=50).run(target, X, labels, torch.inf, 0)
    assert not target.defense.verdict(out).rejected.any()


def test_every_draw_is_asked_for_once_until_one_succeeds():
    never, always = Target(Threshold(2.0), 6), Target(Threshold(-1.0), 6)
    RandomNoise(draws=7).run(never, X, ZEROS, 0.1, 0)
    assert never.forwards.tolist() == [6] * 6  # the last one is the judge's to ask for
    RandomNoise(draws=7).run(always, X, ZEROS, 0.1, 0)
    assert always.forwards.tolist() == [1] * 6
    assert not never.backwards.any() and RandomNoise(draws=7).passes() == (6, 0)


def test_the_first_success_is_what_comes_back():
    defense, attack = Threshold(0.55), RandomNoise(draws=50)
    x = torch.full((6, 1, 2, 2), 0.5) + 0.01 * X
    target = Target(defense, 6)
    out = attack.run(target, x, ZEROS, 0.3, 0)
    assert defense.verdict(out).wrong(ZEROS).all()
    for i, used in enumerate(target.forwards.int().tolist()):
        draws = torch.cat([random_in_ball(x[i : i + 1], "linf", 0.3, draw) for draw in range(used)])
        assert defense.verdict(draws).wrong(ZEROS[:1]).tolist() == [False] * (used - 1) + [True]
        assert torch.equal(draws[-1], out[i])


def test_a_rejected_draw_is_no_success():
    target = Target(Threshold(at=-1.0, reject=-1.0), 6)
    RandomNoise(draws=3).run(target, X, ZEROS, 0.3, 0)
    assert target.forwards.tolist() == [2] * 6


def test_noise_knows_only_decisions_and_keeps_to_its_budget():
    assert RandomNoise().knowledge == "decision"
    with pytest.raises(BudgetSpent):
        RandomNoise(draws=6).run(Target(Threshold(2.0), 6, Attacker(max_passes=4)), X, ZEROS, 0.3, 0)
