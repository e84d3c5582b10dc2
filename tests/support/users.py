"""Code as users write it: files in a folder of theirs, imported anew after each change."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType


def write(folder: Path, files: Mapping[str, str]) -> Path:
    """Writes files by their paths in the folder; returns the folder."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Makes modules of the folder importable, and forgets them at the end."""
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode, written = True, sys.dont_write_bytecode
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        sys.dont_write_bytecode = written
        for name in set(sys.modules) - before:
            if _lies_in(sys.modules[name], folder):
                del sys.modules[name]


def _lies_in(module: ModuleType, folder: Path) -> bool:
    places = [getattr(module, "__file__", None), *getattr(module, "__path__", [])]
    return any(place and Path(place).is_relative_to(folder) for place in places)
