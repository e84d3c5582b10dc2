"""Checks that modules which a program has imported are what their files hold now.

A job in the program's own process runs the imported module, while keys of results are made of the files.
"""

from __future__ import annotations

import ast
import hashlib
import sys
import warnings
from collections.abc import Iterable, Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

from manifold_bench.bench.errors import InputError
from manifold_bench.defenses.identity import source_files

_seen: dict[str, tuple[object, str]] = {}
"""Each module of users by name: its specification, which a reload replaces, and the hash of its file at first sight."""


def check_not_stale(systems: Iterable[tuple[str, type]]) -> None:
    """Raise InputError if a file of users' code that systems run has changed since this program imported it.

    A system is its name in the matrix and its class. What changed between an import by the program itself and the first
    call is seen in functions and methods alone; later, every change is.
    """
    names = {prefix for name, _ in systems if (prefix := name.partition(":")[0]) != name}
    named = [Path(prefix).stem if prefix.endswith(".py") else prefix for prefix in names]
    files = set(source_files(sorted({*named, *(base.__module__ for _, cls in systems for base in cls.__mro__)})))
    ends = tuple(file.name for file in files)
    for name, module in list(sys.modules.items()):
        place = vars(module).get("__file__") if isinstance(module, ModuleType) else None
        if not isinstance(place, str) or not place.endswith(ends) or (file := Path(place).resolve()) not in files:
            continue
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        spec, first = _seen.get(name, (None, ""))
        known = spec is not None and spec is module.__spec__
        if (digest != first) if known else _has_another_function(module, file):
            raise InputError(
                f"{file}: it has changed since this program imported it; start the program again, or reload the module "
                f"with importlib.reload(sys.modules[{name!r}])"
            )
        _seen[name] = module.__spec__, digest


def _has_another_function(module: ModuleType, file: Path) -> bool:
    """Return whether a function of a module, or a method of its classes, computes something else than in its file.

    Left out are modules that a hook changes as it imports them, as pytest does, and functions that the file lacks.
    """
    if type(getattr(module.__spec__, "loader", None)) is not SourceFileLoader:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            codes = list(_inside(compile(ast.parse(file.read_bytes()), str(file), "exec", dont_inherit=True)))
    except (OSError, SyntaxError, ValueError):
        return True
    present = set(map(_content, codes))
    named = {code.co_qualname for code in codes}
    made = (one for function in _functions(module) for one in _inside(function.__code__))
    return any(code.co_qualname in named and _content(code) not in present for code in made)


def _inside(code: CodeType) -> Iterator[CodeType]:
    """Yield a code and that of the functions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _inside(constant)


def _content(code: CodeType) -> tuple[object, ...]:
    """Return the bytecode and constants of a function, without its line numbers."""
    constants = [one for one in code.co_consts if not isinstance(one, CodeType)]
    shown = [sorted(map(repr, one)) if isinstance(one, frozenset) else repr(one) for one in constants]
    return code.co_qualname, code.co_code, code.co_names, repr(shown)


def _functions(module: ModuleType) -> Iterator[FunctionType]:
    """Yield the functions and methods that a module has made in its own file."""
    for one in list(vars(module).values()):
        for member in list(vars(one).values()) if isinstance(one, type) else [one]:
            plain: object = member.fget if isinstance(member, property) else member
            plain = plain.__func__ if isinstance(plain, (staticmethod, classmethod)) else plain
            # dataclasses make some functions elsewhere
            if isinstance(plain, FunctionType) and plain.__code__.co_filename == vars(module)["__file__"]:
                yield plain
