"""Writes tables of a Python program as TOML, so that they are read and checked like those of a matrix file."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from manifold_bench.bench.errors import InputError
from manifold_bench.bench.planning.usercode import contained
from manifold_bench.defenses.errors import shortened


def toml(content: Mapping[str, Sequence[Mapping[str, object]]]) -> str:
    """Return arrays of tables as TOML; tensors and numbers of NumPy are written as numbers.

    Raises InputError for objects that no file can hold.
    """
    lines: list[str] = []
    for key, tables in content.items():
        if not tables:
            lines.insert(0, f"{key} = []")
        for table in tables:
            lines += [
                f"[[{key}]]",
                *(f"{json.dumps(name)} = {_written(name, value)}" for name, value in table.items()),
                "",
            ]
    return "\n".join(lines)


def _written(name: str, value: object) -> str:
    """Return a value as JSON, which is TOML for numbers, texts, truth values and lists; raises InputError for others.

    name: name of the parameter, for the message.
    """
    text = written(name, value)
    try:
        tomllib.loads(f"value = {text}")
    except ValueError as error:
        raise InputError(
            f"{name}: {shortened(text)} is not allowed; give a number, a text, or a list of these, or leave it out"
        ) from error
    return text


def written(name: str, value: object) -> str:
    """Return a value as JSON; tensors and numbers of NumPy become numbers.

    name: name of the parameter. Raises InputError that names it for objects that no file can hold.
    """

    def plain(value: object) -> object:
        if isinstance(value, (Tensor, np.ndarray, np.generic)):
            return value.tolist()
        kind = type(value).__name__
        raise InputError(f"{name}: {kind} is no value of a parameter; give numbers, texts, or lists of these")

    with contained(f"{name}: reading it fails"):
        return json.dumps(value, default=plain, ensure_ascii=False)
