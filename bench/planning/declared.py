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
from manifold_bench.defenses import checks
from manifold_bench.defenses.base import Defense

T = TypeVar("T")


def check_attack(attack: Attack) -> None:
    """Check everything that an attack declares independently of a defense; raises ContractError."""
    checks.check(attack, "norms", checks.names("norms", *NORMS))
    checks.check(attack, "knowledge", checks.one_of(*get_args(Knowledge)))
    checks.check(attack, "aims", checks.one_of("none", "wrong", "every"))
    checks.check(attack, "minimal", checks.FLAG)
    checks.check(attack, "revision", checks.TEXT)
    pair = checks.Expected("two numbers ≥ 0: forward and backward passes for one input", _are_passes)
    checks.checked(attack, "passes()", pair, attack.passes)
    checks.checked(attack, "__repr__()", checks.TEXT, attack.__repr__)


def _are_passes(value: object) -> bool:
    if not isinstance(value, tuple | list):
        return False
    return len(value) == 2 and all(isinstance(n, int | float) and 0 <= n < math.inf for n in value)


def check_measurement(measurement: Measurement) -> None:
    """Check everything that a measurement declares independently of a defense; raises ContractError."""
    checks.check(measurement, "version", checks.WHOLE)
    checks.check(measurement, "headline", checks.TEXT)
    checks.check(measurement, "title", checks.TEXT)
    checks.check(measurement, "others", checks.names("labels of defenses"))
    checks.checked(measurement, "__repr__()", checks.TEXT, measurement.__repr__)


def unsuited(system: Attack | Measurement, defense: Defense) -> str | None:
    """Return why an attack or a measurement makes no sense for a defense, or None; raises InputError."""
    return _answer(system, "unsuited", checks.REASON, defense, lambda: system.unsuited(defense))


def solver_steps(attack: Attack, defense: Defense) -> int:
    """Return how many solver steps of the defense each pass of an attack costs; raises InputError."""
    return _answer(attack, "steps_of_a_pass", checks.WHOLE, defense, lambda: attack.steps_of_a_pass(defense))


def _answer(
    system: Attack | Measurement, method: str, expected: checks.Expected, defense: Defense, ask: Callable[[], T]
) -> T:
    """Return what a method of a system returns for a defense; raises InputError if that is not as expected."""
    name = f"defense {type(defense).__name__}"
    with contained(f"{name}: {type(system).__name__}.{method}() fails"):
        try:
            return checks.checked(system, f"{method}()", expected, ask)
        except checks.ContractError as error:
            raise InputError(f"{name}: {error}") from error
