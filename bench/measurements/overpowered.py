"""The overpowered attack as a measurement: pairs of generated images that are near and get different answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Lt, MinLen
from torch import Tensor

from manifold_bench.attacks.batching import blockwise, pad_to_block
from manifold_bench.attacks.contract import generates
from manifold_bench.attacks.lagrangian import Descent, Pairs, overpowered_pairs
from manifold_bench.bench.datasets.base import Dataset
from manifold_bench.bench.measurements.base import Measurement
from manifold_bench.defenses.base import Defense

BATCH = 256
SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class OverpoweredPairs(Measurement):
    """Searches the generator's range for near pairs of images with different answers.

    It starts descents from `pairs` pairs z, z′ ~ N(0, I), two for each η, and counts the pairs that end within each η
    of `eta` (L2) with different answers.

    A pair counts if the deployed defense accepts both images and gives them different answers, and their distance is
    within η. The generator's range is connected, so that a classifier that is not constant on it has such pairs at
    every η > 0, on both sides of its boundary. For that reason pairs whose classes both have a probability of
    `confidence` are counted separately.

    eta: distances in L2 within which pairs count. pairs: number of pairs.
    steps, rate: number of steps and learning rate of the descent (`attacks.lagrangian.overpowered_pairs`).
    confidence: smallest probability of the classifier that makes an answer confident.

    z and z′ are drawn independently: of pairs that start near each other most have one class, and far fewer are found.
    """

    paper = "ilyas2017"
    headline: ClassVar[str] = "found"
    eta: Annotated[tuple[Annotated[float, Gt(0), Lt(math.inf)], ...], MinLen(1)] = (0.5, 1.0, 1.5, 2.0, 4.0)
    pairs: Annotated[int, Ge(1)] = 200
    steps: Annotated[int, Ge(1)] = 500
    rate: Annotated[float, Gt(0), Lt(math.inf)] = 0.05
    confidence: Annotated[float, Gt(0.5), Lt(1)] = 0.9

    @property
    def title(self) -> str:
        return (
            f"Shares of {self.pairs} pairs of generated images brought within η in L2 of each other that the whole "
            f"defense accepts and answers differently (confidently: both at {self.confidence:.0%}; found: at "
            f"η = {max(self.eta):g})"
        )

    def unsuited(self, defense: Defense) -> str | None:
        return None if generates(defense) else "the defense has no generator with a classifier"

    def measure(self, defense: Defense, others: Mapping[str, Defense], data: Dataset, seed: int) -> dict[str, float]:
        values = {}
        found, confident = torch.zeros(2, self.pairs, dtype=torch.bool)
        for eta in sorted(self.eta):  # pairs within a smaller η are within the larger ones, too
            near, sure = self.search(defense, eta, 0.5, seed), self.search(defense, eta, self.confidence, seed)
            fooled = answered_differently(defense, sure)
            found = found | (fooled | answered_differently(defense, near)).cpu()
            confident = confident | (fooled & (probability(defense, sure) >= self.confidence)).cpu()
            values[f"within {eta:g}"] = float(found.double().mean())
            values[f"within {eta:g}, confidently"] = float(confident.double().mean())
        return {self.headline: values[f"within {max(self.eta):g}"]} | values

    def search(self, defense: Defense, eta: float, confidence: float, seed: int) -> Pairs:
        """Search for pairs whose images have a class of probability `confidence`; 0.5 demands no margin.

        The search uses the margin over the second class; with more than two likely classes the probability is a little
        smaller than the margin implies.
        """
        device = next(defense.parameters()).device
        assert generates(defense)
        z, other = torch.randn(2, self.pairs, defense.generator.latent, generator=torch.Generator().manual_seed(seed))
        margin, descent = 1.2 * math.log(confidence / (1 - confidence)), Descent(self.steps, self.rate)
        found = [
            overpowered_pairs(defense.generator, defense.classifier, both, eta, descent, margin)
            for both in zip(z.to(device).split(BATCH), other.to(device).split(BATCH), strict=True)
        ]
        return Pairs(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    def pictures(self, defense: Defense, data: Dataset, seed: int) -> Tensor | None:
        """Return pairs at the largest η, one above the other, [2, up to SHOWN, C, H, W]; None if there are none."""
        pairs = self.search(defense, max(self.eta), self.confidence, seed)
        chosen = answered_differently(defense, pairs).nonzero()[:SHOWN, 0]
        if not len(chosen):
            return None
        return torch.stack([images(defense, latents[chosen]) for latents in (pairs.z, pairs.other)]).cpu()


def images(defense: Defense, z: Tensor) -> Tensor:
    """Return the images G(z) [M,C,H,W] of latents z [M,k]."""
    assert generates(defense)
    return blockwise(defense.generator, z)


def probability(defense: Defense, pairs: Pairs) -> Tensor:
    """Return the smaller of the classifier's two confidences in its answers to the two images of each pair, [M]."""
    assert defense.classifier is not None
    both = [blockwise(defense.classifier, images(defense, z)) for z in (pairs.z, pairs.other)]
    return torch.stack([logits.softmax(1).amax(1) for logits in both]).amin(0)


def answered_differently(defense: Defense, pairs: Pairs) -> Tensor:
    """Return which pairs were found, and are accepted and answered differently by the deployed defense, [M] bool."""
    fooled = pairs.found.clone()
    rows = fooled.nonzero()[:, 0]
    for part in rows.split(BATCH) if len(rows) else ():  # networks need not take an empty batch
        with torch.no_grad():
            one, other = (defense.verdict(pad_to_block(images(defense, z[part]))) for z in (pairs.z, pairs.other))
        differ = (one.labels != other.labels) & ~one.rejected & ~other.rejected
        fooled[part] = differ[: len(part)]
    return fooled
