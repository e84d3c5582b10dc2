"""Systems that break, each in a way of its own, named in matrix files as `broken:Name`."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import torch
from tiny import Aimed, NearestMean, Tiny
from torch import Tensor

from manifold_bench.attacks.target import Target


class NanLogits(NearestMean):
    """No number for any input."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * torch.nan


class NanWhereAttacked(NearestMean):
    """No number for what is not a digit of 17 grey levels: as good as an answer, to a careless judge."""

    def forward(self, x: Tensor) -> Tensor:
        level = (x * 16 - (x * 16).round()).abs().flatten(1).amax(1) < 1e-4
        return torch.where(level[:, None], super().forward(x), torch.nan)


class TooManyOutputs(NearestMean):
    """Two outputs more than classes."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([super().forward(x), torch.full((len(x), 2), 1e3)], dim=1)


class TooFewOutputs(NearestMean):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, :4]


class Dies(NearestMean):
    """Takes its process with it."""

    def forward(self, x: Tensor) -> Tensor:
        os._exit(3)


class Hangs(NearestMean):
    """Never answers."""

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(3600)
        return super().forward(x)


@dataclass(frozen=True, kw_only=True)
class Raises(Tiny):
    """Breaks, unless the environment says that it was mended."""

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        if "TINY_MENDED" not in os.environ:
            raise ArithmeticError("out of luck\nand a second line")
        return x


@dataclass(frozen=True, kw_only=True)
class AimsAndRaises(Aimed):
    """Breaks, whatever its target classes."""

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        raise ArithmeticError("out of luck")


@dataclass(frozen=True, kw_only=True)
class OutsideBall(Tiny):
    """Another digit altogether, whatever ε."""

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        return x.flip(0)


@dataclass(frozen=True, kw_only=True)
class OutsideBox(Tiny):
    """Within ε, but no image."""

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        return x - eps


@dataclass(frozen=True, kw_only=True)
class NanPixels(Tiny):
    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        return torch.full_like(x, torch.nan)


@dataclass(frozen=True, kw_only=True)
class WrongShape(Tiny):
    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        return x[:1]


@dataclass(frozen=True, kw_only=True)
class NoTensor(Tiny):
    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        return None  # type: ignore[return-value]


@dataclass(frozen=True, kw_only=True)
class InPlace(Tiny):
    """Makes its input and its labels its own: an ε of 1 that passes for 0 where originals are not kept safe."""

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        x.copy_(x.flip(0))
        y.zero_()
        return x


@dataclass(frozen=True, kw_only=True)
class Vandal(Tiny):
    """Breaks the defense itself, so that the next one to load it would find it broken."""

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        target.defense.means.zero_()  # type: ignore[attr-defined]
        return x


@dataclass(frozen=True, kw_only=True)
class Kills(Tiny):
    """Takes its process with it."""

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        os._exit(9)
