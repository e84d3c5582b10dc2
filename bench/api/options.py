"""Options of the Python interface: those of the command line by their long names, and how a model is used."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from manifold_bench.bench.api.callers import argument
from manifold_bench.bench.arguments import run_parser
from manifold_bench.bench.errors import InputError
from manifold_bench.bench.text import nearest

USAGE = ("normalize", "rejects", "randomized", "draws", "classes")
"""Options of `evaluate` that say how the model is used."""

NARROWING = ("dataset", "defense", "attack", "norm", "eps")
"""Options of the command line in whose place `evaluate` has arguments of its own."""

DEFAULTS = vars(run_parser().parse_args([]))
"""Options of the command line by their long names, with their defaults."""

SWITCHES = ("diagnose", *(name for name, default in DEFAULTS.items() if isinstance(default, bool)))
"""Options that are True or False; None leaves `diagnose` to the matrix."""

OPTIONS = tuple(sorted(DEFAULTS))
"""Options of `run`."""

NOT_OF_EVALUATE = ("matrix", "dry_run", *NARROWING)

EVALUATION = (*("attacks", "norm", "eps"), *USAGE, *(one for one in OPTIONS if one not in NOT_OF_EVALUATE))
"""Options of `evaluate`."""


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
                raise InputError(f"{name}: {value!r} is not allowed; give True or False")
            unset = [f"--no-{name}"] if DEFAULTS[name] is None and value is False else []
            words += [flag] if value else unset
        elif value is not None:
            with argument(name):
                words += [word for one in _values(name, value) for word in (flag, str(one))]
    try:
        return run_parser().parse_args(words)
    except InputError as error:
        said = str(error).removeprefix("argument --").partition("; see manifold-bench")[0]
        raise InputError(said) from error


def _values(name: str, value: object) -> list[object]:
    """Return the values of an option; raises InputError for none, for several where it takes one, and for True."""
    values = several(value)
    single = len(values) == 1 or isinstance(DEFAULTS[name], list)
    if isinstance(value, Mapping) or not single or any(isinstance(one, (bool, np.bool_, bytes)) for one in values):
        raise InputError(f"{name}: {value!r} is not allowed; give one value")
    return values


def several(value: object) -> list[object]:
    """Return the values of an option that is given as one value or as several; a tensor of one number is that."""
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0:
        return [value.item()]
    return list(value) if isinstance(value, Iterable) and not isinstance(value, (str, bytes)) else [value]


def pair(normalize: Any) -> Any:  # what users hand in, checked here
    """Return mean and standard deviation as they are given; raises InputError for what is no pair."""
    try:
        numbers = all(torch.as_tensor(one, dtype=torch.float64).isfinite().all() for one in normalize)
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
                raise InputError(f"{name}: {value!r} is not allowed; give True or False")
            return bool(value) or None
        if name == "normalize":
            return pair(value)
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise InputError(f"{name}: {value!r} is not allowed; give a whole number ≥ 1")
        return int(value)


def check_names(options: Mapping[str, object], known: Sequence[str]) -> None:
    """Check that these options exist; raises InputError, with the nearest one."""
    for name in options:
        if name not in known:
            raise InputError(f"{name}: no such option{nearest(name, list(known))}; there are {', '.join(known)}")
