"""How many answers of a defense are certified: what attacks leave is at least this, if both are right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, MinLen

from manifold_bench.attacks.batching import batch_rows
from manifold_bench.bench.datasets.base import Dataset
from manifold_bench.bench.measurements.base import Measurement
from manifold_bench.bench.records.measurements import CERTIFIED
from manifold_bench.bench.text import eps_text, norm_text
from manifold_bench.defenses.base import Defense
from manifold_bench.defenses.training import device_of


def certified_name(norm: str, eps: float) -> str:
    """Return the name of the certified accuracy at that ε among the values of the measurement."""
    return f"certified {eps:g}, {norm_text(norm)}"


@dataclass(frozen=True, kw_only=True)
class Certified(Measurement):
    """Certified accuracy: the share of images whose right answer no perturbation within ε can change.

    norm: norm of the certificates. eps: sizes of the perturbations. n: number of test images, the
    first ones that a matrix with this n attacks.

    A proof, such as interval bounds give, holds against every attack. A statistical certificate, such as randomized
    smoothing gives, is wrong with a small probability for each image, and is about what infinitely many noisy copies
    would vote for.
    """

    headline: ClassVar[str] = CERTIFIED
    norm: Literal["linf", "l2"] = "linf"
    eps: Annotated[tuple[Annotated[float, Gt(0)], ...], MinLen(1)] = (0.05, 0.1, 0.2, 0.3)
    n: Annotated[int, Ge(1)] = 100

    @property
    def title(self) -> str:
        sizes = ", ".join(eps_text(eps) for eps in self.eps)
        return (
            f"share of {self.n:,} test images that are answered rightly and certified against every perturbation "
            f"within {norm_text(self.norm)} ε = {sizes}; {self.headline}: at the largest"
        )

    def unsuited(self, defense: Defense) -> str | None:
        certificate = defense.certificate
        if certificate is None:
            return "it offers no certificate"
        if certificate.norm != self.norm:
            return f"its certificates are about {norm_text(certificate.norm)}"
        return None

    def measure(self, defense: Defense, others: Mapping[str, Defense], data: Dataset, seed: int) -> dict[str, float]:
        rows = torch.from_numpy(data.chosen(self.n))
        images, labels = data.test.images[rows], data.test.labels[rows]
        device, size = device_of(defense), batch_rows(images)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            sure = torch.cat(
                [
                    defense.certified(x.to(device), y.to(device), x.new_tensor(self.eps).expand(len(x), -1).to(device))
                    for x, y in zip(images.split(size), labels.split(size), strict=True)
                ]
            )
        shares = sure.double().mean(0).tolist()
        values = {certified_name(self.norm, eps): share for eps, share in zip(self.eps, shares, strict=True)}
        return {self.headline: values[certified_name(self.norm, max(self.eps))], **values, "images": float(len(rows))}
