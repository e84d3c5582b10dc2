"""The docstring of a registered system's class, and its parameters with their types, defaults and meanings."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from types import UnionType
from typing import Annotated, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from manifold_bench.attacks.base import Attack
from manifold_bench.defenses.base import Defense, Trainable
from manifold_bench.defenses.identity import Kind

SIGNS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}

FROM_THE_ENTRY = ("attack", "parameters")
"""Fields of a library's adapter that no matrix file sets; the entry's name and its other keys fill them."""

LIBRARY_ARGUMENTS: dict[Kind, str] = {
    "attacks": (
        "Arguments of the library's class are written directly in the attack's table, under the library's names: "
        '`{ name = "foolbox:LinfPGD", eps = 0.1, steps = 10 }` in a matrix file, '
        '`{"name": "foolbox:LinfPGD", "steps": 10}` in Python.'
    ),
    "defenses": (
        "Arguments of the library's class are written directly in the defense's table, under the library's names: "
        '`{ name = "art:JpegCompression", quality = 50 }` in a matrix file.'
    ),
}
"""How arguments of a library's class are given to an adapter of each kind."""


class Parameter(NamedTuple):
    """A key that a matrix file may set.

    allowed: type and range in words. default: default as in TOML; empty if a value must be given. meaning: text about
    it in the docstring of the class or of a base; may be empty.
    """

    name: str
    allowed: str
    default: str
    meaning: str


def parameters(kind: Kind, cls: type[object]) -> list[Parameter]:
    """Return the parameters of a system, those of its base classes first; the list is empty for a data set.

    kind: "datasets", "defenses" or "attacks". cls: the class of the system.
    """
    owner = cls.Spec if issubclass(cls, Trainable) else cls  # the parameters of defenses are in a separate class
    if kind == "datasets" or not dataclasses.is_dataclass(owner):
        return []
    hints = get_type_hints(owner, include_extras=True)
    given = ("shape", "num_classes") if kind == "defenses" else ()  # these follow from the data
    filled = FROM_THE_ENTRY if _is_adapter(cls) else ()
    fields = [one for one in dataclasses.fields(owner) if one.name not in (*given, *filled)]
    meanings = _meanings(owner, [one.name for one in fields])
    ranges = {one.name: allowed(hints[one.name]) for one in fields}
    if issubclass(cls, Attack):
        ranges["norm"] = allowed(Literal[cls.norms])  # the norms that this attack supports
    return [Parameter(one.name, ranges[one.name], _default(one), meanings.get(one.name, "")) for one in fields]


def explanation(kind: Kind, cls: type[object]) -> list[str]:
    """Return the paragraphs of a class' docstring after the first one, without their texts about parameters.

    The last paragraph about a library's adapter says how arguments of the library's classes are given.
    """
    names = [one.name for one in parameters(kind, cls)]
    paragraphs = (inspect.getdoc(cls) or "").split("\n\n")[1:]
    found = [prose for one in paragraphs if (prose := _about(one, names)[0].strip())]
    return [*found, LIBRARY_ARGUMENTS[kind]] if _is_adapter(cls) else found


def _is_adapter(cls: type[object]) -> bool:
    """Return whether a class runs the classes of a library, so that its parameters are theirs."""
    return issubclass(cls, (Attack, Defense)) and cls.open_parameters


def _meanings(owner: type[object], names: list[str]) -> dict[str, str]:
    """Return the texts of docstrings about the parameters with these names; a class' own text wins over its bases'."""
    found: dict[str, str] = {}
    for cls in owner.__mro__[:-1]:
        for paragraph in (cls.__doc__ or "").split("\n\n"):
            _, *parts = _about(paragraph, names)
            for keys, text in zip(parts[::2], parts[1::2], strict=True):
                found = {key: text.strip(" ;") for key in keys.split(", ")} | found
    return found


def _about(paragraph: str, names: list[str]) -> list[str]:
    """Split a paragraph into prose, keys and texts in turn: `Climbs. steps: number.` → Climbs. | steps | number."""
    name = "|".join(map(re.escape, names)) or "(?!)"
    return re.split(rf"(?:^|(?<=[.;)] ))((?:(?:{name}), )*(?:{name})): ", " ".join(paragraph.split()))


def allowed(hint: object) -> str:
    """Return a type hint in words: `Annotated[int, Ge(1)] | None` → int ≥ 1, or none."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is type(None):
        return "none"
    if origin is Annotated:
        limits = ((sign, getattr(one, name, None)) for one in arguments[1:] for name, sign in SIGNS.items())
        range_ = ", ".join(f"{sign} {limit}" for sign, limit in limits if limit not in (None, math.inf))
        return f"{allowed(arguments[0])} {range_}".rstrip()
    if origin is Literal:
        return " | ".join(f'"{one}"' for one in arguments)
    if origin is tuple:
        return f"array of {allowed(arguments[0])}"
    if origin in (Union, UnionType):
        return ", or ".join(map(allowed, arguments))
    if origin is not None or dataclasses.is_dataclass(hint):
        return "table"
    return str(getattr(hint, "__name__", hint))


def _default(field: dataclasses.Field[object]) -> str:
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if value is dataclasses.MISSING:
        return ""
    if value is None:
        return "none"
    if dataclasses.is_dataclass(value):
        return "its own defaults"
    return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)
