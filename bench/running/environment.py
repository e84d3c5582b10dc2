"""Environment variables that have to be set before torch computes; this module must not import torch."""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

SETTINGS = {"MKL_CBWR": "AUTO,STRICT"}
"""Kernels that add up in the same order in batches of every size (docs/reproducibility.md).

MKL, which multiplies matrices in torch's builds for x86, otherwise picks its code by the number of rows on Intel's
processors.
"""

VARIABLES = (
    *SETTINGS,
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_DEBUG_CPU_TYPE",
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "OPENBLAS_CORETYPE",
)
"""Environment variables that change which kernels compute, and so how results are rounded."""

_state = {"command": 0}
"""The id of the process that runs one command and nothing else; 0: none."""


def begin_command() -> None:
    """Note that this process runs one command, from its start to its end, and nothing else."""
    _state["command"] = os.getpid()


def is_command() -> bool:
    """Return whether this process runs one command and nothing else."""
    return _state["command"] == os.getpid()


def choose_kernels() -> None:
    """Set `SETTINGS` for this process and those that it starts, except where the user has set them.

    It has an effect only before torch multiplies its first matrices. Engines call it before they start their workers.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


def ensure_home() -> None:
    """Set HOME to a temporary folder if the user has no writable home, because libraries store settings there.

    ART would otherwise use a folder that users share, and its import fails if the folder is another user's.
    """
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 - which raises nothing where there is no home
    if home.is_absolute() and os.access(home, os.W_OK):
        return
    own = Path(tempfile.gettempdir()) / f"manifold-bench-{os.getuid()}"
    with suppress(FileExistsError):  # another user may have put a file or a link in its place
        own.mkdir(mode=0o700, exist_ok=True)
    there = own.lstat()
    mine = stat.S_ISDIR(there.st_mode) and there.st_uid == os.getuid()
    os.environ["HOME"] = str(own if mine else tempfile.mkdtemp(prefix="manifold-bench-"))
