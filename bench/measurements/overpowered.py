"""The overpowered attack on free pairs: images of the range that are near each other and answered differently."""

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

    Of `pairs` pairs z, z′ ~ N(0, I), how many a descent brings within each η of `eta` (L2), classified differently.

    A pair counts where the full defense says so: it accepts both images and gives them different answers, and their
    distance is within η. The range is connected: a classifier that isn't constant on it has such pairs at every η > 0,
    on both sides of its boundary. So pairs whose classes both have a probability of `confidence` are counted too.

    eta: distances in L2 within which pairs count. pairs: number of pairs.
    steps, rate: number of steps and learning rate of the descent (`attacks.lagrangian.overpowered_pairs`).
    confidence: the classifier's probability from which on an answer is confident.

    z′ is drawn by itself: of pairs that begin near each other most are of one class, and far fewer are found.
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
        return None if generates(defense) else "it has no generator and classifier whose pairs could be searched"

    def measure(self, defense: Defense, others: Mapping[str, Defense], data: Dataset, seed: int) -> dict[str, float]:
        values = {}
        found, confident = torch.zeros(2, self.pairs, dtype=torch.bool)
        for eta in sorted(self.eta):  # what was brought within a smaller one is within a larger one, too
            near, sure = self.search(defense, eta, 0.5, seed), self.search(defense, eta, self.confidence, seed)
            fooled = answered(defense, sure)
            found = found | (fooled | answered(defense, near)).cpu()
            confident = confident | (fooled & (probability(defense, sure) >= self.confidence)).cpu()
            values[f"within {eta:g}"] = float(found.double().mean())
            values[f"within {eta:g}, confidently"] = float(confident.double().mean())
        return {self.headline: values[f"within {max(self.eta):g}"]} | values

    def search(self, defense: Defense, eta: float, confidence: float, seed: int) -> Pairs:
        """Pairs whose images are to have a class of that probability, by its margin over the second: 1/2 asks for none.

        Where more than two classes matter the probability is a little less than the margin says.
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
        """[2, up to SHOWN, C, H, W]: pairs found at the largest η, one image above the other; None without any."""
        pairs = self.search(defense, max(self.eta), self.confidence, seed)
        chosen = answered(defense, pairs).nonzero()[:SHOWN, 0]
        if not len(chosen):
            return None
        return torch.stack([images(defense, latents[chosen]) for latents in (pairs.z, pairs.other)]).cpu()


def images(defense: Defense, z: Tensor) -> Tensor:
    """G(z): [M,k] → [M,C,H,W]."""
    assert generates(defense)
    return blockwise(defense.generator, z)


def probability(defense: Defense, pairs: Pairs) -> Tensor:
    """The classifier's probability of the less probable of the two classes of each pair, [M]."""
    assert defense.classifier is not None
    both = [blockwise(defense.classifier, images(defense, z)) for z in (pairs.z, pairs.other)]
    return torch.stack([logits.softmax(1).amax(1) for logits in both]).amin(0)


def answered(defense: Defense, pairs: Pairs) -> Tensor:
    """Which pairs are found, and accepted and answered differently by the full-strength defense, [M] bool."""
    fooled = pairs.found.clone()
    rows = fooled.nonzero()[:, 0]
    for part in rows.split(BATCH) if len(rows) else ():  # networks need not take an empty batch
        with torch.no_grad():
            one, other = (defense.verdict(pad_to_block(images(defense, z[part]))) for z in (pairs.z, pairs.other))
        differ = (one.labels != other.labels) & ~one.rejected & ~other.rejected
        fooled[part] = differ[: len(part)]
    return fooled
