"""Descriptions of registered systems, read from their source code, because importing them would take seconds."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import EntryPoint
from pathlib import Path

from manifold_bench.defenses.identity import Kind, locate, registered

BIBLIOGRAPHY = Path(__file__).parent.parent / "references.bib"


@dataclass(frozen=True)
class Paper:
    """A paper in a BibTeX file. authors: family names. bibtex: the whole entry as text."""

    authors: tuple[str, ...]
    year: str
    title: str
    url: str
    bibtex: str

    def __str__(self) -> str:
        """Return authors and year as a text cites them: Croce & Hein 2020; Madry et al. 2018."""
        names = " & ".join(self.authors) if len(self.authors) < 3 else f"{self.authors[0]} et al."
        return f"{names} {self.year}"


@cache
def papers() -> dict[str, Paper]:
    """Return the papers of `references.bib` by their keys. Every entry has an author, a title, a year and a url."""
    found = {}
    for key, bibtex in re.findall(r"^(?=@\w+\{(\w+),)(.*?^\}$)", BIBLIOGRAPHY.read_text(encoding="utf-8"), re.S | re.M):
        fields = {name: value.replace("{", "").replace("}", "") for name, value in _FIELD.findall(bibtex)}
        authors = tuple(name.partition(",")[0] for name in fields["author"].split(" and "))
        found[key] = Paper(authors, fields["year"], fields["title"], fields["url"], bibtex)
    return found


_FIELD = re.compile(r"^  (\w+) = \{(.*)\},$", re.M)


@dataclass(frozen=True)
class _Class:
    """A class in the source of a module.

    imported: names that the module imports, each with the module that it comes from and its name there.
    """

    module: str
    node: ast.ClassDef
    imported: Mapping[str, tuple[str, str]]


@dataclass(frozen=True)
class Description:
    """A registered system, as its class describes it.

    summary: first paragraph of the class' docstring, one sentence.
    paper: key of its paper in `references.bib`, or any other text; empty if it has no paper.
    package: distribution that registers the system.
    """

    name: str
    summary: str
    paper: str
    package: str
    _class: _Class | None

    @property
    def cited(self) -> str:
        """Authors and year of its paper, or `paper` as it is."""
        return str(papers().get(self.paper, self.paper))

    @cached_property
    def values(self) -> dict[str, object]:
        """Class attributes by name, those of its bases included; `...` for a value that is no literal."""
        return _values(self._class) if self._class else {}


def descriptions(kind: Kind) -> list[Description]:
    """Return descriptions of all registered systems of that kind, sorted by name.

    A class whose source cannot be read has an empty summary.
    """
    return [describe(point) for point in registered(kind).values()]


def describe(point: EntryPoint) -> Description:
    """Return the description of one registered system, without importing it."""
    cls = _find(point.module, point.attr)
    summary = (ast.get_docstring(cls.node) or "").split("\n\n")[0] if cls else ""
    own = _literals(cls.node.body) if cls else {}
    package = point.dist.name if point.dist else ""
    return Description(point.name, " ".join(summary.split()), str(own.get("paper", "")), package, cls)


@cache
def _tree(module: str) -> ast.Module:
    try:
        file = locate(module)[0]
        return ast.parse(file.read_bytes()) if file else ast.Module([], [])
    except (OSError, SyntaxError, ValueError):
        return ast.Module([], [])


@cache
def _find(module: str, name: str) -> _Class | None:
    """Return the class of that name in a module, which may import it from another module; None if there is none."""
    imports = (node for node in _tree(module).body if isinstance(node, ast.ImportFrom) and not node.level)
    imported = {one.asname or one.name: (node.module or "", one.name) for node in imports for one in node.names}
    for node in _tree(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return _Class(module, node, imported)
    return _find(*imported[name]) if imported.get(name, (module,))[0] != module else None


def _values(cls: _Class) -> dict[str, object]:
    """Return the class attributes of a class and of its bases by name."""
    found: dict[str, object] = {}
    for base in reversed(cls.node.bases):
        known = _find(*cls.imported.get(base.id, (cls.module, base.id))) if isinstance(base, ast.Name) else None
        if known and known != cls:
            found |= _values(known)
    return found | _literals(cls.node.body)


def _literals(body: list[ast.stmt]) -> dict[str, object]:
    """Return the attributes in a class' body by name; the value of a property is the first constant that it returns.

    The value of an attribute that is no literal is `...`.
    """
    found: dict[str, object] = {}
    for node in body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Name):
                    found[target.id] = _literal(node.value)
        elif isinstance(node, ast.FunctionDef):
            returned = (part for one in ast.walk(node) if isinstance(one, ast.Return) for part in ast.walk(one))
            found[node.name] = next((one.value for one in returned if isinstance(one, ast.Constant)), ...)
    return found


def _literal(node: ast.expr) -> object:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ...
