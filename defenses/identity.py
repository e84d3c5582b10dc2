"""Identities of systems (defenses, parts of them, attacks, measurements): name, parameters, and version or source code.

The path of a file is no part of an identity. This project's systems are identified by registered name and version. Code
of users has no reliable version, so that its identity contains a hash of all code that it runs: see `source_sha256`.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import pkgutil
import sys
import sysconfig
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points, packages_distributions, version
from importlib.util import resolve_name
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

SCHEME = 2
"""Version of the rules for identities; it is part of every key. Scheme 1 hashed the paths of classes."""

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Kind = Literal["datasets", "defenses", "parts", "attacks", "measurements", "inspections"]
TRAINABLE: tuple[Kind, ...] = ("defenses", "parts")

PROJECT = Path(__file__).resolve().parent.parent
OWN = ("attacks", "defenses", "bench")
"""Packages of this project, which lie in the folder `PROJECT`."""

JsonObject = dict[str, Any]
"""An object of JSON: an identity, a card, run.json."""

LOCATION = {"location": True}
"""Metadata of a dataclass field that is no part of an identity: the path of a file whose hash is in another field."""

IMPORTERS = ("import_module", "__import__")
"""Functions that import the module that their first argument names."""


@cache
def registered(kind: Kind) -> dict[str, EntryPoint]:
    """Return every name of that kind that an installed package registers, with its entry point (not loaded)."""
    points = entry_points(group=f"manifold_bench.{kind}")
    return {point.name: point for point in sorted(points, key=lambda point: point.name)}


@dataclass(frozen=True)
class System:
    """A class with its name in identities, and the hash of its source; None for a class of this project."""

    cls: type[Any]
    name: str
    source_sha256: str | None

    def identity(self, version: int | str, values: DataclassInstance) -> JsonObject:
        """Return the system's part of a job's identity. values: the dataclass that holds its parameters."""
        own = {"name": self.name, "source_sha256": self.source_sha256}
        return own | {"version": version, "parameters": parameters(values)}


def system(cls: type, *kinds: Kind, written: str = "") -> System:
    """Return the system that a class of one of these kinds is. written: its name in a matrix file, if it has one.

    The system's name is the registered one, in whichever way a matrix file names it; the name of a class that is not
    registered is the attribute's or the class' name.
    """
    points = {name: point for kind in reversed(kinds) for name, point in registered(kind).items()}
    if written in points:
        name, module = written, points[written].module
    else:
        module, _, attribute = written.partition(":")
        names = (name for name, point in points.items() if point.attr == cls.__qualname__ and _loads(point, cls))
        name = next(names, attribute or cls.__qualname__)
    return System(cls, name, source_sha256(cls, module))  # type: ignore[arg-type]  # mypy asks for __hash__ of cls()


def _loads(point: EntryPoint, cls: type) -> bool:
    """Return whether an entry point loads that class."""
    try:
        return point.load() is cls
    except Exception:  # a user's code may raise anything
        return False


def key_of(identity: JsonObject) -> str:
    """Return the key of a result, a hash of its identity; plans and stored records use the same function."""
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def parameters(values: DataclassInstance) -> JsonObject:
    """Return the fields of a dataclass that differ from their defaults, and those without a default, as JSON data.

    So an option with a default can be added without changing the keys of earlier results. Another default for an old
    option needs another version. A nested dataclass is represented by its own fields that differ from their defaults,
    and by its tag: its fields with only one possible value (`method: Literal["adam"]`), or else the name of its class.
    """
    found = {}
    for field in dataclasses.fields(values):
        if LOCATION.items() <= field.metadata.items():
            continue
        value, default = getattr(values, field.name), field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if default is dataclasses.MISSING or _text(value) != _text(default):
            found[field.name] = _plain(value)
    return found


def _plain(value: object) -> object:
    """Return a parameter's value as JSON data."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        tag = {name: getattr(value, name) for name in _fixed_fields(type(value))} or {"class": type(value).__name__}
        return tag | parameters(value)
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


@cache
def _fixed_fields(cls: type) -> list[str]:
    """Return the names of a dataclass' fields with only one possible value."""
    hints = get_type_hints(cls)
    return [name for name, hint in hints.items() if get_origin(hint) is Literal and len(get_args(hint)) == 1]


def _text(value: object) -> str:
    """Return a text that is different for different values, also for 1, 1.0 and true."""
    return json.dumps(_plain(value), sort_keys=True)


@cache
def source_sha256(cls: type, named: str = "") -> str | None:
    """Return a hash of the users' code that a class runs; None for a class that runs this project's code alone.

    It covers the module `named`, by which the class was found, the modules of the class and of all its bases, and every
    module that these import, directly or not, inside functions too. Modules of this project, of the standard library
    and of site-packages are left out; a class in site-packages is identified by the version of its distribution. The
    hash is made of contents and of which import leads to which content, so that it does not change when files move
    together. It is computed once per process.
    """
    modules = [*([named] if named else []), *(base.__module__ for base in cls.__mro__)]
    lines = source_lines(modules)
    lines += [cls.__qualname__] if lines else []  # a module may hold several classes
    home = locate(cls.__module__)[0]
    if home is None or (_installed(home) and not _own(home)):
        lines.append(_release(cls.__module__, home))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest() if lines else None


def source_lines(modules: Iterable[str]) -> list[str]:
    """Return a line of content and imports for each of these modules and each user's module that they import.

    Nothing is imported for this.
    """
    return list(_Sources(modules).lines())


def source_files(modules: Iterable[str]) -> list[Path]:
    """Return the files of these modules and of all users' modules that they import. Nothing is imported for this."""
    return [file for _, file in _followed(modules).files]


