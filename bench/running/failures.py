"""Keep the tracebacks of failures in a run's folder."""

from __future__ import annotations

from pathlib import Path

from manifold_bench.defenses.errors import traceback_text


def write_traceback(folder: Path, name: str, text: str = "") -> Path:
    """Write a traceback, by default the current exception's, into `failures` below that folder; return its file."""
    path = folder / "failures" / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text or traceback_text(), encoding="utf-8")
    return path
