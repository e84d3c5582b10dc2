from __future__ import annotations

import ast
import inspect
import random
import sys

import numpy as np
import pytest
import torch
from linear import check_distances, check_pgd, check_seed, interior_inputs, l2
from refusals import check_refusal, without
from rejecting import BAND, Band, images_below
from torch import Tensor
from toys import Linear, Parity

from manifold_bench.attacks.from_art import ArtAttack, art_attacks, module_classifier
from manifold_bench.attacks.target import Attacker, BudgetSpent, Target

HOP_SKIP_JUMP = {"max_iter": 15, "init_eval": 50, "max_eval": 200}


@pytest.mark.parametrize(
    ("attack", "parameters", "factor"),
    [
        ("DeepFool", {}, 1.02),
        ("HopSkipJump", HOP_SKIP_JUMP, 1.4),  # sees decisions only
    ],
)
def test_linear_model_distance_is_the_closed_form(linear_model, attack, parameters, factor):
    check_distances(linear_model, ArtAttack(attack=attack, norm="l2", parameters=parameters), factor)


@pytest.mark.parametrize(
    ("attack", "norm", "parameters"),
    [
        ("HopSkipJump", "l2", {"max_iter": 2, "init_eval": 10}),
        ("BoundaryAttack", "l2", {"max_iter": 5}),
        ("SquareAttack", "linf", {"max_iter": 10}),
        ("ProjectedGradientDescent", "linf", {"max_iter": 2, "num_random_init": 1, "eps_step": 0.01}),
    ],
)
def test_the_seed_decides(digits, digits_cnn, attack, norm, parameters):
    adapter = ArtAttack(attack=attack, norm=norm, parameters=parameters)
    check_seed(adapter, digits_cnn, digits.test.images[:4], digits.test.labels[:4])


class Seeding(Linear):
    """Seeds the global random states in its forward; it is deterministic all the same."""

    def answer(self, x: Tensor) -> Tensor:
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        torch.manual_seed(0)
        return super().answer(x)


@pytest.mark.parametrize(
    ("attack", "norm", "parameters"),
    [
        ("SquareAttack", "linf", {"max_iter": 20, "p_init": 0.3}),
        ("BoundaryAttack", "l2", {"max_iter": 3}),
    ],
)
def test_a_defense_that_seeds_the_random_states_is_attacked_as_one_that_does_not(attack, norm, parameters):
    adapter = ArtAttack(attack=attack, norm=norm, parameters=parameters)
    x = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    y = Linear(3).verdict(x).labels
    plain, seeding = (adapter.run(Target(one, 6), x, y, 0.05, seed=3) for one in (Linear(3), Seeding(3)))
    assert torch.equal(plain, seeding) and not torch.equal(plain, x)


def test_decision_based_results_do_not_depend_on_the_batch(linear_model):
    x, y, _ = interior_inputs(linear_model, 4)
    attack = ArtAttack(attack="HopSkipJump", norm="l2", parameters={"max_iter": 2, "init_eval": 10})
    whole = attack.run(Target(linear_model, 4), x, y, 0.0, seed=0)
    assert torch.equal(whole[2:], attack.run(Target(linear_model, 2), x[2:], y[2:], 0.0, seed=0))


@pytest.mark.parametrize("classes", [2, 10])
def test_pgd_is_arts_pgd(digits, digits_cnn, classes, monkeypatch):
    x, y = digits.test.images[:128], digits.test.labels[:128] % classes
    defense = {2: Parity(digits_cnn), 10: digits_cnn}[classes]
    theirs = ArtAttack(
        attack="ProjectedGradientDescentPyTorch", parameters={"max_iter": 5, "eps_step": 0.01, "batch_size": 128}
    )
    check_pgd(defense, x, y, theirs, monkeypatch)


