"""How numbers, perturbation sizes, norms, and texts from elsewhere are written."""

from __future__ import annotations

import math
import unicodedata

NORM_NAMES = {"linf": "L∞", "l2": "L2", "l0": "L0"}


NOT_RUN = "–"
"""Stands where the run has no such cell: neither 0 nor robust."""


def eps_text(eps: float) -> str:
    """0.1 → 0.1, inf → ∞."""
    return "∞" if math.isinf(eps) else f"{eps:g}"


def norm_text(norm: str) -> str:
    """linf → L∞; a name without a symbol stays as it is."""
    return NORM_NAMES.get(norm, norm)


def percent(value: float) -> str:
    """0.8612 → 86.1; NaN → undefined."""
    return "undefined" if math.isnan(value) else f"{100 * value:.1f}"


def distance_text(value: float) -> str:
    """1.2345 → 1.234, inf → ∞ (fewer than half the inputs were beaten)."""
    return "undefined" if math.isnan(value) else "∞" if math.isinf(value) else f"{value:.3f}"


def is_printable(text: str) -> bool:
    """Whether a text has no characters that a terminal obeys or hides: control, format, private, surrogates."""
    return (text.isascii() and text.isprintable()) or not any(map(_hidden, text))


def printable(text: str) -> str:
    """The text on one line, its control characters as escapes (`\\x1b`): labels and messages may come from anybody."""
    text = " ".join(text.splitlines())
    return text if is_printable(text) else "".join(_escaped(c) if _hidden(c) else c for c in text)


def _hidden(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
