"""List all known data sets, defenses, attacks, measurements and matrices, or explain one of them."""

from __future__ import annotations

import re
import sys
import textwrap
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from manifold_bench.bench.arguments import Parser
from manifold_bench.bench.errors import InputError, report_errors
from manifold_bench.bench.planning.catalogue import Description, descriptions, papers
from manifold_bench.bench.text import nearest, norm_text, printable
from manifold_bench.defenses.errors import message_of
from manifold_bench.defenses.identity import Kind

if TYPE_CHECKING:
    from manifold_bench.bench.planning.details import Parameter

KINDS: tuple[Kind, ...] = ("datasets", "defenses", "attacks", "measurements")
MATRICES = Path(__file__).parent / "matrices"
WIDTH = 80


@report_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """Print every name with a description of one sentence, or everything that is known of one name; return 0."""
    parser = Parser(prog="manifold-bench list", description=__doc__)
    parser.add_argument("name", metavar="NAME", nargs="?", help="explain this one, with its parameters and defaults")
    name = parser.parse_args(arguments).name
    print("\n".join(everything() if name is None else explained(name)))
    return 0


def everything() -> Iterator[str]:
    """Yield the lines of the whole list."""
    for kind in KINDS:
        yield f"{kind}:"
        for one in descriptions(kind):
            yield from _entry(name_in_matrix(one), facts(kind, one), one.summary)
    yield "matrices:"
    for path in sorted(MATRICES.glob("*.toml")):
        yield from _entry(path.stem, [], purpose(path))


def name_in_matrix(one: Description) -> str:
    """Return the name by which a matrix file refers to a system; `library:ClassName` for an adapter."""
    return f"{one.name}:ClassName" if is_adapter(one) else one.name


def is_adapter(one: Description) -> bool:
    """Return whether a system runs classes of a library, each named as `library:ClassName`."""
    return one.values.get("open_parameters") is True


def _is_named(one: Description, name: str) -> bool:
    """Return whether a name means this system; an adapter is meant by every class of its library."""
    return one.name == (name.partition(":")[0] if is_adapter(one) else name)


def facts(kind: Kind, one: Description) -> list[str]:
    """Return the facts that the list shows of a system, in a few words each; its paper comes last."""
    values = one.values
    given: list[object] = []
    if kind == "datasets":
        shape, classes = values.get("shape"), values.get("num_classes", "?")
        given += ["×".join(map(str, shape)) if isinstance(shape, tuple) else "", f"{classes} classes"]
    elif kind == "defenses":
        rejects = values.get("rejects")
        given += [values.get("family"), "may reject" if rejects is ... else "rejects" if rejects else ""]
        given += ["randomized"] if values.get("randomized") is True else []
    elif kind == "attacks":
        norms = values.get("norms", ...)
        given += [knowledge(one), " ".join(map(norm_text, norms)) if isinstance(norms, tuple) else "any norm"]
    return [str(one) for one in (*given, one.cited) if one]


def knowledge(one: Description) -> str:
    """Return what an attacker needs to know of the defense; for an adapter that depends on the class that it runs."""
    if is_adapter(one):
        return "as the class needs"
    return str(one.values.get("knowledge", "unknown"))


def purpose(matrix: Path) -> str:
    """Return what a matrix file is for: the first sentence of the comment at its beginning."""
    return re.split(r"(?<=\.) (?=[A-Z`])", (comment(matrix) or [""])[0])[0]


def comment(matrix: Path) -> list[str]:
    """Return the comment at the beginning of a matrix file: its paragraphs, and indented lines, which are commands."""
    found = re.match(r"(#.*\n)*", matrix.read_text(encoding="utf-8"))
    paragraphs: list[str] = []
    for line in found[0].splitlines() if found else []:
        text = line.removeprefix("#").removeprefix(" ").rstrip()
        if paragraphs and text[:1].strip() and paragraphs[-1][:1].strip():
            paragraphs[-1] += f" {text}"
        else:
            paragraphs.append(text)
    return paragraphs


