"""List all known data sets, defenses, attacks, measurements and matrices, or explain one of them."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from manifold_bench.bench.arguments import Parser
from manifold_bench.bench.errors import InputError, report_errors
from manifold_bench.bench.planning.catalogue import Description, descriptions, papers
from manifold_bench.bench.text import nearest, norm_text, printable
from manifold_bench.defenses.identity import Kind

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
    lines = re.match(r"(#.*\n)*", matrix.read_text(encoding="utf-8"))
    text = " ".join(line.strip("# ") for line in lines[0].splitlines()) if lines else ""
    return re.split(r"(?<=\.) (?=[A-Z`])", text)[0]


def explained(name: str) -> Iterator[str]:
    """Yield the lines that explain one name; raises InputError for an unknown name."""
    # late: the list of all names waits for no torch
    from manifold_bench.bench.planning.details import explanation, parameters
    from manifold_bench.bench.planning.registry import find

    systems = [(kind, one) for kind in KINDS for one in descriptions(kind)]
    found = [(kind, one) for kind, one in systems if _is_named(one, name)]
    matrix, matrices = MATRICES / f"{name}.toml", list(MATRICES.glob("*.toml"))
    if not found and matrix not in matrices:
        near = nearest(name, [*(name_in_matrix(one) for _, one in systems), *(path.stem for path in matrices)])
        raise InputError(f"unknown name {name!r}{near}; `manifold-bench list` shows all names")
    for kind, one in found:
        yield from _entry(name_in_matrix(one), [kind.removesuffix("s"), *facts(kind, one)], one.summary, indent="")
        cls = find(kind, one.name)
        for paragraph in explanation(kind, cls):
            yield from ["", *_wrapped(paragraph, "")]
        for number, each in enumerate(parameters(kind, cls)):
            yield from ["", "parameters:"] if number == 0 else []
            default = f"default {each.default}" if each.default else "no default, must be given"
            yield from _wrapped(f"{each.name}: {each.allowed}; {default}", "  ", "    ")
            yield from _wrapped(each.meaning, " " * 6)
        yield from ["", f"implementation: {one.package}, {cls.__module__}.{cls.__qualname__}"]
        if paper := papers().get(one.paper):
            yield from _wrapped(f"paper: {paper}, {paper.title}. {paper.url}", "")
    if not found:
        yield from _entry(name, ["matrix", str(matrix)], purpose(matrix), indent="")


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
