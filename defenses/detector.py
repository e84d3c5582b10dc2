"""What detectors that look at the image alone have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from manifold_bench.defenses.base import Defense, DefenseSpec, append_reject_score
from manifold_bench.defenses.calibration import HeldOutScores


class Detector(Defense):
    """A classifier with detectors whose scores depend on the image and not on the answer.

    A subclass names its `detectors` and computes their `scores`, and its `fit` hands those of clean validation images
    to `held_out`. rates: the share of these that may be above each detector's threshold, in [0,1).

    forward: images [N,C,H,W] in [0,1] → logits [N,K+1]. The reject score exceeds the largest logit by the largest ratio
    of a score to its threshold, minus 1.
    """

    family: ClassVar[str] = "detection"
    rejects: ClassVar[bool] = True

    def __init__(self, spec: DefenseSpec, rates: Sequence[float]) -> None:
        super().__init__(spec)
        self.rates = tuple(rates)
        self.held_out = HeldOutScores(len(self.rates))

    def scores(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits [N,K] of images x [N,C,H,W] in [0,1], and the detectors' scores [N,D]."""
        raise NotImplementedError(f"{type(self).__name__} computes no scores")

    def forward(self, x: Tensor) -> Tensor:
        return self._answer(x)[0]

    def detection(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """See `Defense.detection`; the ratios do not depend on the label."""
        return self._answer(x)

    def _answer(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, scores = self.scores(x)
        ratios = scores / self.held_out.thresholds(self.rates)
        return append_reject_score(logits, ratios.amax(1) - 1), ratios
