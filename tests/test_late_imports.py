"""Imports stand at the top of a file; those inside functions say why they are late."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1]
FILES = [file for name in ("attacks", "bench", "defenses") for file in sorted((PACKAGE / name).rglob("*.py"))]
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
SLOW = ("torch", "numpy", "pandas", "matplotlib", "rich", "pydantic")


def late_imports(file: Path) -> list[int]:
    """Return the line of each import inside a function."""
    functions = (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, FUNCTIONS))
    inside = (node for function in functions for node in ast.walk(function))
    return sorted({node.lineno for node in inside if isinstance(node, ast.Import | ast.ImportFrom)})


def above(lines: list[str], number: int) -> str:
    """Return the line above a block of imports that has an import in line `number`."""
    return next(line for line in reversed(lines[: number - 1]) if not re.match(r"\s*(from|import) |\s*$", line)).strip()


def test_each_import_inside_a_function_has_a_reason_above_it():
    places = [(file, number) for file in FILES for number in late_imports(file)]
    found = {f"{file.name}:{number}": above(file.read_text().splitlines(), number) for file, number in places}
    assert found and not {place: line for place, line in found.items() if not line.startswith("# late: ")}


@pytest.mark.parametrize(
    "command",
    ["--help", *(f"{name} --help" for name in ("run", "judge", "report", "compare", "baseline", "train")), "list"],
)
def test_what_only_shows_names_and_options_imports_nothing_slow(command):
    code = "import sys; from manifold_bench.bench.__main__ import main\ntry: main(sys.argv[1:])\n"
    code += f"finally: print(*(name for name in {SLOW} if name in sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code, *command.split()], capture_output=True, text=True, check=False)
    assert not done.returncode and done.stdout and not done.stderr.strip()
