"""Locks for files that one process at a time may write, and removal of drafts that killed processes left."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from manifold_bench.bench.errors import InputError, system_error
from manifold_bench.bench.planning.folders import cache_folder

LOCK = ".lock"
"""Name of the lock file in a run's folder."""

OLD_SECONDS = 3600.0
"""Seconds without a write after which a draft counts as left by a killed process."""


@contextmanager
def run_folder(folder: Path) -> Iterator[None]:
    """Make and lock a run's folder, and delete the drafts that killed runs left in it.

    Raises InputError if it cannot be written to, or another run has locked it.
    """
    with _opened(folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise InputError(
                f"--out: another run works in {folder} ({file.read().strip()}); wait until it ends, "
                "or give another folder"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        remove_drafts(folder, older=0.0)
        yield


def _opened(folder: Path) -> IO[str]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / LOCK).open("a+", encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = system_error(error) if isinstance(error, OSError) else str(error)
        raise InputError(f"--out: {folder} cannot be written to ({reason}); give another folder") from error


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Let one process of this machine at a time run the code inside for a path; the others wait here for their turn."""
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    lock = cache_folder("locks") / f"{name}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def remove_drafts(folder: Path, older: float = OLD_SECONDS) -> None:
    """Delete the drafts of `atomic_write` below a folder that are at least `older` seconds old."""
    for path in folder.rglob(".*.tmp"):
        try:
            if time.time() - path.stat().st_mtime >= older:
                path.unlink()
        except OSError:  # it is gone, or another user's
            continue
