"""Gradients that are not the derivatives of a defense's outputs are marked, and those that are have no mark."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import manifold_bench as mb
from manifold_bench.bench.planning.registry import find
from manifold_bench.bench.running.derivatives import gradients_fit
from manifold_bench.defenses.weights import from_zoo

TEST = find("datasets", "digits")().test
FEW = TEST.images[:8]
NETWORK = from_zoo("undefended", "digits").eval()
ROBUST = from_zoo("pgd-training", "digits").eval()

Function = Callable[[Tensor], Tensor]


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return -gradient


class Random(Reversed):
    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return torch.randn_like(gradient)


def straight_through(step: Function) -> Function:
    return lambda x: x + (step(x) - x).detach()


def grey(levels: int, x: Tensor) -> Tensor:
    return straight_through(lambda y: (levels * y).round() / levels)(x)


DECLARED = mb.bpda(lambda x: (255 * x).round() / 255)


def median(x: Tensor) -> Tensor:
    windows = F.unfold(F.pad(x, (1, 1, 1, 1), mode="reflect"), 3)
    return windows.median(1, keepdim=True).values.reshape(x.shape)


def rows_detached(x: Tensor, rows: int) -> Tensor:
    return torch.cat([x[:, :, :rows].detach(), x[:, :, rows:]], 2)


def likeliest_detached(logits: Tensor) -> Tensor:
    return torch.where(logits >= logits.amax(1, keepdim=True), logits.detach(), logits)


def with_reject(x: Tensor, score: Tensor) -> Tensor:
    return torch.cat([NETWORK(x), score[:, None]], 1)


def spread(x: Tensor) -> Tensor:
    return 20 * x.var((1, 2, 3)) - 3


FALSE: dict[str, Function] = {
    "a detached network": lambda x: NETWORK(x).detach() + 0.1 * ROBUST(x),
    "half of the margin detached": lambda x: likeliest_detached(NETWORK(x)),
    "half of the rows detached": lambda x: NETWORK(rows_detached(x, 4)),
    "two of eight rows detached": lambda x: NETWORK(rows_detached(x, 2)),
    "a reversed gradient": lambda x: NETWORK(Reversed.apply(x)),
    "a random gradient": lambda x: NETWORK(Random.apply(x)),
    "straight through a transposition": lambda x: NETWORK(straight_through(lambda y: y.transpose(2, 3))(x)),
    "straight through a median": lambda x: NETWORK(straight_through(median)(x)),
    "a detached network behind all grey levels": lambda x: NETWORK(grey(255, x)).detach() + 0.1 * ROBUST(grey(255, x)),
    "rows detached behind all grey levels": lambda x: NETWORK(rows_detached(grey(255, x), 4)),
    "a reversed gradient behind all grey levels": lambda x: NETWORK(Reversed.apply(grey(255, x))),
    "a detached network in half precision": lambda x: (NETWORK(x).detach() + 0.5 * ROBUST(x)).bfloat16(),
    "a detached network behind a declared step": lambda x: NETWORK(DECLARED(x)).detach() + 0.1 * ROBUST(x),
    "rows detached before a declared step": lambda x: NETWORK(DECLARED(rows_detached(x, 4))),
    "a detached reject score": lambda x: with_reject(x, spread(x).detach()),
}

TRUE: dict[str, Function] = {
    "a network": NETWORK,
    "a trained one": ROBUST,
    "half of each output detached": lambda x: NETWORK(x).detach() / 2 + NETWORK(x) / 2,
    "probabilities": lambda x: (10 * NETWORK(x)).softmax(1),
    "large logits": lambda x: 1e4 * NETWORK(x),
    "far from zero": lambda x: NETWORK(x) + 1e4,
    "half precision": lambda x: NETWORK(x).bfloat16(),
    "a steep step": lambda x: NETWORK(torch.sigmoid(40 * (x - 0.5))),
    "pixels cut off": lambda x: NETWORK(10 * (x - 0.5).clamp(0, 0.1)),
    "a median": lambda x: NETWORK(median(x)),
    "a declared median": lambda x: NETWORK(mb.bpda(median)(x)),
    "declared grey levels": lambda x: NETWORK(DECLARED(x)),
    "two grey levels": lambda x: NETWORK(grey(1, x)),
    "four grey levels": lambda x: NETWORK(grey(3, x)),
    "sixteen grey levels": lambda x: NETWORK(grey(15, x)),
    "all grey levels": lambda x: NETWORK(grey(255, x)),
    "no gradient": lambda x: NETWORK(x).detach(),
    "a shattered gradient": lambda x: NETWORK(x + 0.03 * torch.sin(800 * x)),
    "a reject score": lambda x: with_reject(x, spread(x)),
    "a threshold": lambda x: with_reject(x, torch.where(spread(x) > 1, 1e3, -1e3)),
}


class Given(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def defense_of(function: Function) -> mb.Defense:
    outputs = function(FEW[:1]).shape[1]
    return mb.as_defense(Given(function), (1, 8, 8), classes=10, rejects=outputs > 10)


@pytest.mark.parametrize("name", FALSE)
def test_a_false_gradient_is_seen(name: str) -> None:
    assert not gradients_fit(defense_of(FALSE[name]), FEW)


@pytest.mark.parametrize("name", TRUE)
def test_nothing_is_said_of_a_true_or_a_declared_one(name: str) -> None:
    assert gradients_fit(defense_of(TRUE[name]), FEW)


@pytest.mark.parametrize("name", ["undefended", "pgd-training", "gmvae", "magnet", "auxiliary-detector"])
def test_nothing_is_said_of_the_trained_defenses(name: str) -> None:
    assert gradients_fit(from_zoo(name, "digits").eval(), FEW)


def test_the_default_type_and_device_do_not_matter() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert not gradients_fit(defense_of(FALSE["a reversed gradient"]), FEW)
        assert gradients_fit(defense_of(TRUE["a network"]), FEW)
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_false_gradient_marks_the_figures() -> None:
    result = mb.evaluate(
        Given(FALSE["a reversed gradient"]), (TEST.images[:16], TEST.labels[:16]), attacks=["fgsm"], eps=0.1
    )
    assert "¶" in result.table["marks"].iloc[0]
    assert any("from what its gradients predict" in note for note in result.notes)
