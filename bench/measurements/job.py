"""A measurement as a job, and the file of its result.

measurements/<data set>--<defense>--<measurement>--<key>.json   values, identity and status, checked by a hash
measurements/index.json                                          the measurements of the last run, in the plan's order
"""

from __future__ import annotations

import base64
import json
import os
import re
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.diagnosis.inspections import inspections
from bench.engines.calls import ONE_CPU, Call, Engine, Needs
from bench.errors import InputError
from bench.log import LOG, Log
from bench.matrix import Matrix, MeasurementChoice
from bench.measurements.base import Measurement
from bench.plan import DatasetRef, DefenseRef, Options, dataset_identity, defense_identity, key_of
from bench.progress import Board, Work
from bench.records import PROBE
from bench.store import INDEX, atomic_write, file_name
from bench.tables import Table
from defenses.identity import SCHEME, system

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

FOLDER = "measurements"
LEGEND = "One value for each defense; no attack takes part in it."


@dataclass(frozen=True)
class MeasurementJob:
    """A measurement of one defense on one data set; others: the defenses it names, skip: why it makes no sense."""

    dataset: DatasetRef
    defense: DefenseRef
    label: str
    measurement: Measurement
    others: tuple[DefenseRef, ...]
    seed: int
    device: str
    identity: dict[str, Any] = field(repr=False)
    skip: str | None = None
    needs: Needs = ONE_CPU

    @property
    def key(self) -> str:
        return key_of(self.identity)

    @property
    def reads(self) -> tuple[Path, ...]:
        """The files that it needs: its data's and the defenses'."""
        return (*self.dataset.load().files, *(file for ref in (self.defense, *self.others) for file in ref.files))

    @property
    def title(self) -> str:
        return f"{self.dataset.name} / {self.defense.label} / {self.label}"


def measurement_jobs(
    matrix: Matrix,
    options: Options,
    datasets: Iterable[DatasetRef],
    refs: Mapping[str, list[DefenseRef]],
    known: Mapping[str, list[DefenseRef]],
) -> list[MeasurementJob]:
    """Every measurement of the matrix as a job.

    refs: data set name → its defenses that are measured. known: those that a measurement may name as its others.
    """
    return [
        _job(choice, dataset, ref, known[dataset.name], matrix, options.device)
        for dataset in datasets
        for choice in (*matrix.measurements, *_inspections(matrix, dataset, options))
        for ref in refs[dataset.name]
        if choice.concerns(dataset.name, ref.label)
    ]


def _inspections(matrix: Matrix, dataset: DatasetRef, options: Options) -> list[MeasurementChoice]:
    """What the diagnosis looks at, where it runs."""
    entry = next(entry for entry in matrix.datasets if entry.name == dataset.name)
    wanted = entry.n if options.n is None else options.n
    return inspections(matrix, dataset.name, len(dataset.load().chosen(wanted))) if matrix.diagnose else []


def _job(
    choice: MeasurementChoice,
    dataset: DatasetRef,
    ref: DefenseRef,
    known: list[DefenseRef],
    matrix: Matrix,
    device: str,
) -> MeasurementJob:
    measurement, data = choice.measurement, dataset.load()
    by_label = {other.label: other for other in known}
    others = tuple(by_label[label] for label in measurement.others if label in by_label)
    absent = [label for label in measurement.others if label not in by_label]
    own = system(type(measurement), "measurements", written=choice.name)
    identity = {
        "identity": SCHEME,
        "dataset": dataset_identity(data),
        "defense": defense_identity(ref),
        "others": [defense_identity(other) for other in others],
        "measurement": {"label": choice.label, **own.identity(measurement.version, measurement)},
        "seed": matrix.seed,
        "device": device,
    }
    needs = matrix.needs(device, *matrix.resources_of(ref.label), choice.resources)
    skip = f"{absent[0]!r} is not of this data set" if absent else measurement.unsuited(ref.build())
    return MeasurementJob(dataset, ref, choice.label, measurement, others, matrix.seed, device, identity, skip, needs)


def take(
    jobs: Iterable[MeasurementJob],
    folder: Path,
    engine: Engine,
    board: Board,
    timeout: float,
    failures: Mapping[tuple[str, str], str],
) -> int:
    """Takes the measurements that have no result in the run's folder yet; returns how many failed.

    failures: (data set, defense) → why it could not be trained.
    """
    waiting = {}
    jobs = list(jobs)
    for job in jobs:
        needed = [(job.dataset.name, ref.label) for ref in (job.defense, *job.others)]
        if job.skip:
            store(job, folder, "skipped", job.skip)
        elif untrained := [failures[pair] for pair in needed if pair in failures]:
            store(job, folder, "failed", untrained[0])
        elif status(job, folder) != "ok":
            waiting[job.key] = job
    board.expect({key: Work("measurement", job.title) for key, job in waiting.items()})
    calls = [
        Call(
            key, run_measurement, (job, folder), timeout, reads=job.reads, writes=folder, log=folder / LOG,
            needs=job.needs,
        )
        for key, job in waiting.items()
    ]  # fmt: skip
    for outcome in engine.run(calls):
        job = waiting[outcome.id]
        if outcome.failure:
            store(job, folder, "failed", outcome.failure)
        result = read(path_of(job, folder))
        board.done(outcome.id, result["reason"])
    return sum(status(job, folder) not in ("ok", "skipped") for job in jobs)