def reached_modules(modules: Iterable[str]) -> list[str]:
    """Return the names of these modules, of all that they import, directly or through users' modules, and of packages.

    Nothing is imported for this.
    """
    return list(_followed(modules).numbers)


def _followed(modules: Iterable[str]) -> _Sources:
    """Return these modules and all to which their imports lead."""
    sources = _Sources(modules)
    deque(sources.lines(), maxlen=0)  # follows the imports
    return sources


def _release(module: str, home: Path | None) -> str:
    """Return what identifies an installed class: its distributions' versions, or else a hash of its module.

    Raises ValueError for a module without a file.
    """
    distributions = _distributions().get(module.partition(".")[0])
    if distributions:
        return " ".join(f"{name} {version(name)}" for name in sorted(set(distributions)))
    if home is None:
        raise ValueError(f"module {module!r} has no file, so that its code cannot be identified; put it into a file")
    return hashlib.sha256(home.read_bytes()).hexdigest()


_distributions = cache(packages_distributions)


class _Sources:
    """Users' modules among these and what they import, in the order in which the imports lead to them."""

    def __init__(self, modules: Iterable[str]) -> None:
        self.numbers: dict[str, int | None] = {}
        """The number of each module; None for modules that are left out."""
        self.files: list[tuple[str, Path]] = []
        for module in modules:
            self.add_with_packages(module)

    def add_with_packages(self, module: str) -> list[int]:
        """Add a module and the packages that contain it; return the places in `files` of those whose code counts.

        Files of this project, of installed packages and of the standard library do not count.
        """
        parts = module.split(".")
        found = (self._add(".".join(parts[: end + 1])) for end in range(len(parts)))
        return [number for number in found if number is not None]

    def _add(self, module: str) -> int | None:
        if module not in self.numbers:
            file = locate(module)[0]
            counts = file is not None and not (_own(file) or _installed(file) or _standard(file) or _idle(file))
            self.numbers[module] = len(self.files) if counts else None
            if counts and file is not None:
                self.files.append((module, file))
        return self.numbers[module]

    def lines(self) -> Iterator[str]:
        """Yield for each module a hash of its content and the numbers of the modules that it imports."""
        for module, file in self.files:  # the list grows in this loop
            content = file.read_bytes()
            targets = [self.add_with_packages(name) for name in _imports(module, content)]
            yield f"{hashlib.sha256(content).hexdigest()} {targets}"


@cache
def is_of_users(module: str) -> bool:
    """Return whether a module is a user's: not this project's, nor an installed package's or the standard library's.

    `__main__` is one, even if it has no file, as in a notebook.
    """
    file = locate(module)[0]
    return module == "__main__" or (file is not None and not (_own(file) or _installed(file) or _standard(file)))


def _own(file: Path) -> bool:
    return any(file.is_relative_to(PROJECT / name) for name in (*OWN, "manifold_bench"))


def _installed(file: Path) -> bool:
    return not {"site-packages", "dist-packages"}.isdisjoint(file.parts)


def _standard(file: Path) -> bool:
    return any(file.is_relative_to(Path(sysconfig.get_path(name)).resolve()) for name in ("stdlib", "platstdlib"))


def _idle(file: Path) -> bool:
    """Return whether a module does nothing, as most `__init__.py`, so that moving it changes no result."""
    tree = _parsed(file.read_bytes())
    return tree is not None and all(
        isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant) for one in tree.body
    )


def _parsed(content: bytes) -> ast.Module | None:
    """Return the syntax tree of a module; None if it is no Python source, such as a compiled extension."""
    try:
        return ast.parse(content)
    except (SyntaxError, ValueError):
        return None


def locate(module: str) -> tuple[Path | None, Sequence[str] | None]:
    """Return a module's file, and the folders of its submodules if it is a package, without importing anything."""
    if not module:
        return None, None
    loaded = sys.modules.get(module)
    if loaded is not None:
        file = getattr(loaded, "__file__", None)
        path = Path(file).resolve() if file and Path(file).is_file() else None  # a program on standard input is <stdin>
        return path, getattr(loaded, "__path__", None)
    package = module.rpartition(".")[0]
    places = locate(package)[1] if package else None
    if package and places is None:
        return None, None
    for finder in sys.meta_path:
        try:
            spec = finder.find_spec(module, places)
        except KeyError:  # a folder without `__init__.py`, in a package that is not imported
            folders = [Path(place, module.rpartition(".")[2]) for place in places or ()]
            return None, [str(folder) for folder in folders if folder.is_dir()]
        if spec is not None:
            file = spec.origin if spec.has_location else None
            return Path(file).resolve() if file else None, spec.submodule_search_locations
    return None, None


def _imports(module: str, content: bytes) -> Iterator[str]:
    """Yield the names of all modules that a module may import, in the order of its syntax tree."""
    tree = _parsed(content)
    package = module if locate(module)[1] is not None else module.rpartition(".")[0]
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute("." * node.level + (node.module or ""), package)
            yield base
            path = locate(base)[1]
            if path is not None:  # names that are imported from a package may be modules
                names = [alias.name for alias in node.names]
                names = [found.name for found in pkgutil.iter_modules(path)] if names == ["*"] else names
                yield from (f"{base}.{name}" for name in names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in IMPORTERS:
            constants = (one.value for one in node.args[:1] if isinstance(one, ast.Constant))
            yield from (_absolute(name, package) for name in constants if isinstance(name, str))


def _absolute(name: str, package: str) -> str:
    """Return the full name of a module that is named relative to a package (`..other`); any other name as it is.

    The name is empty if there is no such package.
    """
    try:
        return resolve_name(name, package)
    except ImportError:  # the name leads above the top package
        return ""
