"""Gradient attacks: exact on linear models, honest in what they count, the same for an input in any company."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from toys import CNN, Coin, Linear, Pocket, Toy, beaten, near_the_middle

from manifold_bench.attacks.contract import Verdict
from manifold_bench.attacks.gradient import BIM, FGSM, MIM, PGD, RandFGSM
from manifold_bench.attacks.target import Attacker, BudgetSpent, Target
from manifold_bench.attacks.threat import flat_norm, inside, steepest
from manifold_bench.defenses.base import append_reject_score

ATTACKS = {
    "fgsm": FGSM(loss="margin"),
    "rand-fgsm": RandFGSM(loss="margin", random=0.0),
    "bim": BIM(loss="margin"),
    "mim": MIM(loss="margin"),
    "pgd": PGD(steps=40, restarts=2, loss="margin"),
    "pgd-cross-entropy": PGD(steps=20),
}


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ATTACKS)
def test_a_linear_model_falls_exactly_where_eps_exceeds_the_known_distance(name, norm, classes):
    if name == "pgd-cross-entropy" and norm == "l2" and classes > 2:
        pytest.skip("cross-entropy climbs towards all wrong classes at once: the nearest one is not on its way in L2")
    model, x = Linear(classes), near_the_middle(12)
    y = model.verdict(x).labels
    distance = model.distance(x, y, norm)
    attack = replace(ATTACKS[name], norm=norm)
    # from a random start the way to the ball's far pole is a spiral in L2, which 40 steps go almost to the end
    above = 1.1 if norm == "l2" and name.startswith("pgd") else 1.01
    for i, d in enumerate(distance.tolist()):
        one, label = x[i : i + 1], y[i : i + 1]
        for share, falls in ((0.99, False), (above, True)):
            out = attack.run(Target(model, 1), one, label, share * d, seed=0)
            assert inside(out, one, norm, share * d).all()
            assert beaten(model, out, label) == [falls], (i, share)


@pytest.mark.parametrize(("eps", "gradient_step"), [(0.02, 0.01), (0.05, 0.025), (0.3, 0.25)])
def test_the_random_step_of_rand_fgsm_leaves_at_least_half_of_eps(eps, gradient_step):
    """The random step is α, at most ε/2, and the gradient step on a linear model is ε − α in every pixel."""
    model, x = Linear(2), near_the_middle(40)
    y = model.verdict(x).labels
    seen = []

    class Recording(Target):
        def view(self, *given, **named):
            view = super().view(*given, **named)
            ascent = view.ascent
            view.ascent = lambda point, *more: seen.append(point) or ascent(point, *more)
            return view

    out = RandFGSM(loss="margin").run(Recording(model, len(x)), x, y, eps, 0)
    assert torch.allclose(flat_norm(out - seen[0], "linf"), torch.full((40,), gradient_step), atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_what_pgd_leaves_standing_is_what_lies_further_away_than_eps(norm):
    model, x = Linear(3), near_the_middle(40)
    y = model.verdict(x).labels
    distance = model.distance(x, y, norm)
    eps = float(distance.median()) + 1e-4
    out = PGD(norm=norm, loss="margin").run(Target(model, len(x)), x, y, eps, 0)
    clear = (distance / eps - 1).abs() > (0.1 if norm == "l2" else 0.01)
    assert torch.equal(model.verdict(out).wrong(y)[clear], (distance < eps)[clear])
    assert 5 < (distance < eps).sum() < 35


def test_an_input_that_is_wrong_already_costs_one_pass_and_stays_as_it_is():
    model, x = Linear(2), near_the_middle(6)
    y = 1 - model.verdict(x).labels
    target = Target(model, 6)
    out = PGD(steps=9, restarts=3, random_start=False).run(target, x, y, 0.1, 0)
    assert torch.equal(out, x)
    assert target.forwards.tolist() == [1] * 6 and target.backwards.tolist() == [1] * 6


def test_an_unbeaten_input_costs_every_step_of_every_restart():
    model, x = Linear(2), near_the_middle(6)
    y = model.verdict(x).labels
    target, attack = Target(model, 6), PGD(steps=9, restarts=3)
    attack.run(target, x, y, 1e-6, 0)
    assert target.forwards.tolist() == [30] * 6 and target.backwards.tolist() == [27] * 6
    assert attack.passes() == (30, 27)


def test_a_beaten_input_leaves_the_batch_at_once():
    model, x = Linear(2), near_the_middle(24)
    y = model.verdict(x).labels
    eps, steps = 0.02, 10
    target = Target(model, len(x))
    attack = PGD(steps=steps, random_start=False, step_size=eps / steps)
    out = attack.run(target, x, y, eps, 0)
    needed = (model.distance(x, y, "linf") / (eps / steps)).ceil()  # whole steps straight to the boundary
    falls = model.verdict(out).wrong(y)
    assert torch.equal(falls, needed <= steps) and 0 < falls.sum() < 24
    assert torch.equal(target.forwards[falls].int(), needed[falls].int() + 1)
    assert (target.forwards[~falls] == steps + 1).all() and (target.backwards[~falls] == steps).all()
    assert torch.allclose(flat_norm(out - x, "linf")[falls], needed[falls] * eps / steps, atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_targeted_attack_tries_every_wrong_class(norm):
    """One after the other, the nearest wherever among them; exact on a linear model as the untargeted one is."""
    model, x = Linear(4), near_the_middle(12)
    y = model.verdict(x).labels
    distance = model.distance(x, y, norm)
    attack = PGD(norm=norm, steps=20, random_start=False, targeted=True)
    for i, d in enumerate(distance.tolist()):
        one, label = x[i : i + 1], y[i : i + 1]
        for share, falls in ((0.99, False), (1.01, True)):
            target = Target(model, 1)
            out = attack.run(target, one, label, share * d, seed=0)
            assert beaten(model, out, label) == [falls]
            if not falls:
                assert target.forwards.tolist() == [3 * 21] and target.backwards.tolist() == [3 * 20]


def test_cross_entropy_has_no_target():
    with pytest.raises(ValueError, match="cross-entropy"):
        PGD(targeted=True, loss="cross-entropy")


def test_restarts_find_what_one_start_misses_and_stop_when_they_have():
    x = torch.full((16, 1, 2, 2), 0.5) + torch.arange(16.0).view(-1, 1, 1, 1) * 1e-4
    y = torch.zeros(16, dtype=torch.long)
    once, often = (PGD(steps=1, step_size=1e-6, restarts=r) for r in (1, 30))
    target = Target(Pocket(), 16)
    missed = beaten(Pocket(), once.run(Target(Pocket(), 16), x, y, 0.14, 0), y).count(False)
    assert missed
    assert all(beaten(Pocket(), often.run(target, x, y, 0.14, 0), y))
    assert target.forwards.max() < 60
    repeated = PGD(steps=1, step_size=1e-6, restarts=30, random_start=False).run(Target(Pocket(), 16), x, y, 0.14, 0)
    assert not any(beaten(Pocket(), repeated, y))


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", [FGSM(), PGD(steps=8, restarts=2), MIM()], ids=["fgsm", "pgd", "mim"])
def test_results_are_the_same_bits_in_any_company(attack, norm):
    model, attack = CNN(), replace(attack, norm=norm)
    x = torch.rand(37, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = model.verdict(x).labels
    eps = 0.03 if norm == "linf" else 0.2
    target = Target(model, 37)
    together = attack.run(target, x, y, eps, 11)
    assert 0 < model.verdict(together).wrong(y).sum() < 37
    order = torch.randperm(37, generator=torch.Generator().manual_seed(5))
    shuffled = Target(model, 37)
    assert torch.equal(attack.run(shuffled, x[order], y[order], eps, 11), together[order])
    assert torch.equal(shuffled.forwards, target.forwards[order])
    for rows in (slice(0, 1), slice(36, 37), slice(5, 16)):
        alone = attack.run(Target(model, len(x[rows])), x[rows], y[rows], eps, 11)
        assert torch.equal(alone, together[rows])
    assert torch.equal(attack.run(Target(model, 37), x, y, eps, 11), together)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_momentum_is_algorithm_1_of_dong_et_al(norm):
    """Written out, input by input; never beaten, so that no input leaves."""
    model, x = CNN(), torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y, eps = model.verdict(x).labels, 0.0005
    target = Target(model, 5)
    out = MIM(norm=norm, steps=6, decay=0.5, loss="margin").run(target, x, y, eps, 0)
    assert target.forwards.tolist() == [7] * 5 and target.backwards.tolist() == [6] * 5
    for i in range(5):
        point, g = x[i : i + 1], torch.zeros(1, 1, 8, 8)
        seen = []
        for _ in range(7):
            point = point.detach().requires_grad_(True)
            logits, label = model(point)[0], y[i]
            loss = logits[torch.arange(10) != label].amax() - logits[label]
            (gradient,) = torch.autograd.grad(loss, point)
            seen.append((loss.item(), point.detach()))
            g = 0.5 * g + gradient / gradient.abs().sum()
            point = (point + eps / 6 * (g.sign() if norm == "linf" else g / g.norm())).clamp(0, 1)
        best = max(seen, key=lambda pair: pair[0])[1]
        assert torch.allclose(out[i : i + 1], best, atol=1e-7)


def test_another_seed_starts_elsewhere():
    model, x = CNN(), torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = model.verdict(x).labels
    attack = PGD(steps=1, step_size=1e-7)
    first, second = (attack.run(Target(model, 4), x, y, 0.05, seed) for seed in (0, 1))
    assert flat_norm(first - second, "linf").amin() > 0.01


class Wrapped(Toy):
    """Answers the contrary of its classifier, which an oblivious attacker doesn't know."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = Linear(2)

    def answer(self, x: Tensor) -> Tensor:
        return self.classifier(x).flip(1)


