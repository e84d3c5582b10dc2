"""What an attack may know of a defense: its answer, and the interface that every defense offers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

Part = Literal["defense", "classifier"]


Network = Literal["encoder", "decoder", "generator", "inverter", "classifier"]


GradientMode = Literal["default", "identity", "unrolled", "gauss-newton", "implicit"]


@dataclass(frozen=True)
class Verdict:
    """The deployed answer. labels: [N] int64 in 0..K−1 (also where rejected); rejected: [N] bool.

    scores: [N] float, how suspicious each input looks, larger is more so; for a defense that rejects, > 0 exactly
    where it does (up to rounding). None where a defense doesn't say: no risk–coverage figure is made of it then.
    """

    labels: Tensor
    rejected: Tensor
    scores: Tensor | None = None

    def wrong(self, y: Tensor) -> Tensor:
        """Accepted and not y → [N] bool."""
        return ~self.rejected & (self.labels != y)


class AttackableDefense(Protocol):
    """What a Target needs to know of a defense; `defenses.base.Defense` fulfils it.

    `attack_forward` is asked for only where `gradient_modes` names others than "default".
    """

    num_classes: int
    classifier: Any  # a module, or None where the defense has no separable one

    @property
    def detectors(self) -> tuple[str, ...]: ...

    @property
    def rejects(self) -> bool: ...

    @property
    def randomized(self) -> bool: ...

    @property
    def gradient_modes(self) -> tuple[str, ...]: ...

    @property
    def inference_steps(self) -> int: ...

    @property
    def attacked_steps(self) -> int: ...

    def __call__(self, x: Tensor, /) -> Tensor: ...

    def verdict(self, x: Tensor) -> Verdict: ...
