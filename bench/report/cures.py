"""What to do about a model through which attacks get no useful gradient, in words that the advice and notes share."""

from __future__ import annotations

FROM_SCORES = {"linf": "square", "l2": "square", "l1": "square", "l0": "sparse-rs"}
"""Norm → attack that uses scores alone, so that it works where gradients do not."""

WRAPPED = "wrap the step that causes it (rounding, a threshold, NumPy) with `mb.bpda`"
"""What to do about a step of a model through which no useful gradient passes."""


def cure_of_zero_gradients(norm: str) -> str:
    """Return what to do where gradients are zero or not finite, and which attack of that norm needs none."""
    added = FROM_SCORES.get(norm)
    return WRAPPED + (f", and run an attack that needs no gradient ({added})" if added else "")
