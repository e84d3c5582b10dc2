"""How numbers, perturbation sizes and norms are written."""

from __future__ import annotations

import numpy as np

NORM_NAMES = {"linf": "L∞", "l2": "L2", "l0": "L0"}


NOT_RUN = "–"
"""Stands where the run has no such cell: neither 0 nor robust."""


def eps_text(eps: float) -> str:
    """0.1 → 0.1, inf → ∞."""
    return "∞" if np.isinf(eps) else f"{eps:g}"


def norm_text(norm: str) -> str:
    """linf → L∞; a name without a symbol stays as it is."""
    return NORM_NAMES.get(norm, norm)


def percent(value: float) -> str:
    """0.8612 → 86.1; NaN → undefined."""
    return "undefined" if np.isnan(value) else f"{100 * value:.1f}"


def distance_text(value: float) -> str:
    """1.2345 → 1.234, inf → ∞ (fewer than half the inputs were beaten)."""
    return "undefined" if np.isnan(value) else "∞" if np.isinf(value) else f"{value:.3f}"
