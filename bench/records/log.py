"""log.jsonl of a run's folder: what happened and when, one JSON object per line.

The run and its worker processes append to it alike, and what a run shows while it works is read from it. A resumed run
goes on in the same file. Every line has `time` (UTC) and `event`:

run started       command, versions, …                         run finished     jobs, failed, seconds, memory
job started       title, key, pid                              job running      passes, share, eps
training started  title, key, pid                              training epoch   stage, epoch, epochs, figures
… finished        seconds, memory, passes; failed, skipped: reason              (… job, training or measurement)

seconds: wall time of the run or of that piece of work. memory: bytes resident at most, of all processes of the run or
of the one that worked. share: of the piece of work that is done, in [0, 1], estimated.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from manifold_bench.defenses.identity import JsonObject

LOG = "log.jsonl"


@dataclass(frozen=True)
class Log:
    """The log file at that path, for any number of processes at once."""

    path: Path

    def event(self, event: str, **fields: object) -> None:
        """Appends a line, whole or not at all, whoever else writes or is killed.

        It is a single write; only a kill in its middle or a full disk leaves a part, which the next one cuts off. The
        lock, which goes with the process that holds it, tells such a part from a line that is being written.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps(_plain({"time": now, "event": event, **fields}), ensure_ascii=False, default=str) + "\n"
        self.append(line.encode("utf-8", "replace"))

    def append(self, lines: bytes) -> None:
        """Appends whole lines, as `event` does its one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            end = file.seek(0, os.SEEK_END)
            if end and os.pread(file.fileno(), 1, end - 1) != b"\n":
                file.truncate(os.pread(file.fileno(), end, 0).rfind(b"\n") + 1)
            file.write(lines)

    def read(self, start: int = 0) -> tuple[list[JsonObject], int]:
        """The events from that byte on, and the byte behind the last whole line; what is no event is left out."""
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                content = file.read()
        except (FileNotFoundError, NotADirectoryError):
            return [], start
        whole = content[: content.rfind(b"\n") + 1]
        events = []
        for line in whole.splitlines():
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(event, dict) and "time" in event and "event" in event:
                events.append(event)
        return events, start + len(whole)


def seconds_of(event: JsonObject) -> float:
    """When it happened, on the clock of time.time()."""
    return datetime.fromisoformat(event["time"]).timestamp()


def _plain(value: object) -> object:
    """JSON has no NaN and no infinity: null stands for both."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value
