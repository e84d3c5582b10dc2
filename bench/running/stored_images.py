"""An attack that returns images that were made elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from manifold_bench.attacks.base import Attack
from manifold_bench.attacks.target import Target
from manifold_bench.attacks.threat import Norm
from manifold_bench.bench.datasets.base import image_hashes
from manifold_bench.bench.records.images import load
from manifold_bench.defenses.identity import LOCATION


@dataclass(frozen=True, kw_only=True)
class StoredImages(Attack):
    """Returns the image in a file for each input (`AdversarialImages`), without a query of the defense.

    sha256: hash of the images and of their inputs. file: path of the file.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1", "l0", "unrestricted")
    knowledge = "oblivious"

    sha256: str
    file: Path = field(metadata=LOCATION)

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        """Return the stored images [N,C,H,W] for x; raises KeyError for an input without one."""
        images, numbers = _stored(self.file)
        return images[[numbers[one] for one in image_hashes(x.cpu())]].to(x)

    def passes(self) -> tuple[int, int]:
        """Return 0 passes, because the cost of the images is not known."""
        return 0, 0


@lru_cache(maxsize=1)
def _stored(file: Path) -> tuple[Tensor, dict[str, int]]:
    """Return the images of a file, and the index of the image for each input, by the input's hash."""
    stored = load(file)
    return torch.from_numpy(stored.images), {str(one): number for number, one in enumerate(stored.inputs)}
