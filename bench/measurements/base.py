"""The base class of measurements: values of a defense that do not come from an attack."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from manifold_bench.bench.datasets.base import Dataset
from manifold_bench.defenses.base import Defense


@dataclass(frozen=True, kw_only=True)
class Measurement(ABC):
    """A measurement with its parameters.

    Its dataclass fields are what a matrix file may set; together with `version` they are part of the result's
    identity. Raise `version` whenever the same parameters would give other values, or a field gets another default.
    """

    version: ClassVar[int] = 1
    paper: ClassVar[str] = ""
    """The key of its paper in `bench/references.bib`, or a citation as text."""
    headline: ClassVar[str]
    """Name of its most important value, with which a published number is compared."""

    @property
    def others(self) -> tuple[str, ...]:
        """Labels of other defenses of the matrix that the measurement uses."""
        return ()

    @property
    @abstractmethod
    def title(self) -> str:
        """Title of its table: what is measured, and how, in one line."""

    def unsuited(self, defense: Defense) -> str | None:
        """Return why this measurement makes no sense for that defense, or None."""
        return None

    @abstractmethod
    def measure(self, defense: Defense, others: Mapping[str, Defense], data: Dataset, seed: int) -> dict[str, float]:
        """Return the measured values by name, the headline's among them.

        others: the other defenses by label. data: the data set. seed: seed of random numbers. All modules are frozen
        and in eval mode.
        """

    def pictures(self, defense: Defense, data: Dataset, seed: int) -> Tensor | None:
        """Return pictures for the report, [rows, columns, C, H, W] in [0,1] with C = 1 or 3, or None."""
        return None
