"""The attacks of `mb.evaluate` where none are named: by queries on models that have no gradient in their images."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from art.estimators.classification import BlackBoxClassifier, PyTorchClassifier
from torch import Tensor, nn

import manifold_bench as mb
from manifold_bench.bench.api.usual import gives_gradient, usual_attacks
from manifold_bench.bench.report.steps import USUAL
from manifold_bench.defenses.base import Defense, DefenseSpec
from manifold_bench.defenses.models import class_of

MATRIX = torch.randn(64, 10, generator=torch.Generator().manual_seed(2))
ART = ((1, 8, 8), 10, (0.0, 1.0))
DATA = (torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(2))


def linear(x: Tensor) -> Tensor:
    return x.flatten(1) @ MATRIX


class Linear(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return linear(x)


class Detached(Linear):
    def forward(self, x: Tensor) -> Tensor:
        return linear(x.detach())


class DetachedDefense(Defense):
    family = "none"

    def forward(self, x: Tensor) -> Tensor:
        return linear(x).detach()


class Projecting(DetachedDefense):
    """A defense with a gradient of its own for attacks."""

    @property
    def gradient_modes(self) -> tuple[str, ...]:
        return ("identity",)


def in_numpy(x: Tensor) -> Tensor:
    return torch.tensor(x.numpy().reshape(len(x), -1) @ MATRIX.numpy())


def broken(x: Tensor) -> Tensor:
    raise RuntimeError("no such file")


def predict(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1) @ MATRIX.numpy()


SPEC = DefenseSpec(shape=(1, 8, 8), num_classes=10)
WITHOUT: dict[str, object] = {
    "no_grad": torch.no_grad()(linear),
    "inference_mode": torch.inference_mode()(linear),
    "detach": Detached(),
    "NumPy": in_numpy,
    "ART": BlackBoxClassifier(predict, *ART),
    "Defense": DetachedDefense(SPEC),
}
WITH: dict[str, object] = {
    "function": linear,
    "module": Linear(),
    "frozen": nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).requires_grad_(False),
    "zero gradient": lambda x: linear((7 * x).round()),
    "ART": PyTorchClassifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), nn.CrossEntropyLoss(), *ART[:2]),
    "gradient modes": Projecting(SPEC),
    "no answer": lambda x: [],
    "fails": broken,  # the attacks give the reason
}


@pytest.mark.parametrize("name", WITHOUT)
def test_a_model_without_a_gradient_is_found(name):
    assert not gives_gradient(class_of(WITHOUT[name], name, __name__), (1, 8, 8))


@pytest.mark.parametrize("name", WITH)
def test_a_model_with_a_gradient_is_left_alone(name):
    assert gives_gradient(class_of(WITH[name], name, __name__), (1, 8, 8))


@pytest.mark.parametrize("model", [WITHOUT["detach"], WITHOUT["ART"]])
def test_a_model_without_a_gradient_is_attacked_by_queries_if_no_attacks_are_named(model):
    with pytest.warns(UserWarning, match=f"^{type(model).__name__} has no gradient.*square.*HopSkipJump") as said:
        found = mb.evaluate(model, DATA, eps=0.1)
    assert len(said) == 1 and said[0].filename == __file__
    attacked = found.records[found.records["kind"] == "attack"]
    assert set(attacked["attack"]) == {"square", "art:HopSkipJump(max_iter=10)"}
    assert set(attacked["status"]) == {"ok"}
    assert not found.table["robust"].isna().any()


@pytest.mark.parametrize(("norm", "names"), [("l1", ["square"]), ("l0", ["sparse-rs"]), ("fooling", USUAL)])
def test_other_norms_have_attacks_by_queries_that_exist_in_them(norm, names):
    cls = class_of(Detached(), "detached", __name__)
    with warnings.catch_warnings(record=True):
        assert [one["name"] for one in usual_attacks(cls, "digits", norm)] == names


@pytest.mark.filterwarnings("error::UserWarning")
def test_attacks_that_are_named_are_taken_as_they_are():
    found = mb.evaluate(Detached(), DATA, attacks=["fgsm"], eps=0.1).records
    assert set(found["attack"]) == {"clean", "fgsm"}


@pytest.mark.filterwarnings("error::UserWarning")
def test_a_model_with_a_gradient_gets_the_usual_attacks():
    chosen = usual_attacks(class_of(linear, "linear", __name__), "digits", "linf")
    assert [one["name"] for one in chosen] == USUAL
