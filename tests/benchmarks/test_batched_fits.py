"""`inc-dip`: networks fitted to images together against one image after the other, on the validation images of mnist5k.

`pytest tests/benchmarks/test_batched_fits.py -m slow --benchmark-only --inputs 200`. Both on one thread, in seconds of
its CPU time, so that what else the machine does counts little. One after the other is the same code, which then is one
plain network at a time; `ALONE` images are measured, since all take the same steps.
"""

from __future__ import annotations

import time

import pytest
import torch

from manifold_bench.bench.datasets.mnist import Mnist5k
from manifold_bench.defenses.deep_image_prior import DeepImagePrior
from manifold_bench.defenses.weights import freeze

pytestmark = pytest.mark.slow

ALONE = 4


@pytest.mark.benchmark(timer=time.process_time)
def test_fits_in_batches(benchmark, inputs: int, tell):
    torch.set_num_threads(1)
    data = Mnist5k()
    x = data.validation.images[torch.from_numpy(data.calibration(inputs))]
    defense = freeze(DeepImagePrior(DeepImagePrior.Spec(shape=data.shape, num_classes=data.num_classes)))
    defense.perceived(x[:1])  # warm up
    begun = time.process_time()
    for image in x[:ALONE].split(1):
        defense.perceived(image)
    alone = (time.process_time() - begun) / ALONE
    benchmark.pedantic(defense.perceived, args=(x,), rounds=1)
    together = benchmark.stats.stats.median / len(x)
    tell(
        title="`inc-dip`: networks fitted together",
        text=f"{len(x)} images, {defense.spec.steps} steps each; CPU time of one thread.",
        columns=["fits", "an image", "times as fast"],
        rows=[
            [f"one after the other ({ALONE} images)", f"{alone:.3f} s", ""],
            ["in batches", f"{together:.3f} s", f"{alone / together:.2f}"],
        ],
    )
