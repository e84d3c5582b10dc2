"""Times of the jobs on this machine, stored in the user's cache for forecasts of later runs."""

from __future__ import annotations

import json
import platform
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from manifold_bench.bench.planning.folders import cache_folder
from manifold_bench.bench.running.estimate import Estimator, Kind
from manifold_bench.defenses.files import checked_file

KEPT = 4000
"""Number of finished jobs that are read: the last ones."""


def timings_file(device: str) -> Path:
    """Return the file for this machine and kind of device."""
    return cache_folder("timings") / f"{platform.node() or 'machine'}-{device.partition(':')[0]}.jsonl"


def remember(device: str, kind: Kind, seconds: float, wall: float) -> None:
    """Append a finished job, by one write; if the cache cannot be written to, only forecasts are worse."""
    path = timings_file(device)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with checked_file(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps([*kind, round(seconds, 6), round(wall, 3)]) + "\n")


def estimator_of(device: str) -> Estimator:
    """Return an estimator that has learnt from the jobs on this machine and kind of device."""
    estimator = Estimator()
    for kind, seconds, wall in _remembered(timings_file(device)):
        estimator.learn(kind, seconds, wall)
    return estimator


def _remembered(path: Path) -> Iterator[tuple[Kind, float, float]]:
    """Yield kind, seconds and wall seconds of jobs; lines of other versions, or damaged ones, are ignored."""
    lines: deque[str] = deque(maxlen=KEPT)
    with suppress(OSError, UnicodeDecodeError), checked_file(path).open(encoding="utf-8") as file:
        lines.extend(file)
    for line in lines:
        with suppress(ValueError, TypeError):
            *kind, seconds, wall = json.loads(line)
            yield Kind(*kind), float(seconds), float(wall)
