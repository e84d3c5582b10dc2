"""Models that a program hands over as objects: what they say of themselves, where they run, and how they are copied."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import manifold_bench as mb

ATTACK = """
from dataclasses import dataclass
from manifold_bench.attacks.base import Attack
from manifold_bench.attacks.gradient import PGD

@dataclass(frozen=True, kw_only=True)
class Own(Attack):
    knowledge = "white-box"

    def passes(self):
        return 100, 100

    def run(self, target, x, y, eps, seed):
        WHAT
"""


@pytest.fixture
def few(interior) -> tuple[Tensor, Tensor]:
    return interior[0][:12], interior[1][:12]


class Declaring(nn.Module):
    """A model that says itself that its last output is a reject score."""

    rejects = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images):
        logits = self.model(images)
        return torch.cat([logits, logits.amax(1, keepdim=True) + images.mean((1, 2, 3))[:, None] - 0.5], dim=1)


def test_a_model_may_say_itself_that_it_rejects(linear, few):
    model = Declaring(linear)
    found = mb.evaluate(model, few, attacks=["noise"], eps=0.1).records
    clean = found[found["kind"] == "clean"].sort_values("sample")
    assert clean["clean_rejected"].tolist() == (few[0].mean((1, 2, 3)) > 0.5).tolist()
    assert mb.as_defense(model, (1, 8, 8), 10).rejects
    del Declaring.rejects
    try:
        with pytest.raises(mb.InputError, match=r"rejects=True, or give the model the attribute.*classes=11"):
            mb.evaluate(model, "digits", n=8, attacks=["noise"], eps=0.1)
    finally:
        Declaring.rejects = True


@pytest.mark.parametrize("data", ["digits", "handed over"])
def test_what_is_handed_over_stays_in_this_process(data, linear, interior):
    model = linear if data == "digits" else "undefended"
    with pytest.raises(mb.InputError, match="randomized: Model has to say it itself"):
        mb.evaluate(mb.as_defense(linear, (1, 8, 8), 10), interior, attacks=["noise"], eps=0.1, randomized=True)
    with pytest.raises(mb.InputError, match=r"workers: .* leave it out"):
        mb.evaluate(model, data if data == "digits" else interior, attacks=["noise"], eps=0.1, workers=2)
    for workers in (2, "1", np.int64(1), torch.tensor(1)):
        with pytest.raises(mb.InputError, match="workers: models"):
            mb.run("smoke", defenses={"mine": linear}, n=4, workers=workers)
    found = mb.evaluate(linear, interior, attacks=["noise"], eps=0.1, workers=None, quiet=None)
    assert set(found.records["status"]) == {"ok"}


def test_models_with_computed_or_frozen_weights_are_copied_too(linear, few):
    pruned = copy.deepcopy(linear)
    prune.l1_unstructured(pruned[1], "weight", amount=0.3)
    pruned(few[0])  # keeps a weight that is computed from others
    defense = mb.as_defense(pruned, (1, 8, 8), 10)
    defense(few[0])
    assert set(mb.evaluate(defense, few, attacks=["fgsm"], eps=0.1).records["status"]) == {"ok"}
    frozen = torch.jit.freeze(torch.jit.script(copy.deepcopy(linear).eval()))
    for model in (pruned, frozen):
        found = mb.evaluate(model, few, attacks=["fgsm"], eps=0.1).records
        answers = model(few[0]).argmax(1).tolist()
        clean = found[found["kind"] == "clean"].sort_values("sample")
        assert set(found["status"]) == {"ok"} and clean["clean_label"].tolist() == answers


def test_a_model_in_single_precision_needs_no_default(linear, interior):
    torch.set_default_dtype(torch.float64)
    try:
        assert mb.as_defense(linear, (1, 8, 8), 10)(interior[0]).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_model_that_differentiates_is_told_how():
    class Purifying(nn.Module):
        def forward(self, images):
            moved = images.clone().requires_grad_()
            return images.flatten(1)[:, :10] - torch.autograd.grad((moved**2).sum(), moved)[0].flatten(1)[:, :10]

    with pytest.raises(mb.InputError, match=r"torch\.enable_grad"):
        mb.as_defense(Purifying(), (1, 8, 8), 10)


def test_a_path_that_no_system_takes_is_an_input_error():
    with pytest.raises(mb.InputError, match="too long"):
        mb.load("x" * 300)


class Unsteady(nn.Module):
    """Answers at random, or by the other images of the batch."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, images):
        if self.how == "at random":
            return torch.rand(len(images), 10)
        return images.flatten(1)[:, :10] - images.flatten(1)[:, :10].mean(dim=0)


