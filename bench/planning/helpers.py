"""Checks that users' files import the modules in their own folders.

A process holds one module of each name, so that Python may take the helper.py of one folder for that of another folder.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder, all_suffixes
from pathlib import Path
from types import ModuleType

from manifold_bench.bench.errors import InputError
from manifold_bench.defenses.identity import is_of_users, locate, reached_modules


@contextmanager
def own_helpers(file: Path, place: str) -> Iterator[None]:
    """Make a user's file importable, and check after its import inside that Python took the modules of its own folder.

    Raises InputError for a module that is taken from elsewhere, here or in the processes that run jobs. After any
    InputError, the modules of the file's folder are forgotten, so that a mended file can be imported in this process.
    place: beginning of messages.
    """
    module, file = file.stem, file.resolve()  # a link may have another name
    path, loaded = list(sys.path), set(sys.modules)
    if str(file.parent) not in path:
        sys.path.append(str(file.parent))
    try:
        _check(module, {file}, place)
        try:
            yield
        finally:  # an import may also fail because of another folder's helper
            for name in _reached(module):
                _check(name, {one for one in _places(file.parent, name) if one.is_file()}, place)
    except InputError:
        sys.path[:] = path
        new = {name: _loaded_from(sys.modules[name]) for name in set(sys.modules) - loaded}
        for name, places in new.items():
            if name == module or not places.isdisjoint(_places(file.parent, name)):
                del sys.modules[name]
        raise


def _check(name: str, files: set[Path], place: str) -> None:
    """Raise InputError if there are such files and Python takes none of them for the module of that name."""
    for taken in _taken(name) if files else ():
        if taken not in {one.resolve() for one in files}:
            own = " or ".join(sorted(map(str, files)))
            rename = "rename one of the two, or use them in separate commands or programs"
            raise InputError(
                f"{place}: Python takes {taken or 'no file'} for the module {name!r}, not {own}; "
                + (rename if is_of_users(name) else f"rename {own}")
            )


def _taken(name: str) -> Iterator[Path | None]:
    """Yield the file of a module in this process, and in one that has not imported the module yet."""
    yield locate(name)[0]
    package = name.rpartition(".")[0]
    if name in sys.modules and (not package or package in sys.modules):
        spec = PathFinder.find_spec(name, locate(package)[1])
        yield Path(spec.origin).resolve() if spec and spec.origin else None


def _reached(module: str) -> Iterator[str]:
    """Yield the names of the modules that a module imports, directly or through users' modules, and of their packages.

    Left out are this project's modules and those built into Python, which take precedence over all files.
    """
    for name in filter(None, reached_modules([module])):
        top = name.partition(".")[0]
        if top != "manifold_bench" and not BuiltinImporter.find_spec(top) and not FrozenImporter.find_spec(top):
            yield name


def _places(folder: Path, name: str) -> set[Path]:
    """Return the paths in a folder at which a module of that name may lie, as a file or as a package."""
    start = folder.joinpath(*name.split("."))
    return {start, *(one.with_name(one.name + end) for one in (start, start / "__init__") for end in all_suffixes())}


def _loaded_from(module: object) -> set[Path]:
    """Return the file of an imported module, and the folders of a package."""
    content = vars(module) if isinstance(module, ModuleType) else {}
    return {Path(place).resolve() for place in (content.get("__file__"), *content.get("__path__", ())) if place}
