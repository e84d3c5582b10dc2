"""Classes, functions and objects where a name is needed, or a model: one line says what to write instead."""

from __future__ import annotations

import foolbox
import pytest
import torch
from art.attacks.evasion import FastGradientMethod
from torch import Tensor, nn

import manifold_bench as mb
from manifold_bench.attacks.base import Attack
from manifold_bench.attacks.gradient import PGD
from manifold_bench.defenses.undefended import Undefended

DATA = (torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(4))


def linear(x: Tensor) -> Tensor:
    return x.flatten(1)[:, :10]


def attacking(model: nn.Module, x: Tensor, y: Tensor, eps: float = 0.1) -> Tensor:
    return x


class Own(Attack):
    """An attack in a module."""


class Plain:
    """No attack, and no model."""


class InNotebook(Attack):
    """An attack of a notebook."""

    __module__ = "__main__"


NAMES: dict[str, tuple[object, str]] = {
    "class": (PGD, '"pgd"'),
    "object": (PGD(), '"pgd"'),
    "class of a module": (Own, f'"{__name__}:Own"'),
    "class that is no attack": (Plain, f'"{__name__}:Plain"'),
    "class of a notebook": (InNotebook, '"my_file.py:InNotebook"'),
    "function": (attacking, "manifold_bench.attacks.base.Attack"),
    "class of ART": (FastGradientMethod, '"art:FastGradientMethod"'),
    "object of Foolbox": (foolbox.attacks.LinfPGD(), '"foolbox:LinfProjectedGradientDescentAttack"'),
}


@pytest.mark.parametrize("case", NAMES)
def test_an_attack_that_is_no_name_is_answered_with_its_name(case):
    given, name = NAMES[case]
    for call in (
        lambda: mb.evaluate(linear, DATA, attacks=given, eps=0.1),
        lambda: mb.evaluate(linear, DATA, attacks=["pgd", given], eps=0.1),
        lambda: mb.evaluate(linear, DATA, attacks=[{"name": given, "steps": 3}], eps=0.1),
        lambda: mb.attack(given, linear, DATA, eps=0.1),
        lambda: mb.run("smoke", attack=given, dry_run=True),
        lambda: mb.run("smoke", attack=["pgd", given], dry_run=True),
    ):
        with pytest.raises(mb.InputError) as caught:
            call()
        assert name in str(caught.value) and "\n" not in str(caught.value) and " at 0x" not in str(caught.value)


MODELS: dict[str, tuple[object, str]] = {
    "attack": (PGD, "attacks"),
    "object of an attack": (PGD(), "attacks"),
    "defense that is trained": (Undefended, '"undefended"'),
    "function of more": (attacking, "attacking takes 3 arguments"),
}


@pytest.mark.parametrize("case", MODELS)
def test_what_is_no_model_is_answered_with_what_to_give(case):
    given, meant = MODELS[case]
    for call in (
        lambda: mb.evaluate(given, DATA, attacks=["noise"], eps=0.1),
        lambda: mb.run("smoke", defenses={"mine": given}, dry_run=True),
        lambda: mb.run("smoke", defenses={"mine": {"model": given}}, dry_run=True),
        lambda: mb.attack("noise", given, DATA, eps=0.1),
        lambda: mb.as_defense(given, (1, 8, 8), 10),
    ):
        with pytest.raises(mb.InputError) as caught:
            call()
        assert meant in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("given", [linear, nn.Flatten(), nn.Flatten, Undefended, {"model": linear}])
def test_a_model_in_place_of_a_defenses_name_is_answered_with_the_argument_for_models(given):
    for defense in (given, [given]):
        with pytest.raises(mb.InputError, match=r"^defense: .*defenses=\{"):
            mb.run("smoke", defense=defense, dry_run=True)
