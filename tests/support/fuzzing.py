"""Random changes of JSON, TOML and record files, and commands that are called in this process."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from manifold_bench.bench.records.store import IDENTITY
from manifold_bench.defenses.identity import key_of

TEXTS = st.one_of(
    st.sampled_from(
        ["", "\x1b[31m", "\x00", "=1+1", "](http://a)", "<script>", "$x$", "_a", "../../x", "x" * 5000, "clean", "inf"]
    ),
    st.text(max_size=20),
)
NUMBERS = st.one_of(st.integers(), st.sampled_from([0, -1, 2**63, -(2**63) - 1, 10**30]), st.floats())
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=5,
)


@dataclass
class Ended:
    """How a command ended: its exit code, and what it wrote."""

    code: int
    out: str
    err: str


def called(main: Callable[[Sequence[str]], int], *arguments: str) -> Ended:
    """The command, in this process; whatever it raises but SystemExit goes through."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(list(arguments))
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    return Ended(code, out.getvalue(), err.getvalue())


def check_ended(end: Ended) -> None:
    """A command ends with a known exit code; bad input leads to one line; nothing steers the terminal."""
    assert end.code in (0, 1, 2), end
    steering = [c for c in end.out + end.err if (ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160]
    assert not steering, (steering, end)
    if end.code == 2:
        last = end.err.rstrip("\n").split("\n")[-1]
        assert "error: " in last, end


@st.composite
def changed(draw: st.DrawFn, tree: Any) -> Any:
    """A copy of plain data in which one place is replaced, left out or added to."""
    tree = json.loads(json.dumps(tree))
    node, path = tree, []
    while isinstance(node, dict | list) and node and (not path or draw(st.integers(0, 3))):
        key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        path.append((node, key))
        node = node[key]
    if not path:
        return draw(VALUES)
    parent, key = path[-1]
    action = draw(st.sampled_from(["replace", "delete", "add", "empty"]))
    if action == "delete":
        del parent[key]
    elif action == "add" and isinstance(parent, dict):
        parent[draw(TEXTS)] = draw(VALUES)
    else:
        parent[key] = type(node)() if action == "empty" and isinstance(node, dict | list) else draw(VALUES)
    return tree


def toml(value: Any) -> str:
    """Plain data as a TOML value on one line; null, which TOML has not, as an empty text."""
    if value is None:
        return '""'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value).replace("nan", "nan")
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(name)} = {toml(inner)}" for name, inner in value.items()) + "}"
    return str(value)


def toml_file(tree: Any) -> str:
    """Plain data as the text of a TOML file; what is no table as a line that is none."""
    if not isinstance(tree, dict):
        return toml(tree)
    return "".join(f"{toml(name)} = {toml(value)}\n" for name, value in tree.items())


def rewrite(path: Path, table: pa.Table) -> None:
    """Writes a record file with a checksum, a name and a place in the index that fit."""
    identity = json.loads(table.schema.metadata[IDENTITY])
    name = f"{path.stem.rsplit('--', 1)[0]}--{key_of(identity)[:16]}"
    index = path.with_name("index.json")
    index.write_text(index.read_text().replace(path.stem, name))
    for file in (path, path.with_suffix(".sha256")):
        file.unlink()
    path = path.with_name(f"{name}.parquet")
    pq.write_table(table, path)
    path.with_suffix(".sha256").write_text(hashlib.sha256(path.read_bytes()).hexdigest() + "\n")