ATTACKS = {
    "changes the weights": "for p in target.defense.parameters(): p.data.zero_()\n        return x",
    "returns an array": "return x.numpy()",
    "returns another shape": "return x[1:]",
}


@pytest.mark.parametrize("does", ATTACKS)
def test_an_attack_of_a_user_is_checked_as_in_a_run(does, linear, interior, tmp_path, monkeypatch):
    file = f"{does.replace(' ', '_')}.py"  # a process imports each module once
    (tmp_path / file).write_text(ATTACK.replace("WHAT", ATTACKS[does]))
    monkeypatch.chdir(tmp_path)
    said = {"changes the weights": "changed the weights", "returns an array": "ndarray"}.get(does, r"shape \(31,")
    with pytest.raises(mb.InputError, match=said):
        mb.attack(f"{file}:Own", linear, interior, eps=0.1)
    assert linear[1].weight.abs().sum() > 0


def test_the_best_point_that_one_attack_met_counts(linear, interior, tmp_path, monkeypatch):
    (tmp_path / "forgets.py").write_text(ATTACK.replace("WHAT", "PGD().run(target, x, y, eps, seed)\n        return x"))
    monkeypatch.chdir(tmp_path)
    found = mb.attack("forgets.py:Own", linear, interior, eps=0.1)
    assert found.success.tolist() == mb.attack("pgd", linear, interior, eps=0.1).success.tolist()
    assert found.success.sum() > 0 and (linear(found.adversarial).argmax(1) != interior[1])[found.success].all()


@pytest.mark.filterwarnings("ignore:.*stopped trying")
def test_what_an_attack_never_met_is_no_success(linear, interior, tmp_path, monkeypatch):
    """A lucky answer to the clean image is none of an attack's that asks nothing and returns its images as they are."""
    (tmp_path / "idle.py").write_text(ATTACK.replace("WHAT", "return x"))
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)

    def sometimes(images: Tensor) -> Tensor:
        lucky = torch.tensor(random.random(len(images)) < 0.3)
        return torch.where(lucky[:, None], linear(images).flip(1), linear(images))

    model = mb.as_defense(sometimes, (1, 8, 8), 10, randomized=True)
    shares = [mb.attack("idle.py:Own", model, interior, eps=0.1).success.float().mean() for _ in range(20)]
    assert 0.2 < torch.stack(shares).mean() < 0.4  # of one draw, not of two


def test_one_attack_that_stopped_trying_warns(linear, interior):
    def flat(images: Tensor) -> Tensor:
        return linear(images).detach() + 0 * images.sum()

    with pytest.warns(UserWarning, match="flat: the attack stopped trying on .* the gradient was exactly zero"):
        mb.attack("pgd", flat, interior, eps=0.1)


@pytest.mark.parametrize(("how", "said"), [("at random", "randomized is False"), ("by the batch", "on the batch")])
def test_an_attack_on_a_model_that_answers_otherwise_each_time_warns(how, said, linear, interior):
    with pytest.warns(UserWarning, match=f"Unsteady: .*{said}"):
        mb.attack("noise", Unsteady(how), interior, eps=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mb.attack("noise", linear, interior, eps=0.1)
        mb.attack("noise", mb.as_defense(Unsteady("at random"), (1, 8, 8), 10, randomized=True), interior, eps=0.1)
