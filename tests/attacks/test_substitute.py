"""A model trained on a defense's answers: what it costs, what it sees, and that it transfers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from toys import Linear, near_the_middle

from manifold_bench.attacks.contract import Verdict
from manifold_bench.attacks.substitute import Substitute
from manifold_bench.attacks.target import Attacker, Target
from manifold_bench.attacks.threat import inside

OWN = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(8))
X = near_the_middle(8)
SMALL = Substitute(images=10, rounds=3, epochs=4, rate=1e-2, width=8, norm="l2")


class Silent(Linear):
    """Says its labels, and nothing else; doesn't answer some images."""

    def __init__(self, rejects: bool = False, all_of_them: bool = False) -> None:
        super().__init__(2)
        self.refuses, self.all_of_them = rejects, all_of_them
        self.shown: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("the attacker sees no logits")

    def verdict(self, x: Tensor) -> Verdict:
        self.shown.append(x)
        rejected = x[:, 0, 0, 0] > 0.5 if self.refuses else torch.zeros(len(x), dtype=torch.bool)
        return Verdict(self.answer(x).argmax(1), rejected | self.all_of_them)


def target(defense: Linear, n: int = 8) -> Target:
    return Target(defense, n, Attacker(held_out=lambda: (OWN, torch.full((40,), -1))))


@pytest.mark.parametrize("method", ["fgsm", "pgd"])
def test_every_label_asked_for_is_counted_once_for_all_strengths(method):
    defense = Silent()
    attack = Substitute(images=10, rounds=3, epochs=1, width=4, norm="l2", method=method, steps=2)
    attacked = target(defense)
    outputs = [attack.run(attacked, X, torch.zeros(8, dtype=torch.long), eps, 0) for eps in (0.1, 0.5)]
    assert attacked.forwards.tolist() == [40 / 8] * 8 and attacked.backwards.tolist() == [0] * 8
    for out, eps in zip(outputs, (0.1, 0.5), strict=True):
        assert inside(out, X, "l2", eps).all() and not torch.equal(out, X)
    attack.run(attacked, X, torch.zeros(8, dtype=torch.long), 0.1, 1)
    assert attacked.forwards.tolist() == [80 / 8] * 8, "another seed has a substitute of its own"


def test_what_is_rejected_is_not_learnt_from():
    defense = Silent(rejects=True)
    attacked = target(defense)
    SMALL.substitute(attacked, 0)
    first, second, third = (len(x) for x in defense.shown)
    kept = int((defense.shown[0][:10, 0, 0, 0] <= 0.5).sum())
    assert first == 16 and 0 < kept < 10, "whole blocks"
    assert attacked.forwards[0] * 8 < 40 and second <= 16 and third <= 24
    with pytest.raises(ValueError, match="rejects all 10 images"):
        SMALL.substitute(target(Silent(all_of_them=True)), 0)


def test_it_transfers_and_is_the_same_alone_and_in_a_batch():
    defense = Silent()
    attack = Substitute(images=40, rounds=3, epochs=20, rate=1e-2, width=8, norm="l2")
    y = defense.verdict(X).labels
    eps = 3 * float(defense.distance(X, y, "l2").max())
    out = attack.run(target(defense), X, y, eps, 0)
    assert defense.verdict(out).wrong(y).float().mean() >= 0.75
    alone = attack.run(target(Silent(), 1), X[3:4], y[3:4], eps, 0)
    assert torch.equal(alone[0], out[3])
