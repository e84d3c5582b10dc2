"""The structure of the project: few rooms on few floors, imports that all run down, short files and signatures.

For this count the code is divided into rooms: `attacks`, `defenses`, the package itself, and each folder and file that
is directly in `bench`. A room that imports from no other is on floor 1. Any other room is one floor above the highest
of the rooms that it imports from. What `manifold_bench` offers and the commands that `python -m manifold_bench.bench`
knows are looked up by name when they are used, and are not counted as imports.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from manifold_bench.bench.gate.gate import Gate
from manifold_bench.bench.planning.plan import Plan
from manifold_bench.bench.records.results import Results
from manifold_bench.bench.report.contents import Report
from manifold_bench.bench.running.attempt import Attempt

PROJECT = Path(__file__).parents[1]
PACKAGE = "manifold_bench"


def room(module: str) -> str:
    """Return the room of a module of the package, such as bench/report or defenses."""
    parts = [part for part in module.split(".")[1:] if part != "__init__"]
    if parts in ([], ["bench"]):
        return PACKAGE
    return "/".join(parts[:2] if parts[0] == "bench" else parts[:1])


def imported(file: Path) -> Iterator[str]:
    """Yield the modules of the package that a file imports; imports inside functions count, too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] == PACKAGE)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            assert not node.level and node.module
            for name in node.names:
                inner = f"{node.module}.{name.name}"
                path = PROJECT.joinpath(*inner.split(".")[1:])
                yield inner if path.is_dir() or path.with_suffix(".py").is_file() else node.module


def rooms() -> dict[str, set[str]]:
    """Return the rooms that each room imports from."""
    found: dict[str, set[str]] = {PACKAGE: set()}  # what the package itself offers is imported late, by name
    for top in ("attacks", "bench", "defenses"):
        for file in (PROJECT / top).rglob("*.py"):
            own = room(f"{PACKAGE}.{'.'.join(file.relative_to(PROJECT).with_suffix('').parts)}")
            found.setdefault(own, set()).update({room(module) for module in imported(file)} - {own})
    return found


def test_the_house_has_at_most_25_rooms_on_10_floors_without_a_circle():
    below = rooms()
    assert {"bench/report", "bench/running", "bench/run", "attacks", "defenses"} <= set(below)
    assert "bench/metrics" in below["bench/report"] and "attacks" in below["defenses"]
    list(TopologicalSorter(below).static_order())  # raises CycleError

    @cache
    def floor(one: str) -> int:
        return 1 + max((floor(other) for other in below[one]), default=0)

    assert len(below) <= 25 and max(map(floor, below)) <= 10


LONGEST, PARAMETERS, CONSTRUCTED = 400, 6, 5
"""Most lines of a file, parameters of a function, and parameters of a constructor that does more than keep them.

Records, such as dataclasses, have as many fields as what they describe, and their constructors are generated.
"""


@pytest.mark.parametrize("noun", [Plan, Results, Attempt, Report, Gate])
def test_the_nouns_of_a_run_have_few_parts(noun):
    given = list(inspect.signature(noun).parameters)
    assert 0 < len(given) <= CONSTRUCTED, given


def test_no_file_and_no_signature_is_long():
    files = [path for part in ("attacks", "bench", "defenses", "tests") for path in (PROJECT / part).rglob("*.py")]
    assert len(files) > 200
    for file in files:
        code = file.read_text(encoding="utf-8")
        assert len(code.splitlines()) <= LONGEST, file
        if file.is_relative_to(PROJECT / "tests"):
            continue
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.FunctionDef):
                given = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
                own = [one.arg for one in given if one.arg not in ("self", "cls")]
                most = CONSTRUCTED if node.name == "__init__" else PARAMETERS
                assert len(own) <= most, f"{file}: {node.name}({', '.join(own)})"
