"""Parsing and checking of command-line arguments that several commands share."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from typing import NoReturn

from manifold_bench.bench.errors import InputError
from manifold_bench.bench.text import eps_of, nearest

DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|h)")
"""The form of a duration: a number and its unit."""


class Parser(argparse.ArgumentParser):
    """A parser that raises InputError for arguments that are not allowed, and refuses NUL characters."""

    def parse_args(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:  # type: ignore[override]
        given, unknown = self.parse_known_args(arguments)
        if unknown:
            options = [option for action in self._actions for option in action.option_strings]
            self.error(f"unrecognized arguments: {' '.join(unknown)}{nearest(unknown[0], options)}")
        for name, value in vars(given).items():
            if any("\0" in str(one) for one in (value if isinstance(value, list) else [value])):
                self.error(f"argument {name}: holds a NUL character; remove it")
        return given

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def positive(text: str) -> int:
    """Parse a whole number ≥ 1 that fits into 64 bits; raises ArgumentTypeError."""
    return _whole(text, 1)


def natural(text: str) -> int:
    """Parse a whole number ≥ 0 that fits into 64 bits; raises ArgumentTypeError."""
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    shown = text if len(text) <= 40 else f"{text[:39]}…"
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if not least <= value < 2**63:
        raise argparse.ArgumentTypeError(f"{shown!r} is not allowed; give a whole number from {least} to 2^63 − 1")
    return value


UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}
"""Seconds of each unit of a duration."""


def duration(text: str) -> str:
    """Return a duration such as 90s, 30min or 2h unchanged; raises ArgumentTypeError for any other text."""
    if not (found := DURATION.fullmatch(text.strip())) or not float(found[1]):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not allowed; give a time > 0 as 90s, 30min or 2h")
    return text.strip()


def seconds_of(text: str) -> float:
    """Return the number of seconds of a `duration`."""
    found = DURATION.fullmatch(text)
    assert found is not None
    return float(found[1]) * UNITS[found[2]]


def size(text: str) -> float:
    """Parse a perturbation size > 0, written as a number or a fraction; raises ArgumentTypeError."""
    try:
        value = eps_of(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not allowed; give a size > 0 as 0.1 or 8/255")
    return value
