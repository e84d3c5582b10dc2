"""Atomic writing of files, and what is no file.

A reader, or a later run after a kill, finds a file either complete or not at all.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def is_no_file(path: Path) -> bool:
    """Return whether a path leads to something that is no file, such as a pipe, from which reading may never end."""
    return path.exists() and not path.is_file()


def checked_file(path: Path) -> Path:
    """Return the path of a file that is about to be read; raises OSError where `is_no_file` of anything but a folder.

    Opening a folder fails by itself, and a missing file does too.
    """
    if is_no_file(path) and not path.is_dir():
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a device, not a file", str(path))
    return path


@contextmanager
def with_path_in_errors(path: Path) -> Iterator[None]:
    """Add this path to an error of the system inside that names no file, as that of a write onto a full disk does."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # with a name and no number, Python would no longer show the message
            error.filename = error.filename or str(path)
        raise


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a file so that it is either complete or as it was before.

    The content goes into a temporary file in the same folder, which has to exist. Text is encoded as UTF-8.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with with_path_in_errors(path), draft.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
