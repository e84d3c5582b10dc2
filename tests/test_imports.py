"""Imports go bench → defenses → attacks, never back; read from the source, nested imports included."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {"attacks": {"attacks"}, "defenses": {"attacks", "defenses"}, "bench": {"attacks", "defenses", "bench"}}


def imported(path: Path) -> set[str]:
    """The top-level packages a file imports, wherever in it; relative imports stay within their own."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).split(".")[0])
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_no_floor_knows_of_those_above(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        upward = imported(path) & (MAY_IMPORT.keys() | {"tests"}) - MAY_IMPORT[package]
        assert not upward, f"{path.relative_to(ROOT)} imports {upward}"


def test_nested_and_aliased_imports_are_seen(tmp_path):
    source = tmp_path / "x.py"
    nested = "def f():\n    from bench.plan import Job\n    import defenses.base, torch\n"
    source.write_text(f"import os.path as p\n{nested}")
    assert imported(source) == {"os", "bench", "defenses", "torch"}
