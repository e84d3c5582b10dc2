"""The signs that say how a cell differs between two runs."""

from __future__ import annotations

SIGNS = {
    "=": "no difference",
    "+": "better",
    "~": "difference not significant",
    "x": "not comparable",
    "-": "worse",
    "!": "failed in the new run",
    "?": "vanished from the new run",
}
"""Sign → meaning, in the order of the table on the screen: signs that fail the gate come last, next to its result."""