@pytest.mark.parametrize(
    ("attack", "parameters"),
    [("DeepFool", {}), ("HopSkipJump", HOP_SKIP_JUMP), ("BoundaryAttack", {"max_iter": 100})],
)
def test_rejection_is_not_success(attack, parameters):
    x, y = images_below(4)
    naive = naive_result(attack, parameters, x)
    assert Band().verdict(naive).rejected.all()

    found = ArtAttack(attack=attack, norm="l2", parameters=parameters).run(Target(Band(), 4), x, y, 0.0, seed=0)
    assert Band().verdict(found).wrong(y).all()
    assert (l2(found, x) <= 1.3 * (BAND[1] - x[:, 0, 0, 0]) + 0.05).all()


def naive_result(attack: str, parameters: dict, x: torch.Tensor) -> torch.Tensor:
    """That ART attack as a user would run it on all K+1 outputs."""
    import art.attacks.evasion

    cls = getattr(art.attacks.evasion, attack)
    untargeted = {} if attack == "DeepFool" else {"targeted": False}
    np.random.seed(0)  # noqa: NPY002
    classifier = module_classifier(Band(), Band.shape, 3)
    return torch.from_numpy(cls(classifier, verbose=False, **untargeted, **parameters).generate(x.numpy()))


def test_an_input_without_a_start_comes_back_and_the_others_do_not(linear_model):
    class Stubborn(type(linear_model)):  # type: ignore[misc]
        """Answers 0 wherever the first pixel of the second row is less than .9: noise hardly ever is a start."""

        def forward(self, x):
            logits = super().forward(x)
            shut = (x[:, 0, 1, 0] < 0.9)[:, None]
            return torch.where(shut, torch.tensor([5.0, 0, 0]).expand_as(logits), logits)

    model = Stubborn()
    x, _, _ = interior_inputs(linear_model, 2)
    y = torch.tensor([0, 0])
    attack = ArtAttack(attack="HopSkipJump", norm="l2", parameters={"max_iter": 1, "init_eval": 5, "init_size": 10})
    found = torch.cat([attack.run(Target(model, 2), x, y, 0.0, seed) for seed in range(4)])
    wrong = model.verdict(found).wrong(y.repeat(4))
    assert 0 < wrong.sum() < len(wrong)
    assert torch.equal(found[~wrong], x.repeat(4, 1, 1, 1)[~wrong])


def test_what_is_wrong_already_stays_as_it_is(linear_model):
    x, y, _ = interior_inputs(linear_model, 4)
    y = (y + torch.tensor([1, 0, 1, 0])) % 3
    for attack in (ArtAttack(attack="DeepFool", norm="l2"), ArtAttack(attack="FastGradientMethod")):
        found = attack.run(Target(linear_model, 4), x, y, 0.2, seed=0)
        assert torch.equal(found[::2], x[::2])
        assert not torch.isclose(found[1::2], x[1::2]).all()


def test_passes_are_counted_and_capped(linear_model):
    x, y, _ = interior_inputs(linear_model, 8)
    target = Target(linear_model, 8)
    ArtAttack(attack="ProjectedGradientDescent", parameters={"max_iter": 7}).run(target, x, y, 0.01, seed=0)
    assert target.backwards.sum() == 7 * 8
    assert target.forwards.sum() >= 7 * 8
    attack = ArtAttack(attack="HopSkipJump", norm="l2")
    with pytest.raises(BudgetSpent):
        attack.run(Target(linear_model, 8, Attacker(max_passes=20)), x, y, 0.0, seed=0)


def test_the_defense_is_left_as_it_was(digits, digits_cnn):
    x, y = digits.test.images[:8], digits.test.labels[:8]
    digits_cnn.zero_grad()
    ArtAttack(attack="FastGradientMethod").run(Target(digits_cnn, 8), x, y, 0.1, seed=0)
    assert all(w.requires_grad and w.grad is None for w in digits_cnn.parameters())


