"""What it costs that an input's answer is the same bits in every batch: settings of MKL, and larger blocks instead."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
import torch

from manifold_bench.attacks import batching, target
from manifold_bench.attacks.gradient import PGD
from manifold_bench.bench.datasets.mnist import Mnist5k
from manifold_bench.bench.running.engines.processes import keep_freed_memory
from manifold_bench.defenses.weights import from_zoo

pytestmark = pytest.mark.slow

SETTINGS = {"MKL's own": "", "`AUTO,STRICT`": "AUTO,STRICT", "`AVX2,STRICT`": "AVX2,STRICT"}
BLOCKS = 16
ROUNDS = 3


def work() -> dict[str, Callable[[], object]]:
    """What is timed: a dense layer, passes of networks, and an attack that inputs leave."""
    generator = torch.Generator().manual_seed(0)

    def passes(module: torch.nn.Module, x: torch.Tensor) -> Callable[[], object]:
        def there_and_back() -> None:
            point = x.clone().requires_grad_(True)
            torch.autograd.grad(module(point).square().sum(), point)

        return there_and_back

    torch.manual_seed(0)
    dense = torch.nn.Linear(784, 500).requires_grad_(False)
    made: dict[str, Callable[[], object]] = {
        "dense layer 784 → 500, 128 rows": passes(dense, torch.rand(128, 784, generator=generator))
    }
    for name in ("undefended", "undefended-A", "gmvae"):
        network = from_zoo(name, "mnist")
        made[f"`{name}`, 128 inputs"] = passes(network, torch.rand(128, 1, 28, 28, generator=generator))
    data, defense = Mnist5k(), from_zoo("pgd-training", "mnist")
    chosen = data.chosen(64)
    x, y = data.test.images[chosen], data.test.labels[chosen]
    attack = PGD(norm="linf", steps=20)
    made["PGD-20 on `pgd-training`, 64 inputs"] = lambda: attack.run(target.Target(defense, 64), x, y, 0.3, 0)
    return made


def seconds() -> dict[str, float]:
    """Median processor seconds of each piece of work, in this process."""
    torch.set_num_threads(1)
    keep_freed_memory()
    found = {}
    for name, once in work().items():
        taken = []
        for _ in range(8):
            begun = time.process_time()  # of one thread: what else the machine does counts little
            once()
            taken.append(time.process_time() - begun)
        found[name] = statistics.median(taken[2:])
    return found


def in_a_process(setting: str, block: int) -> dict[str, float]:
    """`seconds` in a process of its own, with MKL_CBWR set so ("": not set) and blocks of so many rows."""
    environment = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"}
    if setting:
        environment["MKL_CBWR"] = setting
    done = subprocess.run(
        [sys.executable, __file__, str(block)], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_settings_of_the_kernels(benchmark, tell):
    ways = [(name, setting, 8) for name, setting in SETTINGS.items()] + [(f"blocks of {BLOCKS}", "", BLOCKS)]
    taken: dict[str, list[dict[str, float]]] = {name: [] for name, *_ in ways}

    def all_ways() -> None:
        for _ in range(ROUNDS):
            for name, setting, block in ways:
                taken[name].append(in_a_process(setting, block))

    benchmark.pedantic(all_ways, rounds=1)
    usual, *others = taken
    rows = [
        [
            piece,
            f"{1e3 * statistics.median(one[piece] for one in taken[usual]):.2f} ms",
            *(
                f"{statistics.median(b[piece] / a[piece] for a, b in zip(taken[usual], taken[other], strict=True)):.2f}"
                for other in others
            ),
        ]
        for piece in taken[usual][0]
    ]
    tell(
        title="Kernels that round alike in all batches",
        text="Time with the kernels that MKL picks itself, in blocks of 8 rows, and how many times as long others take "
        f"(medians over {ROUNDS} processes each). Workers use `MKL_CBWR=AUTO,STRICT` and blocks of 8.",
        columns=["", usual, *others],
        rows=rows,
    )


if __name__ == "__main__":
    batching.BLOCK = int(sys.argv[1])
    print(json.dumps(seconds()))
