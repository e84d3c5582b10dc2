"""Stored results of measurements: one JSON file each in the folder `measurements` of a run."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import BaseModel

from manifold_bench.bench.errors import InputError
from manifold_bench.bench.records.files import STRICT, FileName, Name, Positive, parsed, read_json
from manifold_bench.bench.records.store import INDEX, Planned, check_key, file_name
from manifold_bench.defenses.errors import one_line
from manifold_bench.defenses.files import atomic_write, checked_file
from manifold_bench.defenses.identity import JsonObject, key_of

if TYPE_CHECKING:
    from torch import Tensor


FOLDER = "measurements"

CERTIFIED = "certified accuracy"
"""Headline of measurements of certified accuracy."""


class Outcome(NamedTuple):
    """The result of a measurement.

    status: ok, failed or skipped. reason: why it failed or was skipped. values: name → value. pictures: grid of images
    [rows, columns, C, H, W] with values in [0, 1], or None.
    """

    status: str
    reason: str = ""
    values: Mapping[str, float] = {}
    pictures: Tensor | None = None


def path_of(job: Planned, folder: Path) -> Path:
    """Return the path of a measurement's file in a run's folder."""
    return folder / FOLDER / f"{file_name(*job.names)}--{job.key[:16]}.json"


def store(job: Planned, folder: Path, outcome: Outcome) -> None:
    """Write the result of a measurement to its file, atomically, with its pictures as 8-bit pixels."""
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
    _write(path_of(job, folder), content)


def _write(path: Path, content: JsonObject) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps({**content, "sha256": key_of(content)}, indent=1) + "\n")


class Pictures(BaseModel):
    """Stored images. shape: [rows, columns, C, H, W]. pixels: 8-bit pixels in base64."""

    shape: tuple[Positive, Positive, Literal[1, 3], Positive, Positive]
    pixels: str


class Stored(BaseModel):
    """The content of a measurement's file."""

    model_config = STRICT
    dataset: Name
    defense: Name
    measurement: Name
    title: Name
    headline: Name
    status: Literal["ok", "failed", "skipped"]
    reason: str
    values: dict[Name, float]
    identity: JsonObject
    pictures: Pictures | None = None
    sha256: str


def read(path: Path) -> JsonObject:
    """Return a stored result; raises InputError where the file is missing or damaged."""
    remedy = "delete it and run again"
    try:
        raw = checked_file(path).read_bytes()
        content, plain = parsed(raw, Stored), json.loads(raw)
        check_key(path, content.identity)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: damaged ({one_line(error)}); {remedy}") from error
    if plain.pop("sha256") != key_of(plain):
        raise InputError(f"{path}: damaged (its content doesn't match its checksum); {remedy}")
    fault = ""
    if content.status == "ok" and content.headline not in content.values:
        fault = f"values.{content.headline}: missing"
    if content.pictures and math.prod(content.pictures.shape) != _size(content.pictures.pixels):
        fault = "pictures.pixels: their number does not fit pictures.shape"
    if fault:
        raise InputError(f"{path}: damaged ({fault}); {remedy}")
    return plain


def _size(pixels: str) -> int:
    """Return the number of bytes that a base64 text encodes, −1 for any other text."""
    try:
        return len(base64.b64decode(pixels, validate=True))
    except ValueError:
        return -1


def status(job: Planned, folder: Path) -> str:
    """Return the stored status of a measurement (ok, failed or skipped), or missing, or damaged."""
    path = path_of(job, folder)
    if not path.exists():
        return "missing"
    try:
        stored = read(path)
    except InputError:
        return "damaged"
    return str(stored["status"]) if stored["identity"] == json.loads(json.dumps(job.identity)) else "damaged"


class Index(BaseModel):
    """The content of index.json. measurements: names of the files."""

    measurements: list[FileName]


def write_index(jobs: Iterable[Planned], folder: Path) -> None:
    """Write index.json, which lists the measurements of the run; other files in the folder are of earlier runs."""
    _write_names([path_of(job, folder).name for job in jobs], folder)


def _write_names(names: list[str], folder: Path) -> None:
    if names or (folder / FOLDER).is_dir():
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        atomic_write(folder / FOLDER / INDEX, json.dumps({"measurements": names}, indent=1) + "\n")


def load(folder: Path) -> list[JsonObject]:
    """Return the stored results of the last run in a folder, in the plan's order.

    Raises InputError where a file is damaged.
    """
    return [read(folder / FOLDER / name) for name in _names(folder)]


def copy_without_pictures(folder: Path, target: Path) -> None:
    """Copy the stored results of the last run in a folder to another one, without their pictures.

    Raises InputError where a file is damaged.
    """
    names = _names(folder)
    for name in names:
        content = read(folder / FOLDER / name)
        content.pop("pictures", None)
        _write(target / FOLDER / name, content)
    _write_names(names, target)


def _names(folder: Path) -> list[str]:
    """Return the names of the files of the last run in a folder that are there."""
    index = folder / FOLDER / INDEX
    if not index.exists():
        return []
    names = read_json(index, Index, "run again").measurements
    return [name for name in names if (folder / FOLDER / name).exists()]
