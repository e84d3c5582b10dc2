"""The docstring of a registered system's class, and its parameters with their types, defaults and meanings."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from types import UnionType
from typing import Annotated, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from manifold_bench.attacks.adapter import LibraryAttack
from manifold_bench.attacks.base import Attack
from manifold_bench.defenses.base import Defense, Trainable
from manifold_bench.defenses.identity import Kind

SIGNS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}

FROM_THE_ENTRY = ("attack", "parameters")
"""Fields of a library's adapter that no matrix file sets; the entry's name and its other keys fill them."""

EXAMPLES: dict[tuple[Kind, str], str] = {
    ("attacks", "art"): "ProjectedGradientDescentPyTorch",
    ("attacks", "foolbox"): "LinfPGD",
    ("defenses", "art"): "JpegCompression",
}
"""Class that shows how entries of a library are written, by kind and by the adapter's name."""

TAGS = ("method", "model")
"""Keys that say which form a table has."""

PYTHON = {"true": "True", "false": "False"}
"""Values of TOML that Python writes otherwise."""


class Parameter(NamedTuple):
    """A key that a matrix file may set.

    allowed: type and range in words. default: default as in TOML; empty if a value must be given. meaning: text about
    it in the docstring of the class or of a base; may be empty. keys: for a table, the keys of each of its forms with
    their defaults.
    """

    name: str
    allowed: str
    default: str
    meaning: str = ""
    keys: tuple[str, ...] = ()


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
    return [
        Parameter(one.name, ranges[one.name], _default(one), meanings.get(one.name, ""), _keys(hints[one.name]))
        for one in fields
    ]


def arguments(kind: Kind, adapter: type[object], name: str) -> list[Parameter]:
    """Return the arguments of a library's class that an entry may set; raises ValueError for a class that it lacks.

    adapter: class that runs the library's classes. name: name of the library's class.
    """
    if issubclass(adapter, LibraryAttack):
        signature = inspect.signature(adapter.named(name)).parameters
        return [
            Parameter(key, allowed(signature[key].annotation), "" if value is inspect.Parameter.empty else _text(value))
            for key, value in adapter.settable(name).items()
        ]
    named = getattr(adapter, "named", None)  # `Defense` has it, adapters of other kinds do not
    own = {one.name for one in parameters(kind, adapter)}
    return [one for one in parameters(kind, named(name)) if one.name not in own] if named else []


def explanation(kind: Kind, cls: type[object]) -> list[str]:
    """Return the paragraphs of a class' docstring after the first one, without their texts about parameters."""
    names = [one.name for one in parameters(kind, cls)]
    paragraphs = (inspect.getdoc(cls) or "").split("\n\n")[1:]
    return [prose for one in paragraphs if (prose := _about(one, names)[0].strip())]


def entry_text(kind: Kind, adapter: type[object], library: str, name: str = "") -> str:
    """Return a text on how arguments of a library's class are given, with an example; empty if no class is known.

    library: name of the adapter. name: name of the library's class; empty: one of `EXAMPLES`.
    """
    if not (name := name or EXAMPLES.get((kind, library), "")):
        return ""
    plain = [one for one in arguments(kind, adapter, name) if one.default and one.default not in ("none", '""')]
    shown = [one for one in plain if one.default.isdecimal()] or plain
    values = {"name": f'"{library}:{name}"'} | {one.name: one.default for one in shown[:1]}
    size = {"eps": "0.1"} if kind == "attacks" else {}
    table = ", ".join(f"{key} = {value}" for key, value in ({"name": values["name"]} | size | values).items())
    text = (
        f"Arguments of the library's class are written directly in the {kind.removesuffix('s')}'s table, under the "
        f"library's names: `{{ {table} }}` in a matrix file"
    )
    python = ", ".join(f'"{key}": {PYTHON.get(value, value)}' for key, value in values.items())
    return f"{text}, `{{{python}}}` in Python." if kind == "attacks" else f"{text}."


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
        return ", or ".join(dict.fromkeys(map(allowed, arguments)))
    if origin is not None or dataclasses.is_dataclass(hint):
        return "table"
    if hint is inspect.Parameter.empty:
        return "any"
    return str(getattr(hint, "__name__", hint))


def _keys(hint: object) -> tuple[str, ...]:
    """Return the keys and defaults of each form of a table: one text for each dataclass in the hint."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        fields = sorted(dataclasses.fields(hint), key=lambda one: one.name not in TAGS)
        texts = ((one.name, _default(one)) for one in fields)
        return (", ".join(f"{name} = {text}" if text else name for name, text in texts),)
    return tuple(text for one in get_args(hint) for text in _keys(one))


def _default(field: dataclasses.Field[object]) -> str:
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return "" if value is dataclasses.MISSING else _text(value)


def _text(value: object) -> str:
    """Return a default as TOML has it; of a table the keys that differ from the defaults of their form."""
    if value is None:
        return "none"
    if dataclasses.is_dataclass(value):
        names = [one.name for one in dataclasses.fields(value) if _default(one) != _text(getattr(value, one.name))]
        tags = [name for name in TAGS if hasattr(value, name)]
        kept = ", ".join(f"{name} = {_text(getattr(value, name))}" for name in [*tags, *names])
        return f"{{ {kept} }}" if kept else "those of its keys"
    return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)
