"""Arguments of the Python interface: what cannot be used is refused in one line, and numbers may be any library's."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import manifold_bench as mb

REFUSED: dict[str, tuple[dict, str]] = {
    "attacks that are none": ({"attacks": None}, "attacks"),
    "a number as an attack": ({"attacks": [3]}, "attacks"),
    "an object as a parameter": ({"attacks": [{"name": "pgd", "steps": object()}]}, "object"),
    "no draws": ({"draws": 0, "randomized": True}, "draws"),
    "one number to normalize with": ({"normalize": 0.5}, "normalize"),
    "three numbers to normalize with": ({"normalize": (0.5, 0.5, 0.5)}, "normalize"),
    "means of two channels": ({"normalize": ((0.1, 0.2), 0.5)}, "normalize"),
    "a deviation of 0": ({"normalize": (0.5, torch.tensor(0.0))}, "normalize"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_arguments_that_cannot_be_used_are_refused_in_one_line(linear, interior, case):
    given, named = REFUSED[case]
    with pytest.raises(mb.InputError) as caught:
        mb.evaluate(linear, interior, **{"attacks": ["noise"], "eps": 0.1} | given)
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_parameters_may_be_numbers_of_any_library(linear, interior):
    attacks = [{"name": "pgd", "steps": np.int64(3), "step_size": torch.tensor(0.125)}]
    usage = {"normalize": (torch.tensor([0.5]), np.float32(0.25)), "attacks": attacks, "eps": 0.1}
    plain = {"normalize": (0.5, 0.25), "attacks": [{"name": "pgd", "steps": 3, "step_size": 0.125}], "eps": 0.1}
    found, same = mb.evaluate(linear, interior, **usage), mb.evaluate(linear, interior, **plain)
    assert found.table["robust"].tolist() == same.table["robust"].tolist()


def test_labels_beyond_the_models_classes_are_refused(interior):
    three = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(mb.InputError, match="has 3 classes"):
        mb.evaluate(three, (interior[0], torch.arange(32) % 4), attacks=["noise"], eps=0.1)


NO_SIZES = [None, [], {}, True, [0.1, True], [None], float("nan"), [0.1, float("inf")], object()]


@pytest.mark.parametrize("eps", [*NO_SIZES, 8, ["8"], np.array([0.1, 4])])
def test_what_is_no_size_of_a_perturbation_is_refused(linear, interior, eps):
    for call in (mb.evaluate, partial(mb.attack, "noise")):
        with pytest.raises(mb.InputError, match="eps"):
            call(linear, interior, eps=eps)


def test_a_missing_size_is_named():
    with pytest.raises(mb.InputError, match=r"eps: .*8/255"):
        mb.evaluate("undefended", "digits")


def test_a_size_larger_than_the_box_is_refused(linear, interior):
    for call in (mb.evaluate, partial(mb.attack, "fgsm")):
        with pytest.raises(mb.InputError, match=r"9/255"):
            call(linear, interior, norm="l2", eps=9)


@pytest.mark.parametrize("eps", [np.float32(0.125), np.float64(0.125), torch.tensor(0.125), np.array([0.125]), "1/8"])
def test_a_size_may_be_a_number_of_any_library(linear, interior, eps):
    result = mb.evaluate(linear, interior, attacks=["noise"], eps=eps)
    assert list(result.table["eps"]) == [0.125]
