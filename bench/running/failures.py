"""Keep the tracebacks of failures in a run's folder."""

from __future__ import annotations

import traceback
from pathlib import Path


def write_traceback(folder: Path, name: str, text: str = "") -> Path:
    """Write a traceback, by default the current exception's, into `failures` below that folder; return its file."""
    path = folder / "failures" / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text or traceback.format_exc(), encoding="utf-8")
    return path
