"""Options of the Python interface: those of the command line by their long names, and how a model is used."""

from __future__ import annotations

import json
import os
import re
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from numbers import Number
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from manifold_bench.bench.api.callers import argument
from manifold_bench.bench.api.named import by_name
from manifold_bench.bench.arguments import run_parser
from manifold_bench.bench.errors import InputError
from manifold_bench.bench.text import nearest
from manifold_bench.defenses.errors import shortened

USAGE = ("normalize", "rejects", "randomized", "draws", "classes")
"""Options of `evaluate` that say how the model is used."""

LONGEST = 80
"""Largest number of characters with which a message shows an object of a program as it is."""

NARROWING = ("dataset", "defense", "attack", "norm", "eps")
"""Options of the command line in whose place `evaluate` has arguments of its own."""

DEFAULTS = vars(run_parser().parse_args([]))
"""Options of the command line by their long names, with their defaults."""

SWITCHES = ("diagnose", *(name for name, default in DEFAULTS.items() if isinstance(default, bool)))
"""Options that are True or False; None leaves `diagnose` to the matrix."""

OPTIONS = tuple(sorted(DEFAULTS))
"""Options of `run`."""

NOT_OF_EVALUATE = ("matrix", "dry_run", "data", *NARROWING)

EVALUATION = (*("attacks", "norm", "eps"), *USAGE, *(one for one in OPTIONS if one not in NOT_OF_EVALUATE))
"""Options of `evaluate`."""


class EvaluationOptions(TypedDict, total=False):
    """The options of `evaluate` that are no arguments of their own, with their types, for editors and type checkers."""

    normalize: object
    rejects: bool
    randomized: bool
    draws: int
    classes: int
    n: int | None
    budget: str | None
    diagnose: bool | None
    seed: int | None
    device: str
    quiet: bool
    out: str | Path | None
    export: str | Path | None
    workers: int | None
    engine: str
    address: str | None


def arguments(matrix: str, options: Mapping[str, object]) -> Namespace:
    """Return options as the arguments of the command `run`; raises InputError for those that it doesn't have."""
    for name in options:
        if name in USAGE and name != "classes":
            table = f'{{"model": model, {json.dumps(name)}: …}}'
            raise InputError(f'{name}: say it with the model, as defenses={{"mine": {table}}}, or use evaluate')
    check_names(options, ("defenses", *OPTIONS))
    words = ["--matrix", matrix]
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if name in SWITCHES:
            if value is not True and value is not False and value is not DEFAULTS[name]:
                raise InputError(f"{name}: {shown(value)} is not allowed; give True or False")
            unset = [f"--no-{name}"] if DEFAULTS[name] is None and value is False else []
            words += [flag] if value else unset
        elif value is not None:
            with argument(name):
                words += [word for one in _values(name, value) for word in (flag, str(one))]
    try:
        return run_parser().parse_args(words)
    except InputError as error:
        said = str(error).removeprefix("argument --").partition(" see manifold-bench")[0].removesuffix(";")
        raise InputError(said) from error


def in_python(message: str) -> str:
    """Return a message of the command `run` with its options as a program writes them: norm for --norm.

    Commands in backquotes stay, and so does what is said of the command line itself.
    """
    parts = message.split("`")
    parts[::2] = [re.sub(r"(?<![\w-])(?<!command line with )--([a-z]+)(?=\W|$)", _option, part) for part in parts[::2]]
    return "`".join(parts)


def _option(found: re.Match[str]) -> str:
    return found[1] if found[1] in DEFAULTS else found[0]


def _values(name: str, value: object) -> list[object]:
    """Return the values of an option; raises InputError for none, for several where it takes one, and for True.

    Values are texts, paths and numbers.
    """
    values = several(value)
    of_a_kind = not isinstance(value, Mapping)
    of_a_kind &= all(isinstance(one, (str, os.PathLike, Number, np.generic)) for one in values)
    if name == "dataset" and not of_a_kind:
        raise InputError(
            f"dataset: {shown(value)} is no name; give names of data sets or a folder, or use "
            "mb.evaluate(model, (images, labels), …)"
        )
    if name == "defense" and not of_a_kind:
        raise InputError(f'defense: {shown(value)} is no name; hand models in as defenses={{"mine": model}}')
    if name == "attack" and not of_a_kind:
        hows = filter(None, (by_name("attacks", one) for one in values))
        how = f"{shown(value)} is no name; attacks with parameters are for mb.evaluate, or a matrix file"
        raise InputError(f"attack: {next(hows, how)}")
    single = len(values) == 1 or isinstance(DEFAULTS[name], list)
    if not (single and of_a_kind) or any(isinstance(one, (bool, np.bool_)) for one in values):
        hint = "; images and labels are for mb.evaluate" if name == "data" and not of_a_kind else ""
        raise InputError(f"{name}: {shown(value)} is not allowed; give one value{hint}")
    return values


