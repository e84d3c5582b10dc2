"""What identifies a system (a defense, a part of one, an attack, a measurement): its name, parameters and source code.

Where a file lies is no part of an identity. This project's own systems count by registered name and version. Code of
others has no version that we could trust, so that a hash of everything it runs counts too: see `source_sha256`.
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
"""Version of the rules by which identities are made; part of every key. Scheme 1 hashed the paths of classes."""

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
"""Metadata of a field that says where a file lies whose content is in another field: no part of an identity."""

IMPORTERS = ("import_module", "__import__")
"""Functions that import the module that their first argument names."""


@cache
def registered(kind: Kind) -> dict[str, EntryPoint]:
    """Every name of that kind that an installed package registers, with its entry point (not loaded)."""
    points = entry_points(group=f"manifold_bench.{kind}")
    return {point.name: point for point in sorted(points, key=lambda point: point.name)}


@dataclass(frozen=True)
class System:
    """A class with its name in identities, and the hash of its source where it isn't of this project."""

    cls: type[Any]
    name: str
    source_sha256: str | None

    def identity(self, version: int | str, values: DataclassInstance) -> JsonObject:
        """Its part of a job's identity; values: the dataclass that holds its parameters."""
        own = {"name": self.name, "source_sha256": self.source_sha256}
        return own | {"version": version, "parameters": parameters(values)}


def system(cls: type, *kinds: Kind, written: str = "") -> System:
    """The identity of a class of one of these kinds; written: how a matrix file names it, if one does.

    Its name is the registered one, however it is written; a class that isn't registered has its own.
    """
    points = {name: point for kind in reversed(kinds) for name, point in registered(kind).items()}
    if written in points:
        name, module = written, points[written].module
    else:
        module, _, attribute = written.partition(":")
        names = (name for name, point in points.items() if point.attr == cls.__qualname__ and _stands_for(point, cls))
        name = next(names, attribute or cls.__qualname__)
    return System(cls, name, source_sha256(cls, module))  # type: ignore[arg-type]  # mypy asks for __hash__ of cls()


def _stands_for(point: EntryPoint, cls: type) -> bool:
    try:
        return point.load() is cls
    except Exception:  # it may be code of others: anything may happen
        return False


def key_of(identity: JsonObject) -> str:
    """The key of a result: a hash of everything it depends on, the same for the plan and for the stored record."""
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def parameters(values: DataclassInstance) -> JsonObject:
    """The fields of a dataclass that differ from their defaults, as plain JSON data; a field without one is in always.

    So an option with a default can be added, and what was computed before it keeps its key. Another default for an old
    option needs another version. A nested dataclass is given by its fields that differ from that class' defaults, and
    by what tells it from others that could stand in its place: its fields that have only one possible value
    (`method: Literal["adam"]`), or else the name of its class.
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
    """A parameter's value as plain JSON data."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = get_type_hints(type(value))
        fixed = [name for name, hint in hints.items() if get_origin(hint) is Literal and len(get_args(hint)) == 1]
        told = {name: getattr(value, name) for name in fixed} or {"class": type(value).__name__}
        return told | parameters(value)
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _text(value: object) -> str:
    """A text that differs wherever values do, 1 from 1.0 and from true as well."""
    return json.dumps(_plain(value), sort_keys=True)


@cache
def source_sha256(cls: type, named: str = "") -> str | None:
    """A hash of the code of others that a class runs; None for a class that runs none but this project's.

    It covers the module that was named to find the class, those of the class and of all its bases, and every module
    that these import, directly or not, inside functions too. Modules of this project, of the standard library and of
    site-packages are left out; a class that is installed there counts by the version of its distribution. The hash is
    of contents and of which import leads to which content, so that it stays when files move together. It is computed
    once per process, as modules are loaded once.
    """
    modules = [*([named] if named else []), *(base.__module__ for base in cls.__mro__)]
    lines = source_lines(modules)
    lines += [cls.__qualname__] if lines else []  # a module may hold several
    home = locate(cls.__module__)[0]
    if home is None or (_installed(home) and not _own(home)):
        lines.append(_release(cls.__module__, home))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest() if lines else None


