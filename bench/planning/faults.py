"""Messages for faults in a matrix file: which key, what is wrong, and what is allowed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Literal, get_args, get_origin, get_type_hints

from pydantic import ValidationError

from manifold_bench.bench.text import nearest
from manifold_bench.defenses.identity import JsonObject

UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")


def explain(error: ValidationError, place: str, owner: type) -> str:
    """Return the first fault of a validation as `place.key[2]: value is not …; what is allowed`.

    Unknown keys come before others.

    owner: model or dataclass that was validated, for the keys that are allowed in place of a misspelt one.
    """
    fault = min(error.errors(), key=lambda one: one["type"] not in UNKNOWN_KEY)  # a misspelt key is missing, too
    path, known = keys_at(owner, fault["loc"][:-1] if fault["type"] in UNKNOWN_KEY else fault["loc"])
    for part in [*path, *fault["loc"][-1:]] if fault["type"] in UNKNOWN_KEY else path:
        place += f"[{part}]" if isinstance(part, int) else f".{unwrapped(part)}" if place else unwrapped(part)
    context: JsonObject = fault.get("ctx", {})
    kind, value = fault["type"], fault["input"]
    if kind in UNKNOWN_KEY:
        listed = nearest(str(fault["loc"][-1]), known, f"allowed: {', '.join(known)}")
        return f"{place}: unknown key{listed}"
    if kind == "missing":
        return f"{place}: missing; give it"
    if kind == "value_error":
        return f"{place}: {unwrapped(context['error'])}"
    if kind == "union_tag_invalid":
        return f"{place}: {context['tag']!r} is not allowed; give {context['expected_tags']}"
    shown = unwrapped(json.dumps(value, default=str, ensure_ascii=False))
    shown = shown if len(shown) <= 60 else shown[:57] + "…"
    if place.startswith("attacks") and ".eps" in place and kind == "greater_than":
        return f"{place}: {shown} is not a perturbation size; give numbers > 0 (L∞: at most 1)"
    hint = {
        "greater_than": "is not allowed; give a number > {gt}",
        "greater_than_equal": "is not allowed; give a number ≥ {ge}",
        "less_than_equal": "is not allowed; give a number ≤ {le}",
        "less_than": "is not allowed; give a finite number < {lt}",
        "too_short": "is empty; give at least one",
        "literal_error": "is not allowed; give {expected}",
        "finite_number": "is not allowed; give a finite number",
        "int_type": "is not a whole number",
        "int_from_float": "is not a whole number",
        "float_type": "is not a number",
        "bool_type": "is not true or false",
        "string_type": "is not a text",
        "tuple_type": "is not a list",
        "list_type": "is not a list",
        "model_type": "is neither a name nor a table with a name",
        "model_attributes_type": "is not a table of parameters",
        "dataclass_type": "is not a table of parameters",
        "dataclass_exact_type": "is not a table of parameters",
    }.get(kind)
    return f"{place}: {shown} {hint.format(**context) if hint else 'is not allowed: ' + unwrapped(fault['msg'])}"


def keys_at(owner: type, path: Iterable[str | int]) -> tuple[list[str | int], list[str]]:
    """Return the path as in the file, and the names of the fields that are allowed there.

    owner: model or dataclass that the path starts from. path: the path of a validation error, which has the tag of the
    chosen class behind each value that may be of several classes.
    """
    known: dict[str, type] = {}
    there: list[str | int] = []
    for name in path:
        if isinstance(name, str) and name in known:
            owner = known[name]
            known = {}
            continue
        there.append(name)
        if isinstance(name, str):
            classes = list(_classes(get_type_hints(owner).get(name)))
            known = {tag: cls for cls in classes for tag in _tags(cls)}
            owner = classes[0] if classes else owner
    return there, sorted(name for name in get_type_hints(owner) if not name.startswith("_"))


def _classes(hint: object) -> Iterator[type]:
    """Yield every class in a type hint, first the classes of the hint's arguments."""
    for part in get_args(hint):
        yield from _classes(part)
    if isinstance(hint, type):
        yield hint


def _tags(cls: type) -> Iterator[str]:
    """Yield the tags of a class, by which it is chosen among others: fields with one value, as `Literal["adam"]`."""
    for hint in get_type_hints(cls).values():
        if get_origin(hint) is Literal and len(get_args(hint)) == 1:
            yield get_args(hint)[0]


def unwrapped(text: object) -> str:
    """Return the text with line breaks and runs of spaces replaced by single spaces."""
    return " ".join(str(text).split())
