"""What to write in place of an object where a name is needed, and which argument a message about a matrix is about."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from numbers import Number

import numpy as np
from torch import Tensor

from manifold_bench.bench.planning.registry import BASES
from manifold_bench.defenses.identity import Kind, registered


def by_name(kind: Kind, given: object) -> str:
    """Return what a class, a function or an object is and how it is named; "" for numbers, arrays and containers.

    kind: "attacks" or "defenses".
    """
    made = given if isinstance(given, type) or inspect.isroutine(given) else type(given)
    if isinstance(given, (Number, np.ndarray, Tensor)) or made.__module__ == "builtins":
        return ""
    name, points = made.__name__, registered(kind)
    if inspect.isroutine(given):
        return (
            f"{name} is a function; write a class that derives from {BASES[kind].__module__}.{BASES[kind].__name__} "
            f'(docs/new_{kind[:-1]}.md), and give its name, as "my_file.py:MyClass"'
        )
    what = f"{name} is a class" if made is given else f"an object of the class {name} cannot be given"
    library = made.__module__.partition(".")[0]
    known = [one for one, point in points.items() if point.value == f"{made.__module__}:{name}"]
    if known or library in points:
        return f'{what}; give its name, "{known[0] if known else f"{library}:{name}"}"'
    if made.__module__ == "__main__" or "<locals>" in made.__qualname__:
        return f'{what}; save the class in a file of its own, and give its name, "my_file.py:{name}"'
    return f'{what}; give its name, "{made.__module__}:{name}"'


def argument_of(message: str, attacks: Sequence[Mapping[str, object]]) -> str:
    """Return a message about the matrix that `evaluate` makes, with its own argument in place of the matrix's key.

    attacks: the attacks as they were given; norm and eps of one that has none of its own are arguments of `evaluate`.
    """
    place, found, said = message.partition(": ")
    of_attack = re.fullmatch(r"attacks\[(\d+)\]\.(norm|eps)(\[\d+\])?", place)
    if of_attack and of_attack[2] not in attacks[int(of_attack[1])]:
        place = of_attack[2]
    if place.removesuffix(".name") == "datasets[0]":
        place = "data"
    return f"{place}{found}{said}"
