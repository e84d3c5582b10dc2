"""Which measurements a matrix asks for: each with its identity and why it is skipped, if it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from manifold_bench.bench.diagnosis.inspections import inspections
from manifold_bench.bench.measurements.base import Measurement
from manifold_bench.bench.planning.matrix import ONE_CPU, Matrix, MeasurementChoice, Needs
from manifold_bench.bench.planning.refs import DatasetRef, DefenseRef, Options, dataset_identity, defense_identity
from manifold_bench.defenses.identity import SCHEME, key_of, system


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
    def names(self) -> tuple[str, str, str]:
        """Data set, defense and measurement, as its file is named."""
        return self.dataset.name, self.defense.label, self.label

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
