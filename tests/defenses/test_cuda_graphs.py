"""A training whose steps are captured as CUDA graphs follows the one whose steps run one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manifold_bench.defenses.base import LabelledImages, Progress
from manifold_bench.defenses.training import Training, train_module

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Losses(Progress):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def epoch(self, stage: str, done: int, epochs: int, **figures: float) -> None:
        self.losses.append(figures["loss"])


def train(kinds: int, noise: float) -> tuple[dict[str, Tensor], list[float]]:
    """Train a small network in steps of two kinds: the odd ones learn the second layer alone."""
    random = torch.Generator().manual_seed(0)
    data = LabelledImages(torch.rand(100, 1, 4, 4, generator=random), torch.randint(0, 3, (100,), generator=random))
    torch.manual_seed(0)
    first, second = nn.Linear(16, 8), nn.Linear(8, 3)
    network = nn.Sequential(nn.Flatten(), first, nn.ReLU(), second).cuda()
    turns = 12 * 10

    def step(images: Tensor, labels: Tensor, done: float) -> Tensor:
        first.requires_grad_(round(done * turns) % 2 == 0)
        return F.cross_entropy(network(images + noise * torch.randn_like(images)), labels)

    progress = Losses()
    train_module(network, step, data, Training("s", 0, 12, 10, 0.01, stored_as=torch.float32, kinds=kinds), progress)
    return {name: weight.cpu() for name, weight in network.state_dict().items()}, progress.losses


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_captured_steps_train_as_steps_that_run_one_by_one(noise):
    weights, losses = train(0, noise)
    captured, captured_losses = train(2, noise)
    assert losses[-1] < losses[0]
    assert captured_losses == pytest.approx(losses, rel=1e-3)
    for name, weight in weights.items():
        torch.testing.assert_close(captured[name], weight, rtol=1e-3, atol=1e-4)
