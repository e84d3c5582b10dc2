"""The sign of what became of a cell between two runs."""

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
"""In the order of the table on the screen: what fails the gate comes last, next to the closing line."""