def run_measurement(job: MeasurementJob, folder: Path) -> None:
    """Measures, and stores the values; what is raised becomes the reason of a failure. folder: the run's."""
    Log(folder / LOG).event("measurement started", title=job.title, key=job.key, pid=os.getpid())
    try:
        others = {ref.label: ref.load(job.device) for ref in job.others}
        defense, data = job.defense.load(job.device), job.dataset.load()
        values = job.measurement.measure(defense, others, data, job.seed)
        pictures = job.measurement.pictures(defense, data, job.seed)
    except Exception as error:
        store(job, folder, "failed", f"{type(error).__name__}: {error}".splitlines()[0])
        log = folder / FOLDER / "failures"
        log.mkdir(exist_ok=True)
        (log / f"{path_of(job, folder).stem}.txt").write_text(traceback.format_exc(), encoding="utf-8")
        return
    store(job, folder, "ok", "", values, pictures)


def path_of(job: MeasurementJob, folder: Path) -> Path:
    """The file of a measurement in a run's folder."""
    return folder / FOLDER / f"{file_name(job.dataset.name, job.defense.label, job.label)}--{job.key[:16]}.json"


def store(
    job: MeasurementJob,
    folder: Path,
    status: str,
    reason: str,
    values: Mapping[str, float] = {},
    pictures: Tensor | None = None,
) -> None:
    """Writes a result whole or not at all; pictures [rows, columns, C, H, W] as 8-bit pixels."""
    content = {
        "dataset": job.dataset.name,
        "defense": job.defense.label,
        "measurement": job.label,
        "title": job.measurement.title,
        "headline": job.measurement.headline,
        "status": status,
        "reason": reason,
        "values": {name: float(value) for name, value in values.items()},
        "identity": job.identity,
    }
    if pictures is not None:
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
        found = f"{type(error).__name__}: {error}".splitlines()[0]
    raise InputError(f"{path}: damaged ({found}); delete it and run again")


def status(job: MeasurementJob, folder: Path) -> str:
    """ok, failed or skipped as stored; missing; or damaged."""
    path = path_of(job, folder)
    if not path.exists():
        return "missing"
    try:
        stored = read(path)
    except InputError:
        return "damaged"
    return str(stored["status"]) if stored["identity"] == json.loads(json.dumps(job.identity)) else "damaged"


def write_index(jobs: Iterable[MeasurementJob], folder: Path) -> None:
    """Says which measurements the run consists of."""
    names = [path_of(job, folder).name for job in jobs]
    if names or (folder / FOLDER).is_dir():
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        atomic_write(folder / FOLDER / INDEX, json.dumps({"measurements": names}, indent=1) + "\n")


def load(folder: Path, probes: bool = False) -> list[dict[str, Any]]:
    """The stored results of the last run in that folder, in its order; raises InputError where one is damaged.

    probes: those of the diagnosis, instead of the matrix' own.
    """
    index = folder / FOLDER / INDEX
    if not index.exists():
        return []
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["measurements"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{index}: damaged ({error}); run again") from error
    results = [read(folder / FOLDER / name) for name in names if (folder / FOLDER / name).exists()]
    return [result for result in results if result["measurement"].startswith(PROBE) == probes]


def measurement_tables(results: list[dict[str, Any]]) -> list[Table]:
    """A table for each data set and measurement: its values, a row for each defense."""
    made = []
    kinds = dict.fromkeys((result["dataset"], result["measurement"]) for result in results)
    for dataset, label in kinds:
        rows = [r for r in results if (r["dataset"], r["measurement"]) == (dataset, label)]
        names = list(dict.fromkeys(name for row in rows for name in row["values"]))
        names = names or [rows[0]["headline"]]
        notes: list[str] = []
        lines = []
        for row in rows:
            cells = [f"{row['values'][name]:.4g}" for name in names] if row["status"] == "ok" else []
            if not cells:
                notes.append(f"{row['status']}: {row['reason']}")
                cells = [f"{row['status']} ({len(notes)})"] * len(names)
            lines.append([row["defense"], *cells])
        title = f"{dataset}: {rows[0]['title']}"
        made.append(Table((dataset, label, "measurement"), title, ["defense", *names], lines, notes, LEGEND))
    return made


def curves(values: Mapping[str, float]) -> dict[str, list[tuple[float, float]]]:
    """Values whose names are a word, a number and maybe more (`within 0.5`, `within 0.5, confidently`), as curves.

    By name without the number; points in the order of the numbers. What stands alone is no curve.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for name, value in values.items():
        if match := re.fullmatch(r"(\w+) ([\d.]+)(.*)", name):
            found.setdefault(match[1] + match[3], []).append((float(match[2]), value))
    return {name: sorted(points) for name, points in found.items() if len(points) > 1}


def measurement_plots(results: list[dict[str, Any]]) -> Iterator[tuple[tuple[str, ...], Figure]]:
    """Curves of each measurement that has any, and a grid of images for each result that has pictures.

    With the parts of the file's name.
    """
    from bench.plots import measured_curves, picture_grid

    for dataset, label in dict.fromkeys((result["dataset"], result["measurement"]) for result in results):
        rows = [r for r in results if (r["dataset"], r["measurement"]) == (dataset, label) and r["status"] == "ok"]
        names = dict.fromkeys(name for row in rows for name in curves(row["values"]))
        for name in names:
            lines = {r["defense"]: points for r in rows if (points := curves(r["values"]).get(name))}
            shown = "".join(c if c.isalnum() else "-" for c in name)
            yield (dataset, label, shown), measured_curves(f"{dataset}: {label}", name, lines)
    for result in results:
        if pictures := result.get("pictures"):
            pixels = np.frombuffer(base64.b64decode(pictures["pixels"]), dtype=np.uint8).reshape(pictures["shape"])
            parts = (result["dataset"], result["defense"], result["measurement"])
            yield parts, picture_grid(f"{result['dataset']}, {result['defense']}: {result['measurement']}", pixels)
