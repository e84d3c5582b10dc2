"""The labels of systems in tables: their defaults, and the check that they tell systems apart."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence

from manifold_bench.bench.errors import InputError
from manifold_bench.bench.planning.matrix import AttackChoice
from manifold_bench.bench.records.schema import CALIBRATION, CLEAN, PROBE, WORST_CASE
from manifold_bench.bench.text import eps_text, is_printable, printable, without_folders
from manifold_bench.defenses.identity import JsonObject

RESERVED = f"{CLEAN}, {CALIBRATION}, {WORST_CASE} and what begins with {PROBE}"
"""The labels that systems may not have, for a message."""


def label(name: str, parameters: JsonObject) -> str:
    """Return the default label of a system: `name`, or `name(key=value, …)` if parameters are set.

    Files are without their folders, because a label is a part of identities, and folders have other paths elsewhere.
    """
    name = without_folders(name)
    if not parameters:
        return name
    return f"{name}({', '.join(f'{key}={value_text(value)}' for key, value in sorted(parameters.items()))})"


def non_default(cls: type, values: JsonObject) -> JsonObject:
    """Return the values that differ from the defaults of a dataclass' fields."""
    defaults = {field.name: field.default for field in dataclasses.fields(cls)}
    return {key: value for key, value in values.items() if value != defaults.get(key, dataclasses.MISSING)}


def value_text(value: object) -> str:
    """Return a parameter's value as labels show it: numbers as in a matrix file, and fractions such as 8/255."""
    if isinstance(value, float) and "/" in (fraction := eps_text(value)):
        return fraction
    return value if isinstance(value, str) else json.dumps(value).replace('"', "")


def check_labels(
    place: str, labels: Sequence[str], together: Callable[[int, int], bool] = lambda first, second: True
) -> None:
    """Check that labels differ and that none is reserved; raises InputError.

    together: function of two positions, which says whether the systems there ever stand in the same table.
    """
    for index, name in enumerate(labels):
        if not is_printable(name):
            raise InputError(f"{place}[{index}]: {printable(name)!r} holds control characters; give it another label")
        if name in (CLEAN, CALIBRATION, WORST_CASE) or name.startswith(PROBE):
            raise InputError(
                f"{place}[{index}]: {name!r} is a reserved name (reserved: {RESERVED}); give another label"
            )
        if any(name == labels[other] and together(other, index) for other in range(index)):
            raise InputError(f"{place}[{index}]: {name!r} is given twice; give one of them another label")


def overlap(one: AttackChoice, other: AttackChoice) -> bool:
    """Return whether two attacks have the same norm, and a data set and a defense in common."""
    pairs = ((one.datasets, other.datasets), (one.defenses, other.defenses))
    return one.attack.norm == other.attack.norm and all(
        first is None or second is None or set(first) & set(second) for first, second in pairs
    )
