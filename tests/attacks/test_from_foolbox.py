from __future__ import annotations

import pytest
import torch
from linear import check_distances, check_pgd, check_seed, interior_inputs, l2
from refusals import check_refusal, without
from rejecting import BAND, Band, images_below
from toys import Linear, Parity, near_the_middle

from manifold_bench.attacks.contract import Verdict
from manifold_bench.attacks.from_art import ArtAttack
from manifold_bench.attacks.from_foolbox import FoolboxAttack, foolbox_model, starting_points
from manifold_bench.attacks.target import Target
from manifold_bench.attacks.threat import flat_norm, inside

CARLINI = {"steps": 200, "binary_search_steps": 6, "stepsize": 0.01, "initial_const": 0.1}


@pytest.mark.parametrize(
    ("attack", "parameters", "factor"),
    [
        ("L2CarliniWagnerAttack", CARLINI, 1.05),
        ("L2DeepFoolAttack", {}, 1.05),
        ("BoundaryAttack", {"steps": 1500}, 1.3),  # sees decisions only
    ],
)
def test_linear_model_distance_is_the_closed_form(linear_model, attack, parameters, factor):
    check_distances(linear_model, FoolboxAttack(attack=attack, norm="l2", parameters=parameters), factor)


@pytest.mark.parametrize(
    ("attack", "norm", "parameters"),
    [
        ("BoundaryAttack", "l2", {"steps": 30}),
        ("HopSkipJumpAttack", "l2", {"steps": 2}),
        ("LinfPGD", "linf", {"steps": 2, "abs_stepsize": 0.01}),
    ],
)
def test_the_seed_decides(digits, digits_cnn, attack, norm, parameters):
    adapter = FoolboxAttack(attack=attack, norm=norm, parameters=parameters)
    check_seed(adapter, digits_cnn, digits.test.images[:4], digits.test.labels[:4])


@pytest.mark.parametrize("classes", [2, 10])
def test_pgd_is_foolboxs_pgd(digits, digits_cnn, classes, monkeypatch):
    x, y = digits.test.images[:128], digits.test.labels[:128] % classes
    defense = {2: Parity(digits_cnn), 10: digits_cnn}[classes]
    theirs = FoolboxAttack(attack="LinfPGD", parameters={"steps": 5, "abs_stepsize": 0.01, "random_start": False})
    check_pgd(defense, x, y, theirs, monkeypatch)


def test_the_step_follows_eps(linear_model):
    """Three steps of 2.5 ε / 3 reach the edge of the ball; the library's own relative step would not."""
    x, y, _ = interior_inputs(linear_model, 4)
    attack = FoolboxAttack(attack="LinfPGD", parameters={"steps": 3, "random_start": False})
    found = attack.run(Target(linear_model, 4), x, y, 0.001, seed=0)
    assert torch.allclose((found - x).abs().flatten(1).amax(1), torch.tensor(0.001), atol=1e-6)


@pytest.mark.parametrize(
    ("attack", "parameters"),
    [
        ("L2CarliniWagnerAttack", CARLINI | {"stepsize": 0.05}),
        ("L2DeepFoolAttack", {}),
        ("BoundaryAttack", {"steps": 500}),
    ],
)
def test_rejection_is_not_success(attack, parameters):
    import foolbox

    x, y = images_below(4)
    naive = getattr(foolbox.attacks, attack)(**parameters)
    start = {"starting_points": torch.full_like(x, 0.6)} if attack == "BoundaryAttack" else {}
    _, reached, _ = naive(foolbox_model(Band()), x, y, epsilons=None, **start)
    assert Band().verdict(reached).rejected.all()

    adapter = FoolboxAttack(attack=attack, norm="l2", parameters=parameters)
    found = adapter.run(Target(Band(), 4), x, y, 0.0, seed=0)
    assert Band().verdict(found).wrong(y).all()
    assert (l2(found, x) <= 1.5 * (BAND[1] - x[:, 0, 0, 0])).all()


def test_pgd_climbs_over_rejection():
    """Within ε = .55 every input can reach class 1, across the band."""
    x, y = images_below(4)
    attack = FoolboxAttack(attack="LinfPGD", parameters={"steps": 20, "random_start": False})
    found = attack.run(Target(Band(), 4), x, y, 0.55, seed=0)
    assert Band().verdict(found).wrong(y).all()


def test_failed_inputs_come_back_unperturbed(linear_model):
    """Foolbox returns black images there; some of them are even wrong, but nothing that the attack found."""
    x, y, _ = interior_inputs(linear_model, 8)
    hopeless = {"steps": 1, "binary_search_steps": 1, "initial_const": 1e-6}
    found = FoolboxAttack(attack="L2CarliniWagnerAttack", norm="l2", parameters=hopeless).run(
        Target(linear_model, 8), x, y, 0.0, seed=0
    )
    assert torch.equal(found, x)


