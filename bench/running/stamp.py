"""Recognises a finished run without importing anything that it used, so that repeating a command takes no time.

finished.json in a run's folder holds the request of the command, and the hash of every file that the run read or wrote.
While nothing of this changes, running again would change nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import get_args

from manifold_bench.bench.planning.folders import data_folder
from manifold_bench.bench.records.log import LOG
from manifold_bench.bench.records.packages import PACKAGES, package_version
from manifold_bench.defenses.files import atomic_write
from manifold_bench.defenses.identity import OWN, PROJECT, JsonObject, Kind, registered

STAMP = "finished.json"

NOT_OF_RESULTS = ("workers", "quiet", "out", "engine", "address", "export")
"""Arguments that do not change results."""


def request_of(given: argparse.Namespace) -> JsonObject:
    """Return everything that results depend on and that is known before a run without importing torch."""
    data = data_folder(given.data)
    values = {name: value for name, value in vars(given).items() if name not in NOT_OF_RESULTS}
    return {
        "arguments": {name: str(value) if isinstance(value, Path) else value for name, value in values.items()},
        "matrix": hash_of(Path(given.matrix)),
        "code": _hash_all(f"{path}|{hash_of(path)}" for name in OWN for path in _files(PROJECT / name)),
        "data": None if data is None else _listing(data.resolve()),
        "packages": {"python": sys.version, **{name: package_version(name) for name in PACKAGES}},
        "names": {kind: {name: point.value for name, point in registered(kind).items()} for kind in get_args(Kind)},
        "path": sys.path,
        "variables": {name: value for name, value in os.environ.items() if name.startswith("MANIFOLD_BENCH_")},
    }


def stored_output(folder: Path, request: JsonObject) -> dict[str, str] | None:
    """Return what the finished run in that folder showed (see `write_stamp`), or None if anything has changed since."""
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
        unchanged = (
            stamp["request"] == request
            and stamp["read"] == {path: hash_of(Path(path)) for path in stamp["read"]}
            and stamp["left"] == _left(folder)
        )
        shown = {name: stamp["shown"][name] for name in ("screen", "counts")}
        return shown if unchanged and all(isinstance(text, str) for text in shown.values()) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def write_stamp(folder: Path, request: JsonObject, read: Mapping[str, str], shown: dict[str, str]) -> None:
    """Write a file by which the same command recognises that nothing is left to run.

    request: result of `request_of` before the run. read: hashes of other files outside the folder that it read. shown:
    texts that the run showed at its end, for `stored_output`.
    """
    stamp = {"request": request, "read": dict(read), "left": _left(folder), "shown": shown}
    atomic_write(folder / STAMP, json.dumps(stamp, indent=1) + "\n")


def hash_of(path: Path) -> str:
    """Return the sha256 of a file's content; an empty text if it cannot be read, or is a pipe or a device."""
    try:
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _left(folder: Path) -> dict[str, str]:
    """Return name and hash of every file of a run other than its log and the stamp."""
    return {
        str(path.relative_to(folder)): hash_of(path)
        for path in _files(folder)
        if path.name not in (LOG, STAMP) and not path.name.startswith(".")
    }


def _files(folder: Path) -> Iterator[Path]:
    """Yield every file below a folder in order, without caches of the interpreter."""
    for base, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        yield from (Path(base) / name for name in sorted(names))


def _listing(folder: Path) -> str:
    """Return a hash of names, sizes and times of all files below a folder; contents of data would take too long."""
    # a link may lead nowhere
    found = ((path, path.stat() if path.exists() else path.lstat()) for path in _files(folder))
    return _hash_all(f"{path}|{stat.st_size}|{stat.st_mtime_ns}" for path, stat in found)


def _hash_all(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
