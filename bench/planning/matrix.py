"""The types of a matrix file and of a matrix: data sets, defenses and attacks to combine, with their parameters."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from manifold_bench.attacks.base import Attack
from manifold_bench.bench.measurements.base import Measurement
from manifold_bench.bench.planning.claims import Claim
from manifold_bench.bench.planning.sizes import NormName, Sizes
from manifold_bench.defenses.base import Defense, DefenseSpec
from manifold_bench.defenses.identity import JsonObject
from manifold_bench.defenses.validation import adapter

Seed = Annotated[int, Field(ge=0, lt=2**63)]

Count = Annotated[int, Field(ge=1)]

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

Name = Annotated[str, Field(min_length=1)]

Names = Annotated[tuple[Name, ...], Field(min_length=1, strict=False)]


class Entry(BaseModel):
    """The base of tables in a matrix file: unknown keys and values of another type are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class NamedEntry(Entry):
    """A table with a name; a text in its place is the name."""

    name: Name

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value


class DatasetEntry(NamedEntry):
    """A data set. n: number of test images that are used; None: all."""

    n: Count | None = None


class Resources(Entry):
    """The resources that a job occupies, for engines with several machines; None: as the matrix says, or else 1.

    cpus: number of CPUs. gpus: a share of one GPU, or a whole number of GPUs; ignored for jobs on the CPU.
    """

    cpus: Positive | None = None
    gpus: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _share_or_whole(self) -> Resources:
        if self.gpus is not None and self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError(f"gpus = {self.gpus} is not allowed; give a share of one GPU or a whole number of GPUs")
        return self


NO_RESOURCES_GIVEN = Resources()


class SystemEntry(NamedEntry):
    """A defense, attack or measurement with its parameters. label: name in tables, different for each entry."""

    model_config = ConfigDict(extra="allow")
    label: Name | None = None
    resources: Resources = NO_RESOURCES_GIVEN

    @property
    def parameters(self) -> JsonObject:
        return dict(self.model_extra or {})


class DefenseEntry(SystemEntry):
    """A defense.

    datasets: names of the data sets that it runs on; None: all of the matrix. draws: number of answers to each input,
    in place of the matrix's number.
    """

    datasets: Names | None = None
    draws: Count | None = None


class ConfinedEntry(SystemEntry):
    """An attack or measurement. datasets, defenses: names and labels of those that it runs on; None: all."""

    datasets: Names | None = None
    defenses: Names | None = None


class AttackEntry(ConfinedEntry):
    """An attack in one norm. eps: perturbation sizes. n: number of a data set's images that it attacks; None: all.

    ladder: whether inputs that are beaten at one size are not attacked at larger ones; if false, every size attacks
    every input.
    """

    norm: NormName = "linf"
    ladder: bool = True
    n: Count | None = None
    eps: Sizes | None = None


class MatrixFile(Entry):
    """The content of a matrix file; `planning.crossed` has filled in the lists that a crossed one leaves out."""

    datasets: Annotated[tuple[DatasetEntry, ...], Field(min_length=1)]
    defenses: Annotated[tuple[DefenseEntry, ...], Field(min_length=1)]
    attacks: Annotated[tuple[AttackEntry, ...], Field(min_length=1)]
    measurements: tuple[ConfinedEntry, ...] = ()
    claims: tuple[Claim, ...] = ()
    seed: Seed | None = None
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] | None = None
    draws: Count = 1
    calibration: Count | None = None
    diagnose: bool = False
    crossed: bool = False
    work: Positive | None = None
    max_passes: Count | None = None
    timeout: Annotated[Positive, Field(le=1e6)] = 4 * 3600.0  # the timers of a system end before 25 days
    resources: Resources = NO_RESOURCES_GIVEN


@dataclass(frozen=True)
class DefenseChoice:
    """A defense of the matrix: its class, its label, and the parameters of its spec other than the image shape.

    datasets: names of the data sets that it runs on; None: all of the matrix. draws: number of answers to each input if
    it is randomized; None: as the matrix says. resources: resources that its jobs occupy.
    """

    name: str
    label: str
    cls: type[Defense]
    parameters: JsonObject
    datasets: tuple[str, ...] | None = None
    draws: int | None = None
    resources: Resources = NO_RESOURCES_GIVEN

    def defends(self, dataset: str) -> bool:
        """Return whether it runs on the data set with that name."""
        return self.datasets is None or dataset in self.datasets

    def spec(self, shape: tuple[int, int, int], num_classes: int) -> DefenseSpec:
        """Return its spec for images of that shape and number of classes; raises ValidationError."""
        values = {"shape": list(shape), "num_classes": num_classes, **self.parameters}
        return adapter(self.cls.Spec).validate_json(json.dumps(values), strict=True)