def check_plain(name: str, value: object) -> None:
    """Check that a value is no tensor or array of several dimensions, nor a list of such; raises InputError."""
    with argument(name):
        parts = [value, *(value[:3] if isinstance(value, (list, tuple)) else ())]
        if any(isinstance(one, (Tensor, np.ndarray)) and one.ndim > 1 for one in parts):
            raise InputError(f"{name}: {shown(value)} is not allowed; give a number or a text, or a list of these")


def entries_of(attacks: str | Mapping[str, object] | Iterable[str | Mapping[str, object]]) -> list[dict[str, object]]:
    """Return attacks as the tables of a matrix file, from one or several names or tables; raises InputError."""
    try:
        many = list(attacks) if isinstance(attacks, Iterable) and not isinstance(attacks, (str, Mapping)) else [attacks]
        for one in many:
            if how := by_name("attacks", one.get("name", "") if isinstance(one, Mapping) else one):
                raise InputError(f'attacks: {how}, or a table with parameters, as {{"name": "pgd", "steps": 100}}')
        tables: list[dict[str, object]] = [{"name": one} if isinstance(one, str) else dict(one) for one in many]
        if not all(isinstance(name, str) for table in tables for name in table):
            raise TypeError
        for table in tables:
            for name, value in table.items():
                check_plain(f"attacks: {name}", value)
        return tables
    except (TypeError, ValueError) as error:
        raise InputError('attacks: give names, or tables as {"name": "pgd", "steps": 100}, in a list') from error


def shown(value: object) -> str:
    """Return a value that a program gave, for a message on one line: without the content of tensors and arrays."""
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim:
        return f"{type(value).__name__} of shape {tuple(value.shape)}"
    if isinstance(value, (tuple, list)) and type(value) in (tuple, list):
        inside = ", ".join(map(shown, value[:3])) + ", …" * (len(value) > 3)
        return f"({inside})" if isinstance(value, tuple) else f"[{inside}]"
    if isinstance(value, dict):
        return f"dict of {len(value)}"
    text = shortened(repr(value))
    return text if len(text) <= LONGEST or isinstance(value, str) else type(value).__name__


def several(value: object) -> list[object]:
    """Return the values of an option that is given as one value or as several; tensors and arrays hold numbers."""
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim < 2:
        return list(value.reshape(-1).tolist())
    return list(value) if isinstance(value, Iterable) and not isinstance(value, (str, bytes)) else [value]


def pair(normalize: Any) -> Any:  # what users hand in, checked here
    """Return mean and standard deviation as they are given; raises InputError for what is no pair."""
    try:
        values = [torch.as_tensor(one, dtype=torch.float64) for one in normalize]
        numbers = all(one.ndim < 2 and one.isfinite().all() for one in values)
        two = isinstance(normalize, (tuple, list, Tensor, np.ndarray)) and len(normalize) == 2
    except (TypeError, ValueError, RuntimeError):
        two = numbers = False
    if not (two and numbers):
        raise InputError("normalize: give (mean, standard deviation), each a number or one for each channel")
    return normalize


def usage_of(name: str, value: object) -> Any:  # the type depends on the option
    """Return an option that says how a model is used, None where it says nothing; raises InputError."""
    if value is None:
        return None
    with argument(name):
        if name in ("rejects", "randomized"):
            if not isinstance(value, (bool, np.bool_)):
                raise InputError(f"{name}: {shown(value)} is not allowed; give True or False")
            return bool(value) or None
        if name == "normalize":
            return pair(value)
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise InputError(f"{name}: {shown(value)} is not allowed; give a whole number ≥ 1")
        return int(value)


def check_names(options: Mapping[str, object], known: Sequence[str]) -> None:
    """Check that these options exist; raises InputError, with the nearest one."""
    for name in options:
        if name not in known:
            listed = nearest(name, [*known, "data"], f"there are {', '.join(known)}")
            raise InputError(f"{name}: no such option{listed}")