def test_a_fault_of_the_defense_is_not_swallowed(linear_model):
    class Broken(type(linear_model)):  # type: ignore[misc]
        def forward(self, x):
            if x.min() < 0.2:  # only noise is that dark
                raise RuntimeError("out of order")
            return super().forward(x)

    x, y, _ = interior_inputs(linear_model, 4)
    with pytest.raises(RuntimeError, match="out of order"):
        ArtAttack(attack="HopSkipJump", norm="l2").run(Target(Broken(), 4), x, y, 0.0, seed=0)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"attack": "DeepFol"}, "did you mean 'DeepFool'"),
        ({"attack": "GeoDA"}, "NumPy 2"),
        ({"attack": "DPatch"}, "no such attack"),
        ({"attack": "DeepFool", "norm": "linf"}, "'linf' is not supported; allowed: l2"),
        (
            {"attack": "DeepFool", "norm": "l2", "parameters": {"max_iters": 3}},
            "allowed: batch_size, epsilon, max_iter",
        ),
        ({"attack": "DeepFool", "norm": "l2", "parameters": {"max_iter": -3}}, "iterations"),
        ({"attack": "ProjectedGradientDescent", "parameters": {"eps": 0.1}}, "'eps' cannot be set here"),
        ({"attack": "ProjectedGradientDescent", "norm": "l0"}, "linf or l2 or l1"),
        ({"attack": "HopSkipJump", "norm": "l1"}, "[Nn]orm"),
    ],
)
def test_what_cannot_work_is_one_clear_error(given, says):
    check_refusal(ArtAttack, given, f"art:{given['attack']}", says)


@pytest.mark.parametrize(
    ("given", "package"),
    [
        ({"attack": "PixelAttack", "norm": "l0", "parameters": {"es": 0}}, "cma"),
        ({"attack": "ThresholdAttack"}, "cma"),
        ({"attack": "AutoAttack", "norm": "l2"}, "multiprocess"),
        ({"attack": "BrendelBethgeAttack", "norm": "l2"}, "numba"),
    ],
)
def test_a_package_that_is_missing_is_named_with_the_command_that_installs_it(given, package, monkeypatch):
    without(package, monkeypatch)
    check_refusal(ArtAttack, given, f"art:{given['attack']}", f"run `pip install {package}`$")


def test_no_package_is_asked_for_that_the_parameters_do_not_need(monkeypatch):
    without("cma", monkeypatch)
    assert ArtAttack(attack="PixelAttack", norm="l0").values["es"] == 1  # differential evolution, ART's default there
    assert ArtAttack(attack="ThresholdAttack", parameters={"es": 1}).needs is None


def test_everything_that_art_imports_late_is_known():
    """Packages that the modules of usable classes import inside functions; the frameworks there are alternatives."""
    own = {"art", "tensorflow", "torch"}
    found = {
        (name, package)
        for name, cls in art_attacks().items()
        for package in imported(inspect.getsource(sys.modules[cls.__module__])) - own - required()
    }
    known = {("AutoAttack", "multiprocess"), ("PixelAttack", "cma"), ("ThresholdAttack", "cma")}
    assert {one for one in found if one[0] != "BrendelBethgeAttack"} == known


def imported(source: str) -> set[str]:
    """The top-level packages outside the standard library that a module imports anywhere."""
    nodes = list(ast.walk(ast.parse(source)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names


def required() -> set[str]:
    """The packages that ART requires, and those that this project requires for it."""
    return {"numpy", "packaging", "scipy", "six", "sklearn", "tqdm"}


def test_knowledge_and_kind():
    def known(attack: str, norm: str) -> tuple[str, bool]:
        adapter = ArtAttack(attack=attack, norm=norm)
        return adapter.knowledge, adapter.minimal

    assert known("ProjectedGradientDescent", "linf") == ("white-box", False)
    assert known("DeepFool", "l2") == ("white-box", True)
    assert known("HopSkipJump", "linf") == ("decision", True)
    assert known("SquareAttack", "linf") == ("score", False)
    assert ArtAttack(attack="DeepFool", norm="l2", part="classifier").knowledge == "oblivious"
    assert hash(ArtAttack(attack="DeepFool", norm="l2", parameters={"max_iter": 3}))
