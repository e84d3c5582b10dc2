"""Writes numbers, perturbation sizes, norms and foreign texts for people to read, and reads perturbation sizes."""

from __future__ import annotations

import difflib
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from fractions import Fraction

NORM_NAMES = {"linf": "L∞", "l2": "L2", "l1": "L1", "l0": "L0"}

NOT_RUN = "–"
"""The text of a cell that the run does not have."""

LEVELS = 255
"""Number of grey levels above black in an 8-bit image; papers give ε as a fraction of it, such as 8/255."""

NORM_SPELLINGS = {"inf": "linf", "infinity": "linf", "2": "l2", "1": "l1", "0": "l0"}
"""Names of norms for what people write in their place, after an "l" if any."""


MODEL_FILES = (".pt", ".pth", ".ts")
"""Endings of files of whole models, which are names of defenses."""


def norm_of(given: object) -> object:
    """Return the name of a norm for the usual ways to write it: linf for Linf, L∞, l_inf and inf; l2 for L2 and 2.

    Anything else is returned as it is.
    """
    written = re.sub(r"\s|(?<=\w)[_-]|\.0$|norm$", "", str(given).lower().replace("∞", "inf"))
    return NORM_SPELLINGS.get(written.removeprefix("l"), given)


def eps_of(text: str) -> float:
    """Return the perturbation size that a text gives as a number or a fraction: 0.03, 8/255, 0.5/255.

    A fraction is divided exactly and rounded once. Raises ValueError for any other text.
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
    """Return a perturbation size as text: 0.1 as 0.1, 0.03137254901960784 as 8/255, infinity as ∞.

    The fraction is used where it is exact and a short decimal number is not.
    """
    if math.isinf(eps):
        return "∞"
    short, levels = f"{eps:g}", f"{eps * LEVELS:g}"
    in_levels = not _is_close(float(short), eps) and _is_close(float(levels) / LEVELS, eps)
    return f"{levels}/{LEVELS}" if in_levels else short


def _is_close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-12)


def norm_text(norm: str) -> str:
    """Return the symbol of a norm, L∞ for linf; a name without a symbol is returned as it is."""
    return NORM_NAMES.get(norm, norm)


def scale_text(norm: str) -> str:
    """Return the name and the unit of distances in a norm, for the axis of a plot."""
    return f"{norm_text(norm)}; {'number of pixels' if norm == 'l0' else 'pixels span 0 to 1'}"


def percent(value: float) -> str:
    """Return a share in [0, 1] in percent, 86.1 for 0.8612; `undefined` for NaN."""
    return "undefined" if math.isnan(value) else f"{100 * value:.1f}"


def jobs_text(states: Iterable[str]) -> str:
    """Return the number of jobs by status: `32 jobs: 30 ok, 0 failed, 2 skipped`. states: the status of each job."""
    count = Counter(states)
    return f"{count.total()} jobs: " + ", ".join(f"{count[status]} {status}" for status in ("ok", "failed", "skipped"))


def distance_text(value: float) -> str:
    """Return a median distance as text: three decimals, ∞ if fewer than half the inputs were beaten, or `undefined`."""
    return "undefined" if math.isnan(value) else "∞" if math.isinf(value) else f"{value:.3f}"


OTHER_NAMES = {
    **dict.fromkeys(("iterations", "iters", "max_iter", "nb_iter", "n_iter", "num_steps"), "steps"),
    **dict.fromkeys(("alpha", "eps_step", "eps_iter", "abs_stepsize", "learning_rate"), "step_size"),
    **dict.fromkeys(("n_restarts", "nb_restarts", "num_random_init"), "restarts"),
}
"""Parameters of attacks by the names that other libraries give them, with those that they have here."""


def nearest(word: str, known: list[str], further: str = "") -> str:
    """Return "; did you mean 'x'? further" for the known word that is `closest`, or "; further" where none is near."""
    found = closest(word, known)
    parts = [] if found is None else [f"did you mean {found!r}?"]
    return "; " + " ".join([*parts, further]).rstrip() if parts or further else ""


def closest(word: str, known: list[str]) -> str | None:
    """Return the known word that is nearest to a word; None where none is near.

    Upper and lower case matter only between words that are the same without them. A word that begins with a known one,
    as epsilon with eps, is near to the longest of these. A name of `OTHER_NAMES` is near to the one here, if that is
    known.
    """
    if (same := OTHER_NAMES.get(word.lower())) in known:
        return same
    given, word, lower = word, word.lower(), [one.lower() for one in known]
    begins = sorted((one for one in lower if len(one) > 2 and word.startswith(one)), key=len)
    very_close, close = (difflib.get_close_matches(word, lower, n=1, cutoff=share) for share in (0.75, 0.5))
    close = very_close or begins[-1:] or close
    alike = [one for one in known if one.lower() in close]  # they differ in case alone
    return max(alike, key=lambda one: difflib.SequenceMatcher(None, given, one).ratio(), default=None)


def is_printable(text: str) -> bool:
    """Return whether a text is free of characters that control a terminal or are invisible on it.

    These are the Unicode categories of control, format, surrogate, private and unassigned characters, and separators of
    lines and paragraphs.
    """
    return (text.isascii() and text.isprintable()) or not any(map(_hidden, text))


def printable(text: str) -> str:
    """Return a text on one line, with escapes (`\\x1b`) in place of control characters.

    Labels and messages may come from anybody, so they must not control the terminal that shows them.
    """
    text = " ".join(text.splitlines())
    return text if is_printable(text) else "".join(_escaped(c) if _hidden(c) else c for c in text)


def _hidden(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def without_folders(name: str) -> str:
    """Return the name of a system without the folders of its files: nets/mine.py:Net@runs/w.pt → mine.py:Net@w.pt."""
    if ".py:" not in name:
        return name.rpartition("/")[2] if name.endswith(MODEL_FILES) else name
    file, _, rest = name.partition(".py:")
    what, at, weights = rest.partition("@")
    return f"{file.rpartition('/')[2]}.py:{what}{at}{weights.rpartition('/')[2]}"
