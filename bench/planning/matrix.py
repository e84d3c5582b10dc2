"""The types of a matrix: which data sets, defenses and attacks are crossed, and with which parameters."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from manifold_bench.attacks.base import Attack
from manifold_bench.attacks.threat import Norm
from manifold_bench.bench.measurements.base import Measurement
from manifold_bench.bench.planning.claims import Claim
from manifold_bench.bench.planning.sizes import Sizes
from manifold_bench.defenses.base import Defense, DefenseSpec
from manifold_bench.defenses.identity import JsonObject

Seed = Annotated[int, Field(ge=0, lt=2**63)]

Count = Annotated[int, Field(ge=1)]

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

Name = Annotated[str, Field(min_length=1)]

Names = Annotated[tuple[Name, ...], Field(min_length=1, strict=False)]


class Entry(BaseModel):
    """A table of the file: no key but its own, no value converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class NamedEntry(Entry):
    """A table that may be a name alone."""

    name: Name

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value


class DatasetEntry(NamedEntry):
    """A data set and how many of its test images are used (all, where n is not given)."""

    n: Count | None = None


class Resources(Entry):
    """How much of a machine a job occupies, for engines that have several machines; None: as the matrix says, or 1.

    gpus: a share of one GPU, or a whole number of them; ignored where the jobs' device is the CPU.
    """

    cpus: Positive | None = None
    gpus: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _share_or_whole(self) -> Resources:
        if self.gpus is not None and self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError(f"gpus = {self.gpus} cannot be had; give a share of one GPU or a whole number")
        return self


NO_RESOURCES_GIVEN = Resources()


class SystemEntry(NamedEntry):
    """A defense or an attack with its parameters; the label tells it from others of the same name."""

    model_config = ConfigDict(extra="allow")
    label: Name | None = None
    resources: Resources = NO_RESOURCES_GIVEN

    @property
    def parameters(self) -> JsonObject:
        return dict(self.model_extra or {})


class DefenseEntry(SystemEntry):
    """A defense; datasets: of which data sets of the matrix (None: of all); draws: as the matrix', for this one."""

    datasets: Names | None = None
    draws: Count | None = None


class ConfinedEntry(SystemEntry):
    """What may be confined to some of the matrix' data sets and defenses, named by their labels."""

    datasets: Names | None = None
    defenses: Names | None = None


class AttackEntry(ConfinedEntry):
    """An attack for one norm, with its ladder of perturbation sizes; n: on the first n of a data set's images.

    ladder: what is beaten at one size isn't attacked at larger ones; where false, each size attacks every input anew.
    """

    norm: Norm = "linf"
    ladder: bool = True
    n: Count | None = None
    eps: Sizes | None = None


class MatrixFile(Entry):
    """The file as written."""

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
    timeout: Positive = 4 * 3600.0
    resources: Resources = NO_RESOURCES_GIVEN


@dataclass(frozen=True)
class DefenseChoice:
    """A defense of the matrix: its class, its label, and the parameters that its spec gets next to the image shape.

    datasets: names of the data sets that it runs on; None: all of the matrix. draws: number of answers to each input if
    it is randomized; None: as the matrix says. resources: what its jobs occupy.
    """

    name: str
    label: str
    cls: type[Defense]
    parameters: JsonObject
    datasets: tuple[str, ...] | None = None
    draws: int | None = None
    resources: Resources = NO_RESOURCES_GIVEN

    def defends(self, dataset: str) -> bool:
        return self.datasets is None or dataset in self.datasets

    def spec(self, shape: tuple[int, int, int], num_classes: int) -> DefenseSpec:
        values = {"shape": list(shape), "num_classes": num_classes, **self.parameters}
        return TypeAdapter(self.cls.Spec).validate_json(json.dumps(values), strict=True)


@dataclass(frozen=True)
class Confined:
    """An attack or a measurement that runs only on the named data sets and defenses; None: on all of them.

    resources: what its jobs occupy.
    """

    datasets: tuple[str, ...] | None = field(default=None, kw_only=True)
    defenses: tuple[str, ...] | None = field(default=None, kw_only=True)
    resources: Resources = field(default=NO_RESOURCES_GIVEN, kw_only=True)

    def applies_to(self, dataset: str, defense: str) -> bool:
        named = ((self.datasets, dataset), (self.defenses, defense))
        return all(allowed is None or name in allowed for allowed, name in named)


@dataclass(frozen=True)
class AttackChoice(Confined):
    """An attack of the matrix, ready to run, with its label and its ε (ascending).

    ladder: whether what is beaten at one ε stays beaten at the larger ones. n: it attacks the first n of a data set's
    chosen images; None: all.
    """

    name: str
    label: str
    attack: Attack
    eps: tuple[float, ...]
    ladder: bool = field(default=True, kw_only=True)
    n: int | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class MeasurementChoice(Confined):
    """A measurement of the matrix, ready to run, with its label."""

    name: str
    label: str
    measurement: Measurement


@dataclass(frozen=True)
class Matrix:
    """What is crossed: everything resolved and valid.

    seeds: each attack runs once with each seed, and an input is robust if it is with all of them. Everything else runs
    with the first seed alone, except clean passes of randomized defenses.
    draws: number of answers of a randomized defense to each input, which is robust if every answer is. timeout: seconds
    that a job may take before it counts as failed. calibration: number of validation images that each defense answers
    unperturbed, for figures that need thresholds; None: none. claims: published numbers, and what of this matrix they
    are compared with.
    diagnose: whether the probes of the masking diagnosis run too. budget: what a budget of time has cut, in a sentence.
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
    resources: Resources = NO_RESOURCES_GIVEN
    budget: str = ""

    def resources_of(self, defense: str) -> list[Resources]:
        """The resources of jobs of the defense with that label; empty where it is not in the matrix."""
        return [choice.resources for choice in self.defenses if choice.label == defense]

    def needs(self, device: str, *parts: Resources) -> Needs:
        """What a job occupies; parts: the resources of its defense and of its attack, of which the larger counts.

        Where none says anything, what the matrix says, or else one CPU, and one GPU where the device is one.
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
    """How much of a machine a call occupies, for engines that have several. gpus: a share of one GPU, or whole ones."""

    cpus: float = 1.0
    gpus: float = 0.0


ONE_CPU = Needs()
