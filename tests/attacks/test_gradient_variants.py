"""BIM, RAND+FGSM, and gradients averaged over neighbours: their closed forms, and what they are settings of."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from linear import check_pgd
from torch import Tensor
from toys import CNN, Linear, beaten, near_the_middle

from manifold_bench.attacks.from_art import ArtAttack
from manifold_bench.attacks.gradient import BIM, FGSM, PGD, RandFGSM
from manifold_bench.attacks.target import Target
from manifold_bench.attacks.threat import flat_norm, inside


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_rand_fgsm_takes_a_random_step_first_and_stays_in_the_ball(norm):
    digits_cnn = CNN()
    x = 0.4 + 0.2 * torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    y = digits_cnn(x).argmax(1)
    plain, random, again = (
        FGSM(norm=norm, random=step).run(Target(digits_cnn, 16), x, y, 0.2, 0) for step in (0.0, 0.05, 0.05)
    )
    assert torch.equal(random, again) and not torch.equal(random, plain)
    assert inside(random, x, norm, 0.2).all()
    with pytest.raises(ValueError, match=r"leaves nothing of ε = 0\.2"):
        FGSM(norm=norm, random=0.5).run(Target(digits_cnn, 16), x, y, 0.2, 0)
    half = RandFGSM(norm=norm, random=0.5).run(Target(digits_cnn, 16), x, y, 0.2, 0)
    size = flat_norm(half - x, norm)
    assert (size <= 0.2 + 1e-6).all() and not torch.equal(half, random)  # a random step of ε/2 at the most
    alone = FGSM(norm=norm, random=0.05).run(Target(digits_cnn, 1), x[3:4], y[3:4], 0.2, 0)
    assert torch.equal(alone[0], random[3])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_rand_fgsm_falls_where_what_its_random_step_wastes_leaves_enough(norm):
    """Away from the boundary the random step wastes at most α, and the step after it has ε − α: ε − 2α is certain."""
    model, x = Linear(2), near_the_middle(12)
    y = model.verdict(x).labels
    distance = model.distance(x, y, norm)
    for i, d in enumerate(distance.tolist()):
        one, label = x[i : i + 1], y[i : i + 1]
        for eps, falls in ((0.99 * d, False), (1.01 * d + 2 * 0.01, True)):
            out = RandFGSM(norm=norm, loss="margin", random=0.01).run(Target(model, 1), one, label, eps, seed=0)
            assert inside(out, one, norm, eps).all()
            assert beaten(model, out, label) == [falls]


def test_names_of_their_own_are_settings_of_fgsm_and_pgd():
    model, x = CNN(), torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = model.verdict(x).labels
    for one, other in ((RandFGSM(), FGSM(random=0.05)), (BIM(), PGD(steps=10, random_start=False))):
        a, b = (attack.run(Target(model, 8), x, y, 0.1, 0) for attack in (one, other))
        assert torch.equal(a, b) and one.passes() == other.passes()


def test_bim_is_arts_bim(digits, digits_cnn, monkeypatch):
    x, y = digits.test.images[:128], digits.test.labels[:128]
    parameters = {"max_iter": 5, "eps_step": 0.01, "batch_size": 128}
    theirs = ArtAttack(attack="BasicIterativeMethod", parameters=parameters)
    check_pgd(digits_cnn, x, y, theirs, monkeypatch, BIM(steps=5, step_size=0.01, loss="cross-entropy"))


class Jagged(Linear):
    """A linear model with a fine sawtooth in every logit: boundaries hardly move, gradients point anywhere."""

    def answer(self, x: Tensor) -> Tensor:
        return super().answer(x + 0.002 * (3000 * x).sin())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_neighbours_smooth_a_shattered_gradient(norm):
    """Where gradients at the points alone lose their way, their means over neighbours go to the closed form."""
    model, x = Jagged(2), near_the_middle(12)
    y = model.verdict(x).labels
    eps = float(1.15 * Linear(2).distance(x, y, norm).max())
    alone = PGD(norm=norm, steps=20, loss="margin", random_start=False)
    target = Target(model, 12)
    found = replace(alone, neighbours=24, radius=0.02 if norm == "linf" else 0.08).run(target, x, y, eps, 0)
    assert all(beaten(model, found, y)) and inside(found, x, norm, eps).all()
    assert not all(beaten(model, alone.run(Target(model, 12), x, y, eps, 0), y))


def test_neighbours_cost_their_passes_and_depend_on_the_input_alone():
    model, x = CNN(), torch.rand(11, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = model.verdict(x).labels
    attack, target = PGD(steps=4, restarts=2, neighbours=3), Target(model, 11)
    together = attack.run(target, x, y, 1e-4, 5)
    assert (target.forwards.tolist(), target.backwards.tolist()) == ([2 * (4 * 4 + 1)] * 11, [2 * 4 * 4] * 11)
    assert attack.passes() == (34, 32)
    assert torch.equal(attack.run(Target(model, 3), x[4:7], y[4:7], 1e-4, 5), together[4:7])