def contents(matrix: Path) -> Iterator[str]:
    """Yield what a matrix file crosses: its data sets, and the labels of its defenses, attacks and measurements."""
    raw = tomllib.loads(matrix.read_text(encoding="utf-8"))
    for kind in KINDS:
        entries = [{"name": one} if isinstance(one, str) else one for one in raw.get(kind, [])]
        names = dict.fromkeys(one.get("label", one["name"]) for one in entries)
        everything_known = raw.get("crossed") is True and kind != "measurements"
        if text := "; ".join(names) or ("all that are registered" if everything_known else ""):
            yield f"{kind.replace('datasets', 'data sets')}: {text}"


def explained(name: str) -> Iterator[str]:
    """Yield the lines that explain one name; raises InputError for an unknown name."""
    # late: the list of all names waits for no torch
    from manifold_bench.bench.planning.details import arguments, entry_text, explanation, parameters
    from manifold_bench.bench.planning.registry import find

    systems = [(kind, one) for kind in KINDS for one in descriptions(kind)]
    found = [(kind, one) for kind, one in systems if _is_named(one, name)]
    matrix, matrices = MATRICES / f"{name}.toml", list(MATRICES.glob("*.toml"))
    if not found and matrix not in matrices:
        if ":" in name:
            raise InputError(f"{name!r} is not registered; list explains registered names alone, and run takes others")
        known = [*(name_in_matrix(one) for _, one in systems), *(path.stem for path in matrices)]
        raise InputError(f"unknown name {name!r}{nearest(name, known, '`manifold-bench list` shows all names')}")
    lacking: list[ValueError] = []
    for kind, one in found:
        cls, chosen = find(kind, one.name), name.partition(":")[2].removesuffix("ClassName")
        try:
            own = arguments(kind, cls, chosen) if chosen else []
        except ValueError as error:
            lacking.append(error)
            continue
        shown = f"{one.name}:{chosen}" if chosen else name_in_matrix(one)
        yield from _entry(shown, [kind.removesuffix("s"), *facts(kind, one)], one.summary, indent="")
        written = entry_text(kind, cls, one.name, chosen) if is_adapter(one) else ""
        for paragraph in filter(None, [*explanation(kind, cls), written]):
            yield from ["", *_wrapped(paragraph, "")]
        yield from _listed("parameters", parameters(kind, cls))
        yield from _listed("arguments of the library's class", own)
        yield from ["", f"implementation: {one.package}, {cls.__module__}.{cls.__qualname__}"]
        if paper := papers().get(one.paper):
            yield from _wrapped(f"paper: {paper}, {paper.title}. {paper.url}", "")
    if lacking and len(lacking) == len(found):
        raise InputError(min(map(message_of, lacking), key=len))  # the one that knows a similar name
    if not found:
        yield f"{name:<20} matrix"
        for paragraph in comment(matrix):
            yield from _wrapped(paragraph, "  ") or [""]
        yield ""
        for line in contents(matrix):
            yield from _wrapped(line, "  ", "  ")
        yield from ["", f"file: {matrix}"]  # on one line, so that it can be copied


def _listed(title: str, given: Sequence[Parameter]) -> Iterator[str]:
    """Yield the lines of a list of parameters; none for an empty list."""
    yield from ["", f"{title}:"] if given else []
    for one in given:
        default = f"default {one.default}" if one.default else "no default, must be given"
        yield from _wrapped(f"{one.name}: {one.allowed}; {default}", "  ", "    ")
        yield from _wrapped(one.meaning, " " * 6)
        for number, keys in enumerate(one.keys):
            yield from _wrapped(f"{'or' if number else 'keys and defaults'}: {keys}", " " * 6, "  ")


def _entry(name: str, about: list[str], summary: str, indent: str = "  ") -> Iterator[str]:
    """Yield a line with a name and its facts, and below it the summary."""
    yield from _wrapped(f"{name:<20} {'; '.join(about)}", indent, " " * 21)
    yield from _wrapped(summary, indent + "  ")


def _wrapped(text: str, indent: str, further: str = "") -> list[str]:
    """Return the text as lines of at most 80 columns; further: additional indent of all lines but the first."""
    return textwrap.wrap(
        printable(text), WIDTH, initial_indent=indent, subsequent_indent=indent + further, break_on_hyphens=False
    )


if __name__ == "__main__":
    sys.exit(main())
