"""Thresholds for a given false-rejection rate, from the scores of held-out clean images, and figures of rejection."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class HeldOutScores(nn.Module):
    """The calibration scores of D detectors: their scores for M clean images that no training has seen.

    They are stored with the defense's weights, so that a threshold for any rejection rate can be computed later.

    ordered: [D,M], the scores of each detector in ascending order; M = 0 until `keep` is called.
    """

    ordered: Tensor

    def __init__(self, detectors: int) -> None:
        super().__init__()
        self.register_buffer("ordered", torch.empty(detectors, 0))

    def keep(self, scores: Tensor) -> None:
        """Keep these scores [M,D] in place of earlier ones."""
        self.ordered = scores.detach().T.sort(dim=1).values.to(self.ordered.device)

    def thresholds(self, rates: Sequence[float]) -> Tensor:
        """Return the threshold of each detector, [D]: the smallest held-out score that no more than its rate exceeds.

        rates: share of clean images that each detector may reject, in [0, 1). Without held-out scores, which `keep`
        stores, thresholds are ∞.
        """
        images = self.ordered.shape[1]
        if not images:
            return self.ordered.new_full((len(rates),), torch.inf)
        above = [math.floor(rate * images + 1e-9) for rate in rates]  # 0.29 · 100 is 28.999…
        return torch.stack([own[images - 1 - n] for own, n in zip(self.ordered, above, strict=True)])

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: object) -> None:
        """Load a state, with any number of scores."""
        found = state_dict.get(f"{prefix}ordered")
        if isinstance(found, Tensor) and found.dim() == 2:
            self.ordered = self.ordered.new_empty(len(self.ordered), found.shape[1])
        super()._load_from_state_dict(state_dict, prefix, *rest)


def selective_figures(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Return accuracy, error and rejection rate for logits [N,K+1] and labels [N], and accuracy without rejection."""
    classes = logits.shape[1] - 1
    right = logits[:, :classes].argmax(1) == labels
    accepted = logits.argmax(1) < classes
    return {
        "validation_accuracy_without_rejection": float(right.float().mean()),
        "validation_accuracy": float((right & accepted).float().mean()),
        "validation_error": float((~right & accepted).float().mean()),
        "validation_rejection": float((~accepted).float().mean()),
    }
