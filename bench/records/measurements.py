"""Stored results of measurements: one JSON file each in the folder `measurements` of a run."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from manifold_bench.bench.errors import InputError
from manifold_bench.bench.records.store import INDEX, Planned, file_name
from manifold_bench.defenses.errors import one_line
from manifold_bench.defenses.files import atomic_write
from manifold_bench.defenses.identity import key_of

if TYPE_CHECKING:
    from torch import Tensor


FOLDER = "measurements"


class Outcome(NamedTuple):
    """The result of a measurement. status: ok, failed or skipped. pictures: [rows, columns, C, H, W] in [0, 1]."""

    status: str
    reason: str = ""
    values: Mapping[str, float] = {}
    pictures: Tensor | None = None


def path_of(job: Planned, folder: Path) -> Path:
    """The file of a measurement in a run's folder."""
    return folder / FOLDER / f"{file_name(*job.names)}--{job.key[:16]}.json"


def store(job: Planned, folder: Path, outcome: Outcome) -> None:
    """Writes a result, whole or not at all, with its pictures as 8-bit pixels."""
    dataset, defense, label = job.names
    content = {
        "dataset": dataset,
        "defense": defense,
        "measurement": label,
        **job.facts,
        "status": outcome.status,
        "reason": outcome.reason,
        "values": {name: float(value) for name, value in outcome.values.items()},
        "identity": job.identity,
    }
    if (pictures := outcome.pictures) is not None:
        pixels = (pictures * 255).round().byte().cpu().numpy().tobytes()
        content["pictures"] = {"shape": list(pictures.shape), "pixels": base64.b64encode(pixels).decode()}
    path = path_of(job, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps({**content, "sha256": key_of(content)}, indent=1) + "\n")


def read(path: Path) -> dict[str, Any]:
    """A stored result; raises InputError where the file cannot be what was written."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("sha256") == key_of(content):
            return content
        found = "its content doesn't match its checksum"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        found = one_line(error)
    raise InputError(f"{path}: damaged ({found}); delete it and run again")


def status(job: Planned, folder: Path) -> str:
    """ok, failed or skipped as stored; missing; or damaged."""
    path = path_of(job, folder)
    if not path.exists():
        return "missing"
    try:
        stored = read(path)
    except InputError:
        return "damaged"
    return str(stored["status"]) if stored["identity"] == json.loads(json.dumps(job.identity)) else "damaged"


def write_index(jobs: Iterable[Planned], folder: Path) -> None:
    """Says which measurements the run consists of."""
    names = [path_of(job, folder).name for job in jobs]
    if names or (folder / FOLDER).is_dir():
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        atomic_write(folder / FOLDER / INDEX, json.dumps({"measurements": names}, indent=1) + "\n")


def load(folder: Path) -> list[dict[str, Any]]:
    """The stored results of the last run in that folder, in its order; raises InputError where one is damaged."""
    index = folder / FOLDER / INDEX
    if not index.exists():
        return []
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["measurements"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{index}: damaged ({one_line(error)}); run again") from error
    return [read(folder / FOLDER / name) for name in names if (folder / FOLDER / name).exists()]
