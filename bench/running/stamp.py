"""Whether a run stands finished as asked for, recognised without importing any of what it ran with.

finished.json in a run's folder says what was asked of the run, from which code and data, and the hash of every file
that it left. While all of it is as it was, running again could change nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from manifold_bench.bench.arguments import data_folder
from manifold_bench.bench.planning.registry import SINGULAR
from manifold_bench.bench.records.log import LOG
from manifold_bench.bench.records.provenance import PACKAGES, package_version
from manifold_bench.defenses.identity import OWN, PROJECT, registered

STAMP = "finished.json"


ELSEWHERE = ("workers", "quiet", "out", "engine", "address")
"""Arguments that change nothing about results."""


def asked(given: argparse.Namespace) -> dict[str, Any]:
    """Everything that results depend on and that can be known without loading it; to be asked before a run begins."""
    data, file = data_folder(given.data), Path(given.matrix)
    return {
        "arguments": {name: _text(value) for name, value in vars(given).items() if name not in ELSEWHERE},
        "matrix": _hash(file) if file.is_file() else "",
        "code": _hash_all(path for name in OWN for path in _files(PROJECT / name)),
        "data": None if data is None else _listing(data.resolve()),
        "packages": {"python": sys.version, **{name: package_version(name) for name in PACKAGES}},
        "names": {kind: {name: point.value for name, point in registered(kind).items()} for kind in SINGULAR},
        "path": sys.path,
        "variables": {name: value for name, value in os.environ.items() if name.startswith("MANIFOLD_BENCH_")},
    }


def stand(folder: Path, now: dict[str, Any]) -> dict[str, str] | None:
    """What `leave` was told of the run in that folder; None unless it was asked the same as now, and is whole."""
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
        whole = (
            stamp["asked"] == now
            and stamp["used"] == {path: _hash(Path(path)) for path in stamp["used"]}
            and stamp["left"] == _left(folder)
        )
        return stamp["told"] if whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def leave(folder: Path, then: dict[str, Any], used: Iterable[Path], told: dict[str, str]) -> None:
    """Notes that the run in that folder is finished.

    then: what was asked of it when it began. used: weights and cards that lie elsewhere. told: for who asks again.
    """
    from manifold_bench.bench.records.files import atomic_write

    stamp = {
        "asked": then,
        "used": {str(path.resolve()): _hash(path) for path in used},
        "left": _left(folder),
        "told": told,
    }
    atomic_write(folder / STAMP, json.dumps(stamp, indent=1) + "\n")


def own(classes: Iterable[type[Any]]) -> bool:
    """Whether all those classes are of the packages that are hashed; no stamp knows what code of others depends on."""
    return all(found.__module__.startswith("manifold_bench.") for found in classes)


def _left(folder: Path) -> dict[str, str]:
    """Name and hash of every file of a run, but its log and the stamp."""
    return {
        str(path.relative_to(folder)): _hash(path)
        for path in _files(folder)
        if path.name not in (LOG, STAMP) and not path.name.startswith(".")
    }


def _files(folder: Path) -> Iterator[Path]:
    """Every file below, in order; no caches of the interpreter."""
    for base, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        yield from (Path(base) / name for name in sorted(names))


def _listing(folder: Path) -> str:
    """A hash of names, sizes and times of change of the files below: data may be large."""
    lines = [f"{path}|{(stat := path.stat()).st_size}|{stat.st_mtime_ns}" for path in _files(folder)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _hash_all(paths: Iterable[Path]) -> str:
    return hashlib.sha256("\n".join(f"{path}|{_hash(path)}" for path in paths).encode()).hexdigest()


def _hash(path: Path) -> str:
    """sha256 of a file's content; nothing where there is no such file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return ""


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