def test_an_input_without_a_start_does_not_kill_the_batch(linear_model):
    class Partly(type(linear_model)):  # type: ignore[misc]
        """Images with a bright last pixel are class 0 whatever else they are, and so is all noise but theirs."""

        def forward(self, x):
            return super().forward(x) + 100 * (x[:, 0, 1, 1] > 0.7)[:, None] * torch.tensor([1.0, 0, 0])

        def verdict(self, x):
            labels = self(x).argmax(1)
            return Verdict(labels, torch.zeros_like(labels, dtype=torch.bool))

    x, y, _ = interior_inputs(linear_model, 6)
    attack = FoolboxAttack(attack="BoundaryAttack", norm="l2", parameters={"steps": 20})
    found = attack.run(Target(Partly(), 6), x, y, 0.0, seed=0)
    assert Partly().verdict(found).wrong(y).all()

    class Constant(Partly):
        def forward(self, x):
            return torch.tensor([1.0, 0, 0]).expand(len(x), 3) + 0 * x.flatten(1)[:, :1]

    zeros = torch.zeros_like(y)
    assert torch.equal(attack.run(Target(Constant(), 6), x, zeros, 0.0, seed=0), x)


def test_starting_points_are_the_nearest_image_of_another_class(linear_model):
    x, y, _ = interior_inputs(linear_model, 16)
    starts, found = starting_points(linear_model, x, y, x)
    assert found.all()
    assert (linear_model(starts).argmax(1) != y).all()
    distances = torch.cdist(x.flatten(1), x.flatten(1)).masked_fill(y[:, None] == y[None], torch.inf)
    assert (l2(starts, x) <= distances.amin(1) + 1e-6).all()  # noise may be nearer still


def test_the_defense_is_left_as_it_was(digits, digits_cnn):
    x, y = digits.test.images[:8], digits.test.labels[:8]
    target = Target(digits_cnn, 8)
    digits_cnn.zero_grad()
    attack = FoolboxAttack(attack="LinfPGD", parameters={"steps": 4, "random_start": False})
    attack.run(target, x, y, 0.05, seed=0)
    assert all(w.requires_grad and w.grad is None for w in digits_cnn.parameters())
    assert target.backwards.sum() == 4 * digits_cnn.verdict(x).labels.eq(y).sum()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"attack": "L2CarliniWagner", "norm": "l2"}, "did you mean 'L2CarliniWagnerAttack'"),
        ({"attack": "GenAttack"}, "target"),
        ({"attack": "L2PGD", "norm": "linf"}, "'linf' is not supported; allowed: l2"),
        ({"attack": "L1PGD", "norm": "l2"}, "'l2' is not supported; allowed: l1"),
        ({"attack": "LinfPGD", "parameters": {"step": 3}}, "allowed: abs_stepsize, .*steps"),
        ({"attack": "VirtualAdversarialAttack", "norm": "l2"}, "missing parameters: steps"),
    ],
)
def test_what_cannot_work_is_one_clear_error(given, says):
    check_refusal(FoolboxAttack, given, f"foolbox:{given['attack']}", says)


@pytest.mark.parametrize(("size", "norm"), [("L0", "l0"), ("L1", "l1"), ("L2", "l2"), ("Linfinity", "linf")])
def test_a_package_that_is_missing_is_named_with_the_command_that_installs_it(size, norm, monkeypatch):
    without("numba", monkeypatch)
    given = {"attack": f"{size}BrendelBethgeAttack", "norm": norm}
    check_refusal(FoolboxAttack, given, f"foolbox:{given['attack']}", "run `pip install numba`$")


@pytest.mark.parametrize(
    "attack",
    [
        FoolboxAttack(attack="EADAttack", norm="l1", parameters={"steps": 300, "initial_stepsize": 0.02}),
        FoolboxAttack(attack="L1FMNAttack", norm="l1"),
        ArtAttack(attack="ElasticNet", norm="l1", parameters={"max_iter": 100, "decision_rule": "L1"}),
    ],
    ids=["ead", "fmn", "elastic-net"],
)
def test_minimisers_of_l1_are_never_nearer_than_the_closed_form(attack):
    model, x = Linear(2), near_the_middle(6)
    y = model.verdict(x).labels
    found = attack.run(Target(model, 6), x, y, 0.0, seed=0)
    share = flat_norm(found - x, "l1") / model.distance(x, y, "l1")
    assert model.verdict(found).wrong(y).all() and (share >= 0.999).all() and share.median() < 1.5


def test_an_attack_within_an_l1_ball_stays_there():
    model, x = Linear(2), near_the_middle(6)
    y, attack = model.verdict(x).labels, FoolboxAttack(attack="SparseL1DescentAttack", norm="l1")
    eps = 1.5 * float(model.distance(x, y, "l1").max())
    found = attack.run(Target(model, 6), x, y, eps, seed=0)
    assert inside(found, x, "l1", eps).all() and model.verdict(found).wrong(y).all()


def test_knowledge_and_kind():
    assert FoolboxAttack(attack="LinfPGD").knowledge == "white-box"
    assert not FoolboxAttack(attack="LinfPGD").minimal
    boundary = FoolboxAttack(attack="BoundaryAttack", norm="l2")
    assert boundary.minimal and boundary.knowledge == "decision"
    assert FoolboxAttack(attack="InversionAttack", norm="linf").minimal
