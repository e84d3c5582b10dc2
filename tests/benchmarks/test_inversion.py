"""Inverting a generator: the search of Defense-GAN's paper against L-BFGS, on the zoo's generators for MNIST.

The paper's search gets the learning rate that does best on other images of the same kind; both get the same number of
threads. Passes are those forward and backward through the generator, counted, for one image.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from manifold_bench.attacks.gradient import PGD
from manifold_bench.attacks.target import Target
from manifold_bench.bench.datasets.mnist import Mnist5k
from manifold_bench.defenses.defense_gan import PAPER
from manifold_bench.defenses.solvers import QuasiNewtonSolver, Solver, best_start, mean_squared_error
from manifold_bench.defenses.weights import from_zoo

pytestmark = pytest.mark.slow

RATES = (5.0, 10.0, 20.0, 40.0)
TUNED_ON = 16
RACED = "L-BFGS from the encoder and two random starts, raced"
KINDS = ("clean", "PGD at L∞ 0.2", "Gaussian noise of 0.2")


class Counted(nn.Module):
    """A generator that counts the latents that pass through it."""

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.generator, self.latents = generator, 0

    def forward(self, z: Tensor) -> Tensor:
        self.latents += len(z)
        return self.generator(z)


def images(kind: str, n: int) -> tuple[Tensor, Tensor]:
    """Validation images to tune on, and n others."""
    data = Mnist5k()
    x, y = data.validation.images[: TUNED_ON + n], data.validation.labels[: TUNED_ON + n]
    if kind == KINDS[1]:
        x = PGD(norm="linf").run(Target(from_zoo("undefended", "mnist"), len(x)), x, y, 0.2, 0)
    elif kind == KINDS[2]:
        x = (x + 0.2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    return x[:TUNED_ON], x[TUNED_ON:]


def error_of(model: Any, solver: Solver, x: Tensor) -> tuple[float, float, float]:
    """Mean squared error per pixel, passes of an image and seconds."""
    counted = Counted(model)
    start = solver.start_per_input(x, model.latent, 0)
    if solver.origin == "encoder":
        start = torch.cat([model.encode(x)[:, None], start[:, 1:]], 1)
    begun = time.perf_counter()
    z = solver.solve(counted, x, start, solver.steps)
    seconds = time.perf_counter() - begun
    error = mean_squared_error(best_start(model, x, z)[1], x).mean()
    return float(error), counted.latents / len(x), seconds


@pytest.mark.parametrize("generator", ["wgan-gp", "vae", "vae-dense"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_tenth_of_the_passes_at_no_larger_error(benchmark, inputs: int, tell, generator: str, kind: str):
    torch.set_num_threads(1)
    model = from_zoo(generator, "mnist")
    own, x = images(kind, inputs)
    paper = replace(PAPER, spread=model.latent**-0.5)
    rate = min(RATES, key=lambda rate: error_of(model, replace(paper, rate=rate), own)[0])
    solvers = {
        f"the paper's, R = 10, L = 200, rate {rate:g}": replace(paper, rate=rate),
        "L-BFGS from one random start": QuasiNewtonSolver(steps=150, origin="prior", spread=0.1),
        "L-BFGS from the encoder": QuasiNewtonSolver(steps=150),
        RACED: QuasiNewtonSolver(steps=150, starts=3, race=20, spread=paper.spread, tolerance=1e-4),
    }
    with torch.no_grad():
        found = {name: error_of(model, solver, x) for name, solver in solvers.items()}
    benchmark.pedantic(error_of, args=(model, solvers[RACED], x), rounds=1)
    paper_error, paper_passes, paper_seconds = next(iter(found.values()))
    rows = [
        [
            name,
            f"{error:.5f}",
            f"{passes:.0f}",
            f"{seconds / len(x) * 1000:.0f} ms",
            f"{paper_passes / passes:.1f}",
            f"{paper_seconds / seconds:.1f}",
        ]
        for name, (error, passes, seconds) in found.items()
    ]
    tell(
        title=f"Inversion: {generator}, {kind}",
        text="Inversion looks for the latent from which a generator makes the image nearest to a given one. Each of "
        f"these tables is about {len(x)} validation images of MNIST. The search of Defense-GAN's paper, with R random "
        f"starts and L steps from each, has the learning rate that does best on {TUNED_ON} other images, of "
        f"{', '.join(f'{rate:g}' for rate in RATES)}. `vae-dense` is a VAE whose decoder has only dense layers, unlike "
        'that of `vae`. Where starts are "raced", only the best of each image goes on after 20 steps. Errors are per '
        "pixel; passes and times are those of one image.",
        columns=["search", "mean squared error", "passes", "an image", "times fewer passes", "times as fast"],
        rows=rows,
    )
    error, passes, _ = found[RACED]
    assert passes <= paper_passes / 10 and error <= paper_error
