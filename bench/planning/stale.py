"""Checks that modules which a program has imported are what their files hold now.

A job in the program's own process runs the imported module, while keys of results are made of the files.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

from manifold_bench.bench.errors import InputError
from manifold_bench.defenses.identity import source_files


def check_not_stale(systems: Iterable[tuple[str, type]]) -> None:
    """Raise InputError if a file of users' code that systems run has changed since this program imported it.

    A system is its name in the matrix and its class. Left out are modules that a hook changes as it imports them, as
    pytest does. Compared are all functions and methods that a module has made, and
    its constants.
    """
    names = {prefix for name, _ in systems if (prefix := name.partition(":")[0]) != name}
    named = [Path(prefix).stem if prefix.endswith(".py") else prefix for prefix in names]
    files = set(source_files(sorted({*named, *(base.__module__ for _, cls in systems for base in cls.__mro__)})))
    ends = tuple(file.name for file in files)
    for module in list(sys.modules.values()):
        place = getattr(module, "__file__", None)
        if not isinstance(place, str) or not place.endswith(ends) or (file := Path(place).resolve()) not in files:
            continue
        plain = type(getattr(module.__spec__, "loader", None)) is SourceFileLoader  # others change code, as pytest does
        if plain and _is_stale(module, file):
            raise InputError(
                f"{file}: it has changed since this program imported it; start the program again, or reload the module "
                f"with importlib.reload(sys.modules[{module.__name__!r}])"
            )


def _is_stale(module: ModuleType, file: Path) -> bool:
    """Return whether a function, a method or a constant of a module is not in its file as it is now."""
    try:
        tree = ast.parse(file.read_bytes())
        present = set(map(_content, _codes(compile(tree, str(file), "exec", dont_inherit=True))))
    except (OSError, SyntaxError, ValueError):
        return True
    if any(_content(code) not in present for code in _made_in(module, file)):
        return True
    return any(getattr(module, name, value) != value for name, value in _literals(tree).items())


def _literals(tree: ast.Module) -> dict[str, object]:
    """Return the names that a module gives numbers and texts, once and at its top level, with their values."""
    assigned = Counter(
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    )
    found: dict[str, object] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.value, ast.Constant):
            target = node.targets[0]
            if isinstance(target, ast.Name) and assigned[target.id] == 1:
                found[target.id] = node.value.value
    return found


def _content(code: CodeType) -> tuple[object, ...]:
    """Return what a function computes, whatever line it begins on."""
    constants = [one for one in code.co_consts if not isinstance(one, CodeType)]
    shown = [sorted(map(repr, one)) if isinstance(one, frozenset) else repr(one) for one in constants]
    return code.co_qualname, code.co_code, code.co_names, repr(shown)


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _made_in(module: ModuleType, file: Path) -> Iterator[CodeType]:
    """Yield the code of the functions and methods that a module has made, and of the functions inside them."""
    for one in list(vars(module).values()):
        for member in list(vars(one).values()) if isinstance(one, type) else [one]:
            function = inspect.unwrap(getattr(member, "fget", None) or getattr(member, "__func__", member))
            own = isinstance(function, FunctionType) and function.__module__ == module.__name__
            if own and Path(function.__code__.co_filename).resolve() == file:  # dataclasses make some elsewhere
                yield from _codes(function.__code__)
