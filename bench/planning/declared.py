"""Checks of what attacks and measurements declare, made when they are planned; errors name the class and the part."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar, get_args

from manifold_bench.attacks.base import Attack, Knowledge
from manifold_bench.attacks.threat import NORMS
from manifold_bench.bench.errors import InputError
from manifold_bench.bench.measurements.base import Measurement
from manifold_bench.bench.planning.usercode import contained
from manifold_bench.defenses.base import Defense
from manifold_bench.defenses.checks import (
    FLAG,
    REASON,
    TEXT,
    WHOLE,
    ContractError,
    Expected,
    check,
    checked,
    names,
    one_of,
)

T = TypeVar("T")


def check_attack(attack: Attack) -> None:
    """Check everything that an attack declares independently of a defense; raises ContractError."""
    check(attack, "norms", names("norms", *NORMS))
    check(attack, "knowledge", one_of(*get_args(Knowledge)))
    check(attack, "aims", one_of("none", "wrong", "every"))
    check(attack, "minimal", FLAG)
    check(attack, "revision", TEXT)
    pair = Expected("two numbers ≥ 0: forward and backward passes for one input", _are_passes)
    checked(attack, "passes()", pair, attack.passes)
    checked(attack, "__repr__()", TEXT, attack.__repr__)


def _are_passes(value: object) -> bool:
    if not isinstance(value, tuple | list):
        return False
    return len(value) == 2 and all(isinstance(n, int | float) and 0 <= n < math.inf for n in value)


def check_measurement(measurement: Measurement) -> None:
    """Check everything that a measurement declares independently of a defense; raises ContractError."""
    check(measurement, "version", WHOLE)
    check(measurement, "headline", TEXT)
    check(measurement, "title", TEXT)
    check(measurement, "others", names("labels of defenses"))
    checked(measurement, "__repr__()", TEXT, measurement.__repr__)


def unsuited(system: Attack | Measurement, defense: Defense) -> str | None:
    """Return why an attack or a measurement makes no sense for a defense, or None; raises InputError."""
    return _answer(system, "unsuited", REASON, defense, lambda: system.unsuited(defense))


def solver_steps(attack: Attack, defense: Defense) -> int:
    """Return how many solver steps of the defense each pass of an attack costs; raises InputError."""
    return _answer(attack, "steps_of_a_pass", WHOLE, defense, lambda: attack.steps_of_a_pass(defense))


def _answer(system: Attack | Measurement, method: str, expected: Expected, defense: Defense, ask: Callable[[], T]) -> T:
    """Return what a method of a system returns for a defense; raises InputError if that is not as expected."""
    name = f"defense {type(defense).__name__}"
    with contained(f"{name}: {type(system).__name__}.{method}() fails"):
        try:
            return checked(system, f"{method}()", expected, ask)
        except ContractError as error:
            raise InputError(f"{name}: {error}") from error
