"""Defenses that several tests attack: a small trained one, and linear ones whose distances are known exactly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor, nn

from manifold_bench.attacks.contract import Verdict
from manifold_bench.bench.datasets.digits import Digits
from manifold_bench.bench.running import timings
from manifold_bench.bench.running.environment import choose_kernels
from manifold_bench.defenses.base import Progress
from manifold_bench.defenses.undefended import Undefended

# A slow machine fails no test: how fast things are is measured in tests/benchmarks
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

# Tests that compare bits assert them for the settings that commands compute with
choose_kernels()
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def timings_of_tests(tmp_path_factory) -> Iterator[None]:
    """What tests run teaches this machine nothing."""
    path = tmp_path_factory.mktemp("timings") / "timings.jsonl"
    with mock.patch.object(timings, "timings_file", lambda device: path):
        yield


class LinearModel(nn.Module):
    """Logits Wx + b over images [N,1,2,2], three classes; a defense as far as attacks are concerned."""

    shape = (1, 2, 2)
    num_classes = 3
    rejects = False
    randomized = False
    gradient_modes = ("default",)
    classifier = None

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            torch.tensor([[2.0, -1.0, 0.5, 1.0], [-1.0, 1.5, 1.0, -0.5], [0.5, 0.0, -2.0, 1.0]]), requires_grad=False
        )
        self.bias = nn.Parameter(torch.tensor([-0.8, -0.1, 0.6]), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.bias

    def verdict(self, x: Tensor) -> Verdict:
        labels = self(x).argmax(1)
        return Verdict(labels, torch.zeros_like(labels, dtype=torch.bool))

    def distance(self, x: Tensor) -> Tensor:
        """The L2 distance [N] to the nearest other class: min over j of |(w_y − w_j)·x + b_y − b_j| / ‖w_y − w_j‖."""
        logits = self(x)
        y = logits.argmax(1)
        gaps = logits.gather(1, y[:, None]) - logits
        slopes = (self.weight[y][:, None] - self.weight[None]).norm(dim=2)
        return (gaps / slopes.clamp_min(1e-12)).masked_fill(gaps == 0, torch.inf).amin(1)


@pytest.fixture(scope="session")
def linear_model() -> LinearModel:
    return LinearModel()


@pytest.fixture(scope="session")
def digits() -> Digits:
    return Digits()


@pytest.fixture(scope="session")
def digits_cnn(digits: Digits) -> Undefended:
    """About 95 % right on the digits; trained in seconds."""
    spec = Undefended.Spec(shape=digits.shape, num_classes=digits.num_classes, width=16, hidden=128, epochs=3)
    defense = Undefended(spec)
    defense.fit(digits.train, digits.validation, budget=1.0, seed=0, progress=Progress())
    return defense.eval()


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, for what is trained or checked in it."""
    monkeypatch.setenv("MANIFOLD_BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