def source_lines(modules: Iterable[str]) -> list[str]:
    """A line for each module of users that these modules run, themselves included: of its content and its imports.

    Nothing is imported for it.
    """
    sources = _Sources()
    for module in modules:
        sources.add_with_packages(module)
    return list(sources.lines())


def source_files(modules: Iterable[str]) -> list[Path]:
    """The files of all modules of users that these modules run, themselves included. Nothing is imported for it."""
    sources = _Sources()
    for module in modules:
        sources.add_with_packages(module)
    deque(sources.lines(), maxlen=0)  # follows the imports
    return [file for _, file in sources.files]


def _release(module: str, home: Path | None) -> str:
    """What a class outside any user's folder counts by: its distribution's version, or else its module's content."""
    distributions = _distributions().get(module.partition(".")[0])
    if distributions:
        return " ".join(f"{name} {version(name)}" for name in sorted(set(distributions)))
    if home is None:
        raise ValueError(f"module {module!r} has no file: results of its code could not be told apart")
    return hashlib.sha256(home.read_bytes()).hexdigest()


_distributions = cache(packages_distributions)


class _Sources:
    """Modules of users in the order in which they are met, from the first ones along their imports."""

    def __init__(self) -> None:
        self.numbers: dict[str, int | None] = {}
        """The number of each module; None for what doesn't count."""
        self.files: list[tuple[str, Path]] = []

    def add_with_packages(self, module: str) -> list[int]:
        """Numbers of a module and of the packages that are imported before it, so far as they count."""
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
        """For each module the hash of its content and the numbers of those that it imports."""
        for module, file in self.files:  # which grows meanwhile
            content = file.read_bytes()
            targets = [self.add_with_packages(name) for name in _imports(module, content)]
            yield f"{hashlib.sha256(content).hexdigest()} {targets}"


def _own(file: Path) -> bool:
    return any(file.is_relative_to(PROJECT / name) for name in (*OWN, "manifold_bench"))


def _installed(file: Path) -> bool:
    return not {"site-packages", "dist-packages"}.isdisjoint(file.parts)


def _standard(file: Path) -> bool:
    return any(file.is_relative_to(Path(sysconfig.get_path(name)).resolve()) for name in ("stdlib", "platstdlib"))


def _idle(file: Path) -> bool:
    """Whether a module does nothing, as most packages' `__init__.py`: moving a module in or out changes nothing."""
    tree = _parsed(file.read_bytes())
    return tree is not None and all(
        isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant) for one in tree.body
    )


def _parsed(content: bytes) -> ast.Module | None:
    """The syntax tree of a module; None for what is no Python source, such as a compiled extension."""
    try:
        return ast.parse(content)
    except (SyntaxError, ValueError):
        return None


def locate(module: str) -> tuple[Path | None, Sequence[str] | None]:
    """A module's file, and where its submodules lie if it is a package; nothing new is imported for it."""
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
        spec = finder.find_spec(module, places)
        if spec is not None:
            file = spec.origin if spec.has_location else None
            return Path(file).resolve() if file else None, spec.submodule_search_locations
    return None, None


def _imports(module: str, content: bytes) -> Iterator[str]:
    """Names of all modules that a module may import, in the order of its syntax tree."""
    tree = _parsed(content)
    package = module if locate(module)[1] is not None else module.rpartition(".")[0]
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute("." * node.level + (node.module or ""), package)
            yield base
            path = locate(base)[1]
            if path is not None:  # what is imported from a package may be modules
                names = [alias.name for alias in node.names]
                names = [found.name for found in pkgutil.iter_modules(path)] if names == ["*"] else names
                yield from (f"{base}.{name}" for name in names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in IMPORTERS:
            constants = (one.value for one in node.args[:1] if isinstance(one, ast.Constant))
            yield from (_absolute(name, package) for name in constants if isinstance(name, str))


def _absolute(name: str, package: str) -> str:
    """The full name of a module that is named relative to a package (`..other`); any other name as it is.

    Empty where there is no such package.
    """
    try:
        return resolve_name(name, package)
    except ImportError:  # it leads above the top package
        return ""