@dataclass(frozen=True)
class Confined:
    """The base of attacks and measurements, which may run on some data sets and defenses alone.

    datasets: names of data sets; defenses: labels of defenses; None: all. resources: resources that its jobs occupy.
    """

    datasets: tuple[str, ...] | None = field(default=None, kw_only=True)
    defenses: tuple[str, ...] | None = field(default=None, kw_only=True)
    resources: Resources = field(default=NO_RESOURCES_GIVEN, kw_only=True)

    def runs_on(self, dataset: str) -> bool:
        """Return whether it runs on that data set (by name)."""
        return self.datasets is None or dataset in self.datasets

    def applies_to(self, dataset: str, defense: str) -> bool:
        """Return whether it runs on that data set (by name) and defense (by label)."""
        return self.runs_on(dataset) and (self.defenses is None or defense in self.defenses)


@dataclass(frozen=True)
class AttackChoice(Confined):
    """An attack of the matrix, ready to run, with its label.

    eps: perturbation sizes, ascending. ladder: whether an input that is beaten at one ε counts as beaten at the larger
    ones. n: number of test images that it attacks, the first of those chosen; None: all. parameters: those set in its
    entry of the matrix file.
    """

    name: str
    label: str
    attack: Attack
    eps: tuple[float, ...]
    ladder: bool = field(default=True, kw_only=True)
    n: int | None = field(default=None, kw_only=True)
    parameters: JsonObject = field(default_factory=dict, kw_only=True, compare=False)


@dataclass(frozen=True)
class MeasurementChoice(Confined):
    """A measurement of the matrix, ready to run, with its label."""

    name: str
    label: str
    measurement: Measurement


@dataclass(frozen=True)
class Matrix:
    """A matrix with all names resolved and all values checked.

    source: path or name of the file. seeds: seeds with each of which every attack runs once; an input is robust if it
    is robust with all of them. Everything else runs with the first seed alone, except clean passes of randomized
    defenses.
    draws: number of answers of a randomized defense to each input, which is robust if it is in every answer. timeout:
    seconds that a job may take before it counts as failed. calibration: number of clean validation images that each
    defense answers, for figures that need thresholds; None: none. claims: published numbers, and the figures that they
    are compared with.
    diagnose: whether the probes of the masking diagnosis run too. budget: sentence that says what was cut to fit a
    budget of time; empty without a budget.
    crossed: whether defenses without weights, and those that do not suit a data set, are left out with a reason,
    instead of being trained or refused. Then every defense meets its first attack before any meets its second. work:
    billions of operations that an attack may take in a job (`planning.work`); None: no limit.
    """

    source: str
    datasets: tuple[DatasetEntry, ...]
    defenses: tuple[DefenseChoice, ...]
    attacks: tuple[AttackChoice, ...]
    seeds: tuple[int, ...]
    draws: int
    timeout: float
    calibration: int | None = None
    measurements: tuple[MeasurementChoice, ...] = ()
    claims: tuple[Claim, ...] = ()
    diagnose: bool = False
    crossed: bool = False
    work: float | None = None
    resources: Resources = NO_RESOURCES_GIVEN
    budget: str = ""

    def resources_of(self, defense: str) -> list[Resources]:
        """Return the resources of the defense with that label, in a list; empty if it is not in the matrix."""
        return [choice.resources for choice in self.defenses if choice.label == defense]

    def needs(self, device: str, *parts: Resources) -> Needs:
        """Return the resources that a job occupies. parts: resources of its defense and its attack; the larger counts.

        If neither gives a number, it is that of the matrix, or else one CPU, and one GPU if the device is a GPU.
        """

        def most(*given: float | None, matrix: float | None) -> float:
            return max((value for value in given if value is not None), default=1.0 if matrix is None else matrix)

        cpus = most(*(part.cpus for part in parts), matrix=self.resources.cpus)
        gpus = most(*(part.gpus for part in parts), matrix=self.resources.gpus)
        return Needs(cpus, 0.0 if device == "cpu" else gpus)

    @property
    def seed(self) -> int:
        """The first of the seeds."""
        return self.seeds[0]


@dataclass(frozen=True)
class Needs:
    """The resources that a call occupies. cpus: number of CPUs. gpus: a share of one GPU, or a whole number of GPUs."""

    cpus: float = 1.0
    gpus: float = 0.0


ONE_CPU = Needs()
