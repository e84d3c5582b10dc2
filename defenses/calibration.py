"""Thresholds at a stated false-rejection rate, from scores of held-out clean images, and what a rejecting defense
reaches with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from manifold_bench.defenses.base import Defense, LabelledImages


class HeldOutScores(nn.Module):
    """Detectors' scores of clean images that nothing was learnt from, kept whole: any rate can be chosen later.

    ordered: [D,M], each detector's ascending; M = 0 until `keep` is called.
    """

    ordered: Tensor

    def __init__(self, detectors: int) -> None:
        super().__init__()
        self.register_buffer("ordered", torch.empty(detectors, 0))

    def keep(self, scores: Tensor) -> None:
        """Takes these scores [M,D] in place of earlier ones."""
        self.ordered = scores.detach().T.sort(dim=1).values.to(self.ordered.device)

    def thresholds(self, rates: Sequence[float]) -> Tensor:
        """For each detector the smallest held-out score that at most its rate (in [0, 1)) of them exceed, [D].

        ∞ where there are none.
        """
        images = self.ordered.shape[1]
        if not images:
            return self.ordered.new_full((len(rates),), torch.inf)
        above = [math.floor(rate * images + 1e-9) for rate in rates]  # 0.29 · 100 is 28.999…
        return torch.stack([own[images - 1 - n] for own, n in zip(self.ordered, above, strict=True)])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """As every module's, but takes over however many scores there are."""
        found = state_dict.get(f"{prefix}ordered")
        if isinstance(found, Tensor) and found.dim() == 2:
            self.ordered = self.ordered.new_empty(len(self.ordered), found.shape[1])
        super()._load_from_state_dict(state_dict, prefix, *rest)


def in_batches(function: Callable[[Tensor], Tensor], images: Tensor, device: torch.device) -> Tensor:
    """function(images) [N,...] without gradient, a batch at a time on that device; the result is on the CPU."""
    with torch.no_grad():
        return torch.cat([function(x.to(device)).cpu() for x in images.split(500)])


def selective_figures(
    defense: Defense, data: LabelledImages, device: torch.device, answer: Callable[[Tensor], Tensor] | None = None
) -> dict[str, float]:
    """Shares of the images: right if rejection is left out, accepted and right, accepted and wrong, rejected.

    answer: images → logits [N,K+1], where they are not those of the deployed defense.
    """
    logits = in_batches(answer or defense, data.images, device)
    right = logits[:, : defense.num_classes].argmax(1) == data.labels
    accepted = logits.argmax(1) < defense.num_classes
    return {
        "validation_accuracy_without_rejection": float(right.float().mean()),
        "validation_accuracy": float((right & accepted).float().mean()),
        "validation_error": float((~right & accepted).float().mean()),
        "validation_rejection": float((~accepted).float().mean()),
    }