def test_an_oblivious_attack_climbs_the_classifier_to_its_end_for_every_input():
    model, x = Wrapped(), near_the_middle(8)
    assert model.classifier is not None
    y = model.classifier.verdict(x).labels
    attack, target = PGD(part="classifier", steps=6), Target(model, 8)
    out = attack.run(target, x, y, 0.3, 0)
    assert all(beaten(model.classifier, out, y)) and not any(beaten(model, out, y))
    assert target.forwards.tolist() == [7] * 8 and target.backwards.tolist() == [6] * 8
    assert attack.knowledge == "oblivious" and PGD().knowledge == "white-box"


def test_pairings_that_make_no_sense_are_named():
    plain = Linear(2)
    assert "classifier" in (PGD(part="classifier").unsuited(plain) or "")
    assert "unrolled" in (PGD(gradient="unrolled").unsuited(plain) or "")
    assert PGD().unsuited(plain) is None
    assert PGD(part="classifier").unsuited(Wrapped()) is None


class Tripwire(Toy):
    """Class 1 where the second pixel exceeds .6; rejects where the first one exceeds .5, which is nearer."""

    rejects = True

    def answer(self, x: Tensor) -> Tensor:
        a, b = x[:, 0, 0, 0], x[:, 0, 0, 1]
        return append_reject_score(torch.stack([torch.zeros_like(b), b - 0.6], dim=1), a - 0.5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_loss_that_knows_of_rejection_gets_past_it_and_one_that_takes_it_for_a_class_does_not(norm):
    x, y = torch.full((3, 1, 2, 2), 0.4), torch.zeros(3, dtype=torch.long)
    eps = 0.3 if norm == "linf" else 0.4
    aware, unaware = (PGD(norm=norm, loss=loss, random_start=False) for loss in ("auto", "cross-entropy"))
    assert beaten(Tripwire(), aware.run(Target(Tripwire(), 3), x, y, eps, 0), y) == [True] * 3
    out = unaware.run(Target(Tripwire(), 3), x, y, eps, 0)
    assert beaten(Tripwire(), out, y) == [False] * 3 and Tripwire().verdict(out).rejected.all()


class Walled(Toy):
    """By the first pixel t: class 0 near .2, class 1 near .8, rejects further than .15 from the centre of its class."""

    rejects = True

    def answer(self, x: Tensor) -> Tensor:
        distance = (x[:, 0, 0, :1] - torch.tensor([0.2, 0.8])).abs()
        return append_reject_score(-distance.square(), distance.amin(1) / 0.15 - 1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_loss_that_minds_rejection_on_arrival_gets_over_the_wall_between_two_classes(norm):
    x, y = torch.full((3, 1, 2, 2), 0.25), torch.zeros(3, dtype=torch.long)
    on_the_way, on_arrival = (PGD(norm=norm, loss=loss, random_start=False) for loss in ("selective-margin", "auto"))
    assert beaten(Walled(), on_the_way.run(Target(Walled(), 3), x, y, 0.6, 0), y) == [False] * 3
    assert beaten(Walled(), on_arrival.run(Target(Walled(), 3), x, y, 0.6, 0), y) == [True] * 3


class Cracked(Linear):
    """A linear model whose gradient is NaN at one pixel for every other input, its logits being right."""

    def answer(self, x: Tensor) -> Tensor:
        cracked = x[:, 0, 3, 3].detach() > 0.5
        zero = torch.where(cracked, x[:, 0, 0, 0] * 0, 1.0).sqrt() - (~cracked).float()  # slope 0 · ∞ where cracked
        return super().answer(x) + zero[:, None]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", [FGSM(), PGD(steps=5)], ids=["fgsm", "pgd"])
def test_a_gradient_that_is_not_finite_is_no_direction(attack, norm):
    model, x = Cracked(2), near_the_middle(12)
    y = model.verdict(x).labels
    attack = replace(attack, norm=norm)
    eps = 0.01 if norm == "linf" else 0.04  # few are beaten, none crosses the crack's edge
    out = attack.run(Target(model, 12), x, y, eps, 0)
    assert inside(out, x, norm, eps).all()
    whole = x[:, 0, 3, 3] <= 0.5
    assert 0 < whole.sum() < 12
    plain = attack.run(Target(Linear(2), 12), x, y, eps, 0)
    assert torch.equal(out[whole], plain[whole])
    _, _, gradient = Target(model, 12).view().ascent(x, lambda z: z[:, 0], torch.arange(12))
    assert gradient.isfinite().all() and (gradient[~whole][:, 0, 0, 0] == 0).all()


class Silent(Toy):
    """Answers NaN."""

    def answer(self, x: Tensor) -> Tensor:
        return torch.full((len(x), 2), torch.nan) * x.flatten(1).sum(1, keepdim=True)


@pytest.mark.parametrize("attack", [PGD(steps=3), FGSM(), MIM()])
def test_an_answer_that_is_not_a_number_fails_the_attack_by_name(attack):
    x, y = near_the_middle(4), torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match="NaN"):
        attack.run(Target(Silent(), 4), x, y, 0.1, 0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    ("gap", "loss"), [(10.0, "auto"), (10.0, "margin"), (40.0, "margin"), pytest.param(40.0, "auto")]
)
def test_a_confident_model_falls_at_the_same_distance(gap, loss, norm):
    """Scaling the logits moves no boundary; the gradient of cross-entropy gets tiny, its direction stays."""
    x = near_the_middle(12)
    y = Linear(2).verdict(x).labels
    logits = Linear(2)(x)
    for i in range(12):
        one, label = x[i : i + 1], y[i : i + 1]
        model = Linear(2, scale=gap / float((logits[i, 0] - logits[i, 1]).abs()))
        eps = 1.01 * float(model.distance(one, label, norm))
        for attack in (FGSM(norm=norm, loss=loss), PGD(norm=norm, random_start=False, loss=loss)):
            out = attack.run(Target(model, 1), one, label, eps, 0)
            assert beaten(model, out, label) == [True], type(attack).__name__


@pytest.mark.parametrize("norm", ["linf", pytest.param("l2")])
def test_steps_are_of_unit_length_and_zero_gradients_go_nowhere(norm):
    gradient = torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    gradient[1] = 0
    gradient[2] *= 1e-25  # as tiny as cross-entropy's get
    step = steepest(gradient, norm)
    assert flat_norm(step, norm).tolist() == pytest.approx([1, 0, 1, 1])
    assert torch.equal(step.sign(), gradient.sign())


@pytest.mark.parametrize("attack", [FGSM(), PGD(steps=3)], ids=["fgsm", "pgd"])
def test_a_budget_is_kept_to(attack):
    model, x = Linear(2), near_the_middle(2)
    y = model.verdict(x).labels
    most = sum(attack.passes())
    target = Target(model, 2, Attacker(max_passes=most))
    attack.run(target, x, y, 1e-6, 0)
    assert (target.forwards + target.backwards).tolist() == [most] * 2
    with pytest.raises(BudgetSpent):
        attack.run(Target(model, 2, Attacker(max_passes=most - 1)), x, y, 1e-6, 0)


class Cheap(Toy):
    """Shows an attacker a cheaper self that is fooled everywhere; the deployed one falls only where it should."""

    gradient_modes = ("identity", "unrolled")

    def __init__(self, honest: bool) -> None:
        super().__init__()
        self.full, self.honest, self.calls = Linear(2), honest, 0

    def forward(self, x: Tensor) -> Tensor:
        return self.full(x)

    def attack_forward(self, x: Tensor, gradient: str, start: Tensor | None, inner_steps: int) -> tuple[Tensor, Tensor]:
        logits = self.full(x)
        return logits if self.honest else -logits, x.new_zeros(len(x), 1, 1)

    def verdict(self, x: Tensor) -> Verdict:
        self.calls += 1
        return self.full.verdict(x)


def test_a_success_on_something_cheaper_is_no_success_until_the_defense_confirms_it():
    model, x = Cheap(honest=False), near_the_middle(5)
    y = model.full.verdict(x).labels
    target = Target(model, 5)
    PGD(steps=12).run(target, x, y, 1e-6, 0)
    assert model.calls == 2  # steps 0 and 10; at the last one the judge asks
    assert target.forwards.tolist() == [13 + 2] * 5 and target.backwards.tolist() == [12] * 5


def test_a_confirmed_success_ends_the_attack_on_that_input():
    model, x = Cheap(honest=True), near_the_middle(5)
    y = model.full.verdict(x).labels
    target = Target(model, 5)
    out = PGD(steps=40).run(target, x, y, 0.4, 0)
    assert all(beaten(model, out, y))
    assert target.forwards.max() <= 11 + 2 and target.backwards.max() <= 11


def test_a_success_on_a_randomized_defense_is_confirmed_again():
    x, y = near_the_middle(4), torch.zeros(4, dtype=torch.long)
    target = Target(Coin(), 4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        PGD(steps=5).run(target, x, y, 0.3, 0)
    assert (target.forwards > target.backwards).all()  # confirmations in addition to the climb
