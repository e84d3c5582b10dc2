"""Options of the Python interface: those of the command line by their long names, and how a model is used."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence

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
        if isinstance(DEFAULTS[name], bool) and value is not True and value is not False:
            raise InputError(f"{name}: {value!r} is not allowed; give True or False")
        if value is True:
            words.append(flag)
        elif value is False:
            words += [f"--no-{name}"] if DEFAULTS[name] is None else []
        elif value is not None:
            with argument(name):
                words += [word for one in _values(name, value) for word in (flag, str(one))]
    try:
        return run_parser().parse_args(words)
    except InputError as error:
        said = str(error).removeprefix("argument --").partition("; see manifold-bench")[0]
        raise InputError(said) from error


def _values(name: str, value: object) -> list[object]:
    """Return the values of an option; raises InputError if one that takes a single value has others."""
    values = several(value)
    if isinstance(value, Mapping) or (len(values) != 1 and not isinstance(DEFAULTS[name], list)):
        raise InputError(f"{name}: {value!r} is not allowed; give one value")
    return values


def several(value: object) -> list[object]:
    """Return the values of an option that is given as one value or as several."""
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value]


def check_names(options: Mapping[str, object], known: Sequence[str]) -> None:
    """Check that these options exist; raises InputError, with the nearest one."""
    for name in options:
        if name not in known:
            raise InputError(f"{name}: no such option{nearest(name, list(known))}; there are {', '.join(known)}")
