"""Folders of data files, of caches and of baselines."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from manifold_bench.bench.errors import InputError
from manifold_bench.defenses.files import is_no_file

CACHE_VARIABLE = "MANIFOLD_BENCH_CACHE"
DATA_VARIABLE = "MANIFOLD_BENCH_DATA"
BASELINES = Path("results") / "baselines"
MATRICES = Path(__file__).parents[1] / "matrices"
"""Folder of the matrix files that are installed with the code."""


def cache_folder(kind: str) -> Path:
    """Return the folder for one kind of cached files, such as "weights".

    It lies in MANIFOLD_BENCH_CACHE, or else in the user's cache folder.
    """
    return Path(os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir("manifold-bench")) / kind


def data_folder(given: Path | None) -> Path | None:
    """Return the folder of --data, or else of MANIFOLD_BENCH_DATA or None; raises InputError if --data is no folder."""
    if given is not None and not given.is_dir():
        raise InputError(f"--data: {given} is not a folder; give one that exists")
    fallback = os.environ.get(DATA_VARIABLE)
    return given or (Path(fallback) if fallback else None)


def check_files(folder: Path) -> None:
    """Raise InputError for whatever in a folder is neither a file nor a folder: reading from a pipe may never end."""
    for place, _, names in os.walk(folder):
        for path in (Path(place, name) for name in names):
            if is_no_file(path):
                raise InputError(f"{path}: is a pipe, a socket or a device; remove it, only files and folders are read")
