"""Calls of the Python interface from several threads at once, and from inside one another."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import Tensor, nn

import manifold_bench as mb
from manifold_bench.bench.datasets.digits import Digits
from manifold_bench.bench.planning.registry import find, handing_in

TEST = Digits().test


class Classes(nn.Module):
    """A linear classifier; `moved` renames its classes."""

    def __init__(self, moved: int) -> None:
        super().__init__()
        self.moved = moved
        images, labels = TEST.images[100:].flatten(1), TEST.labels[100:]
        self.means = nn.Parameter(torch.stack([images[labels == c].mean(0) for c in range(10)]))

    def forward(self, x: Tensor) -> Tensor:
        logits = 2 * x.flatten(1) @ self.means.T - self.means.square().sum(1)
        return logits.roll(self.moved, dims=1)


def figures(case: tuple[nn.Module, int, int]) -> list[list[float]]:
    model, first, n = case
    data = TEST.images[first : first + n], TEST.labels[first : first + n]
    found = mb.evaluate(model, data, attacks=["pgd"], eps=0.06)
    return found.table[["n", "clean", "robust"]].to_numpy().tolist()


def test_calls_in_threads_return_what_each_returns_alone():
    cases = [(Classes(0), 0, 12), (Classes(3), 20, 16)]
    alone = [figures(case) for case in cases]
    assert alone[0] != alone[1]
    together = Barrier(2)
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(lambda case: (together.wait(), figures(case))[1], cases)) == alone


def test_what_was_handed_in_before_comes_back():
    first, second = type("First", (), {}), type("Second", (), {})
    with handing_in("defenses", {"model": first}):
        with handing_in("defenses", {"model": second}):
            assert find("defenses", "model") is second
        assert find("defenses", "model") is first
    with pytest.raises(mb.InputError):
        find("defenses", "model")
