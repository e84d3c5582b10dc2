"""A forward and a backward pass in the ways that torch offers and in the harness' way; what bf16 would change.

Where a way isn't ours, this is why: it measures no better, or it changes verdicts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
import torch
from peers import bare_pgd, plain
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from manifold_bench.attacks.batching import blockwise
from manifold_bench.bench.datasets.mnist import Mnist5k
from manifold_bench.bench.running.engines.processes import keep_freed_memory
from manifold_bench.defenses.generative_model import GenerativeModel
from manifold_bench.defenses.weights import from_zoo

pytestmark = pytest.mark.slow

NETWORKS = ("undefended", "undefended-A", "gmvae", "magnet", "wgan-gp", "vae-dense")
BATCH, ROUNDS = 128, 5
EPS = {"undefended": 0.1, "pgd-training": 0.3}


class InBFloat16(nn.Module):
    """A module whose passes are computed in bf16 where autocast does that."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.module(x).float()


def there_and_back(module: nn.Module, x: Tensor, threads: int = 1) -> Callable[[], float]:
    """Seconds of one pass each way."""

    def measured() -> float:
        torch.set_num_threads(threads)
        begun = time.perf_counter()
        point = x.clone().requires_grad_(True)
        torch.autograd.grad(module(point).square().sum(), point)
        took = time.perf_counter() - begun
        torch.set_num_threads(1)
        return took

    return measured


def matrix_product() -> float:
    """Floating-point operations a second of one that is as large as caches like it."""
    a, b = torch.rand(2, 1024, 1024).unbind()
    taken = []
    for _ in range(9):
        begun = time.perf_counter()
        a @ b
        taken.append(time.perf_counter() - begun)
    return 2 * 1024**3 / statistics.median(taken)


def operations(name: str) -> float:
    """Floating-point operations of a forward and a backward pass; each takes as many, since weights get no gradient."""
    module = from_zoo(name, "mnist")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(example(module))
    return 2 * counter.get_total_flops() / BATCH


def example(module: nn.Module) -> Tensor:
    """What it takes: images, or latents."""
    size = (module.latent,) if isinstance(module, GenerativeModel) else module.spec.shape
    return torch.rand(BATCH, *size, generator=torch.Generator().manual_seed(0))


def ways(name: str) -> dict[str, Callable[[], float]]:
    ours = from_zoo(name, "mnist")
    x = example(ours)
    return {
        "as it is": there_and_back(ours, x),
        "torch's layers": there_and_back(plain(ours), x),
        "bf16": there_and_back(InBFloat16(ours), x),
        "torch.compile": there_and_back(torch.compile(from_zoo(name, "mnist")), x),
        "two threads": there_and_back(ours, x, threads=2),
    }


def test_ways_of_a_pass(benchmark, tell):
    torch.set_num_threads(1)
    keep_freed_memory()
    rows, limit = [], matrix_product()

    def all_networks() -> None:
        for name in NETWORKS:
            there = ways(name)
            taken: dict[str, list[float]] = {way: [] for way in there}
            for way in there.values():
                way(), way()  # what is compiled or allocated once
            for _ in range(ROUNDS):
                for way, measured in there.items():
                    taken[way].append(min(measured() for _ in range(3)))
            usual, *others = (statistics.median(times) for times in taken.values())
            rate = operations(name) * BATCH / usual
            row = [name, f"{1e6 * usual / BATCH:.0f} µs", f"{rate / limit:.2f}"]
            rows.append([*row, *(f"{usual / other:.2f}" for other in others)])

    benchmark.pedantic(all_networks, rounds=1)
    tell(
        title="One pass, computed in other ways",
        text=f"Time of one forward and backward pass of one input, in a batch of {BATCH}. As it is: channels-last "
        "weights, the layers of `manifold_bench.defenses.convolutions`, one thread, and freed memory that is kept. "
        "The third column is the share of the operations per second of a product of two 1024 × 1024 matrices, which "
        f"are {limit / 1e9:.0f} · 10⁹. The other columns say how many times as fast another way is: torch's own layers "
        "and layout, bf16, `torch.compile`, two threads.",
        columns=[
            "network",
            "as it is",
            "of a product's rate",
            "torch's layers",
            "bf16",
            "`torch.compile`",
            "two threads",
        ],
        rows=rows,
    )


def test_verdicts_in_bf16(benchmark, inputs: int, tell):
    torch.set_num_threads(1)
    test = Mnist5k().test
    chosen = Mnist5k().chosen(inputs)
    x, y = test.images[chosen], test.labels[chosen]
    rows = []

    def both() -> None:
        for name, eps in EPS.items():
            module = from_zoo(name, "mnist")
            beaten = []
            for attacked in (module, InBFloat16(module)):
                torch.manual_seed(0)
                found = bare_pgd(attacked, x, y, eps)
                beaten.append(blockwise(module, found).argmax(1) != y)
            full, half = beaten
            robust = [f"{1 - float(one.float().mean()):.3f}" for one in beaten]
            rows.append([name, *robust, str(int((full & ~half).sum())), str(int((half & ~full).sum()))])

    benchmark.pedantic(both, rounds=1)
    tell(
        title="Gradients in bf16",
        text=f"PGD-40 by a bare loop on {inputs} inputs, judged in float32. Passes in bf16 beat other inputs than "
        "passes in float32, so attacks do not use them.",
        columns=["defense", "robust, float32", "robust, bf16", "beaten by float32 alone", "by bf16 alone"],
        rows=rows,
    )
