"""Names of the norms of perturbations, without torch, for code that only reads and shows results."""

from __future__ import annotations

from typing import Literal

Norm = Literal["linf", "l2", "l1", "l0", "unrestricted", "fooling"]
"""Norms of perturbations. L1 sums over all values of an image; L0 counts pixels, whatever number of channels changed.
`unrestricted`: any image. `fooling`: inputs are noise, and accepted noise is a success."""


UNBOUNDED: tuple[Norm, ...] = ("unrestricted", "fooling")
"""Norms in which any image is allowed: there is no ε, and distances are measured in L2."""
