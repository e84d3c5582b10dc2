"""Units of logits: as they are given, or the spread of each image's own logits.

A defense may multiply its logits by a positive factor that depends on the image. Its answers stay the same, but an
attack would then make all logits small in place of making the answer wrong.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Unit = Literal["given", "classes", "all"]
"""What logits are measured in. `classes`: logits of classes in units of their spread, reject excess as it is given;
`all`: the reject excess in units of that spread, too."""

UNEVEN = 5.0
"""Ratio of the largest to the smallest spread, among clean images, above which spreads may be the units."""

LEAST = 1e-150
"""Smallest spread that logits are divided by."""


def spreads(real: Tensor) -> Tensor:
    """Return the mean absolute deviation of the finite logits of classes [N,K], [N]; differentiable."""
    finite = real.isfinite()
    count = finite.sum(1).clamp_min(1)
    mean = real.masked_fill(~finite, 0.0).sum(1) / count
    return (real.masked_fill(~finite, 0.0) - mean[:, None]).abs().masked_fill(~finite, 0.0).sum(1) / count


def in_units(logits: Tensor, classes: int, unit: Unit) -> Tensor:
    """Return logits [N,K] or [N,K+1] in that unit, in float64 if it is a spread; their order stays; differentiable."""
    if unit == "given":
        return logits
    wide = logits.double()
    real = wide[:, :classes]
    top = real.amax(1, keepdim=True)
    per = spreads(real).clamp_min(LEAST)[:, None]
    # Logits that mask a class keep their value, and have no part in the gradient
    scaled = torch.where(real.isfinite(), (real.masked_fill(~real.isfinite(), 0.0) - top) / per, real.detach())
    if logits.shape[1] == classes:
        return scaled
    excess = wide[:, classes:] - top
    return torch.cat([scaled, excess if unit == "classes" else excess / per], dim=1)


def reject_unit(logits: Tensor, classes: int) -> Unit:
    """Return in which unit the sizes of the reject excesses of images are more even; logits: [N,K] or [N,K+1]."""
    if logits.shape[1] == classes:
        return "classes"
    excess = {unit: in_units(logits, classes, unit)[:, classes] for unit in UNITS}
    uneven = {unit: float(size.abs().log().nan_to_num(0.0).std()) for unit, size in excess.items()}
    return min(UNITS, key=lambda unit: uneven[unit])


UNITS: tuple[Unit, ...] = ("classes", "all")
"""The units that are spreads."""
