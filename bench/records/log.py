"""log.jsonl of a run's folder: what happened and when, one JSON object per line.

The run and its worker processes append to it, and the progress that a run shows is read from it. A resumed run appends
to the same file. Every line has `time` (UTC) and `event`:

run started       command, versions, …                         run finished     jobs, failed, seconds, memory
job started       title, key, pid                              job running      passes, share, eps
training started  title, key, pid                              training epoch   stage, epoch, epochs, figures
… finished        seconds, memory, passes; failed, skipped: reason              (… job, training or measurement)

seconds: wall time of the run, job, training or measurement. memory: largest resident memory in bytes, of all processes
of the run or of the process that did the work. share: estimated share of the job that is done, in [0, 1].
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

from manifold_bench.defenses.files import with_path_in_errors
from manifold_bench.defenses.identity import JsonObject

LOG = "log.jsonl"


@dataclass(frozen=True)
class Log:
    """A log file, to which several processes may append at once. path: of the file."""

    path: Path

    def event(self, event: str, **fields: object) -> None:
        """Append one line with the current time, an event and its fields.

        Other processes may append at the same time. A process that is killed while it writes, or a full disk, may leave
        part of a line, which the next call removes.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps(_plain({"time": now, "event": event, **fields}), ensure_ascii=False, default=str) + "\n"
        self.append(line.encode("utf-8", "replace"))

    def append(self, lines: bytes) -> None:
        """Append whole lines, in the way `event` appends one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with with_path_in_errors(self.path), self.path.open("ab+", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            end = file.seek(0, os.SEEK_END)
            # the lock is held, so nobody is writing: an unfinished line is left over from a killed process
            if end and os.pread(file.fileno(), 1, end - 1) != b"\n":
                file.truncate(os.pread(file.fileno(), end, 0).rfind(b"\n") + 1)
            file.write(lines)

    def read(self, start: int = 0) -> tuple[list[JsonObject], int]:
        """Return the events from byte `start` on, and the position behind the last whole line.

        Lines that are not events are left out; a missing file has no events.
        """
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
    """Return the time of an event in seconds since the epoch, like time.time()."""
    return datetime.fromisoformat(event["time"]).timestamp()


def _plain(value: object) -> object:
    """Return a value with None in place of NaN and infinity, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value
