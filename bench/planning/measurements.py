"""Turns the measurements of a matrix into jobs, each with an identity, and a reason if it is skipped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from manifold_bench.bench.measurements.base import Measurement
from manifold_bench.bench.planning.declared import unsuited
from manifold_bench.bench.planning.jobs import PlannedJob
from manifold_bench.bench.planning.matrix import Matrix, MeasurementChoice
from manifold_bench.bench.planning.probes import inspections
from manifold_bench.bench.planning.refs import DefenseRef, PlannedData, dataset_identity, defense_identity
from manifold_bench.bench.planning.usercode import contained
from manifold_bench.defenses.identity import SCHEME, system
from manifold_bench.defenses.weights import with_cards


@dataclass(frozen=True, kw_only=True)
class MeasurementJob(PlannedJob):
    """A measurement of one defense on one data set. others: other defenses that the measurement names."""

    measurement: Measurement
    others: tuple[DefenseRef, ...]

    @property
    def names(self) -> tuple[str, str, str]:
        """Data set, defense and measurement, which name its file."""
        return self.dataset.name, self.defense.label, self.label

    @property
    def facts(self) -> dict[str, str]:
        """Facts that are stored with its values: its title, and the name of its most important value."""
        return {"title": self.measurement.title, "headline": self.measurement.headline}

    @property
    def reads(self) -> tuple[Path, ...]:
        """The files that it needs: those of its data, and the defenses' weights with their cards."""
        weights = with_cards(file for ref in (self.defense, *self.others) for file in ref.files)
        return (*self.dataset.load().files, *weights)


def measurements_on(data: PlannedData, matrix: Matrix, device: str) -> list[MeasurementJob]:
    """Return every measurement of the matrix on one data set as a job, and the diagnosis' inspections, if it runs."""
    inspected = inspections(matrix, data.dataset.name, len(data.indices)) if matrix.diagnose else []
    jobs = []
    for choice in (*matrix.measurements, *inspected):
        for ref in data.defenses_of(matrix):
            if choice.applies_to(data.dataset.name, ref.label):
                with contained(f"measurement {choice.label!r} of {ref.label!r} cannot be planned"):
                    jobs.append(_job(choice, data, ref, matrix, device))
    return jobs


def _job(choice: MeasurementChoice, data: PlannedData, ref: DefenseRef, matrix: Matrix, device: str) -> MeasurementJob:
    measurement = choice.measurement
    by_label = {other.label: other for other in data.defenses}  # with defenses that do not run now
    others = tuple(by_label[label] for label in measurement.others if label in by_label)
    absent = [label for label in measurement.others if label not in by_label]
    own = system(type(measurement), "measurements", written=choice.name)
    identity = {
        "identity": SCHEME,
        "dataset": dataset_identity(data.dataset.load()),
        "defense": defense_identity(ref),
        "others": [defense_identity(other) for other in others],
        "measurement": {"label": choice.label, **own.identity(measurement.version, measurement)},
        "seed": matrix.seed,
        "device": device,
    }
    return MeasurementJob(
        dataset=data.dataset,
        defense=ref,
        label=choice.label,
        seed=matrix.seed,
        device=device,
        identity=identity,
        measurement=measurement,
        others=others,
        skip=f"{absent[0]!r} does not run on this data set" if absent else unsuited(measurement, ref.build()),
        needs=matrix.needs(device, *matrix.resources_of(ref.label), choice.resources),
    )
