"""How numbers, perturbation sizes, norms, and texts from elsewhere are written."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from fractions import Fraction

NORM_NAMES = {"linf": "L∞", "l2": "L2", "l0": "L0"}


NOT_RUN = "–"
"""Stands where the run has no such cell: neither 0 nor robust."""


LEVELS = 255
"""Steps between black and white in an image file: papers write ε as a fraction of them."""


def eps_of(text: str) -> float:
    """Return a perturbation size from a number or a fraction: 0.03, 8/255, 0.5/255. The fraction is taken exactly.

    Raises ValueError for anything else.
    """
    number = r"([0-9]{1,20}(?:\.[0-9]{1,20})?)"
    if found := re.fullmatch(rf"\s*{number}\s*/\s*{number}\s*", text):
        above, below = map(Fraction, found.groups())
        if below:
            return float(above / below)
    elif re.fullmatch(rf"\s*{number}(?:e[-+]?[0-9]{{1,3}})?\s*", text) and math.isfinite(float(text)):
        return float(text)
    raise ValueError(f'{json.dumps(text, ensure_ascii=False)} is not a perturbation size; give 0.03 or "8/255"')


def eps_text(eps: float) -> str:
    """0.1 → 0.1, 0.03137254901960784 → 8/255 (what is not short as a decimal number but is in levels), inf → ∞."""
    if math.isinf(eps):
        return "∞"
    short, levels = f"{eps:g}", f"{eps * LEVELS:g}"
    in_levels = not _is_close(float(short), eps) and _is_close(float(levels) / LEVELS, eps)
    return f"{levels}/{LEVELS}" if in_levels else short


def _is_close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-12)


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
