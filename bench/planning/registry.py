"""Names to code: packaging entry points for what is installed, `package.module:Name` for anything else."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterable
from importlib.metadata import EntryPoint
from typing import Any

from manifold_bench.bench.errors import InputError
from manifold_bench.defenses.errors import one_line
from manifold_bench.defenses.identity import Kind, registered

SINGULAR: dict[Kind, str] = {
    "datasets": "data set",
    "defenses": "defense",
    "parts": "part of defenses",
    "attacks": "attack",
    "measurements": "measurement",
    "inspections": "inspection of the diagnosis",
}


def nearest(word: str, known: list[str]) -> str:
    """«; did you mean 'x'?» for the nearest known word, or nothing."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def one_of(place: str, name: str, known: Iterable[str]) -> str:
    """The name, if it is known; raises InputError that says where it stands and what there is."""
    known = list(known)
    if name not in known:
        raise InputError(f"{place}: {name!r} is not in this matrix{nearest(name, known)}; it has: {', '.join(known)}")
    return name


def find(kind: Kind, name: str) -> type[Any]:
    """The class of that name; raises InputError with the nearest known name.

    `library:Class` is an attack adapter's name (art:DeepFool) where `library` is registered, else a module's.
    """
    points = registered(kind)
    prefix, colon, attribute = name.partition(":")
    if name in points:
        return _load(kind, points[name])
    if kind == "attacks" and colon and prefix in points:
        adapter = _load(kind, points[prefix])
        if not adapter.open_parameters:
            raise InputError(f"unknown attack {name!r}; {prefix!r} takes nothing behind a colon")
        return adapter
    if not colon:
        known = list(points)
        raise InputError(
            f"unknown {SINGULAR[kind]} {name!r}{nearest(name, known)}; "
            f"`manifold-bench list` names all {len(known)}; package.module:Name is allowed too"
        )
    if not all(part.isidentifier() for part in [*prefix.split("."), *attribute.split(".")]):
        raise InputError(f"unknown {SINGULAR[kind]} {name!r}; give a registered name or package.module:Name")
    try:
        module = importlib.import_module(prefix)
    except Exception as error:  # it is the user's code: anything may happen
        raise InputError(f"{SINGULAR[kind]} {name!r}: cannot import {prefix!r} ({one_line(error)})") from error
    found = getattr(module, attribute, None)
    if found is None:
        public = [word for word in vars(module) if not word.startswith("_")]
        raise InputError(f"{SINGULAR[kind]} {name!r}: {prefix!r} has no {attribute!r}{nearest(attribute, public)}")
    return _checked(kind, name, found)


def _load(kind: Kind, point: EntryPoint) -> type[Any]:
    try:
        return _checked(kind, point.name, point.load())
    except (ImportError, AttributeError) as error:
        raise InputError(f"{SINGULAR[kind]} {point.name!r}: cannot load {point.value!r} ({one_line(error)})") from error


def _checked(kind: Kind, name: str, found: Any) -> type[Any]:
    """Imported late: `--help` and `list` must not wait for torch."""
    from manifold_bench.attacks.base import Attack
    from manifold_bench.bench.datasets.base import Dataset
    from manifold_bench.bench.measurements.base import Measurement
    from manifold_bench.defenses.base import Defense, Trainable

    base: type[Any] = {
        "datasets": Dataset,
        "defenses": Defense,
        "parts": Trainable,
        "attacks": Attack,
        "measurements": Measurement,
        "inspections": Measurement,
    }[kind]
    if not (isinstance(found, type) and issubclass(found, base)):
        raise InputError(f"{SINGULAR[kind]} {name!r}: {found!r} is not a subclass of {base.__module__}.{base.__name__}")
    if inspect.isabstract(found):
        raise InputError(f"{SINGULAR[kind]} {name!r}: {found.__name__} is abstract; name a complete class")
    return found
