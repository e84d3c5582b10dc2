"""References to data sets and defenses, which can be sent to other processes, and the search for weights."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Generic, Self, TypeVar

import torch

from manifold_bench.bench.datasets.base import Dataset
from manifold_bench.bench.errors import InputError
from manifold_bench.bench.planning.folders import cache_folder
from manifold_bench.bench.planning.matrix import DefenseChoice, Matrix
from manifold_bench.bench.planning.registry import find
from manifold_bench.bench.planning.usercode import contained
from manifold_bench.defenses import weights
from manifold_bench.defenses.base import Defense, Trainable, TrainableSpec
from manifold_bench.defenses.checks import check_defense
from manifold_bench.defenses.errors import message_of
from manifold_bench.defenses.identity import SCHEME, TRAINABLE, JsonObject, System, key_of, source_sha256, system
from manifold_bench.defenses.models import check_suits
from manifold_bench.defenses.other_state import other_state_sha256

M_co = TypeVar("M_co", bound=Trainable, covariant=True)

TRAINING_SEED = 0
"""Seed of the trainings that a run starts; `manifold-bench train --seed` takes others."""


@dataclass(frozen=True)
class DatasetRef:
    """A data set by its name. data: folder of data files, or None."""

    name: str
    data: Path | None

    def load(self) -> Dataset:
        """Return the data set, which is made once per process; raises InputError."""
        return _loaded(find("datasets", self.name), self.data)  # type: ignore[arg-type]  # a class, with its own __hash__


@cache
def _loaded(cls: type[Dataset], data: Path | None) -> Dataset:
    """Return the data set, which is made once per process."""
    return cls(data=data)


@dataclass(frozen=True, kw_only=True)
class TrainedRef(Generic[M_co]):
    """A trainable module for a data set: its class, its spec, and the file of its weights.

    weights: file of the weights; None if the module learns nothing. weights_sha256: hash of the weights; None until it
    is trained. other_sha256: hash of the tensors that a user's code holds elsewhere (`defenses.other_state`); None
    where there are none. parts: its parts, by the names of their attributes.
    """

    system: System
    spec: TrainableSpec
    weights: Path | None = None
    weights_sha256: str | None = None
    other_sha256: str | None = None
    parts: Mapping[str, TrainedRef[Trainable]] = field(default_factory=dict)

    @property
    def cls(self) -> type[M_co]:
        return self.system.cls

    def build(self) -> M_co:
        """Return the module with its initial weights, which are always the same."""
        with torch.random.fork_rng():
            torch.manual_seed(TRAINING_SEED)
            return weights.built(self.cls, self.spec)

    def fill(self, module: Trainable) -> None:
        """Load trained weights into a built module, first those of its parts, then its own; raises WeightsError."""
        for name, part in self.parts.items():
            part.fill(module.named_parts[name])
        if self.weights is not None and self.weights_sha256 is not None:
            weights.load_into(module, self.weights, self.weights_sha256)

    def load(self, device: str = "cpu") -> M_co:
        """Return the trained module, frozen, in eval mode and on that device; raises WeightsError."""
        module = self.build()
        self.fill(module)
        return weights.freeze(module).to(device)

    @property
    def title_prefix(self) -> str:
        """Text before the labels of the defenses whose part this is; empty for a defense."""
        return f"{self.cls.__name__} of "

    @property
    def files(self) -> tuple[Path, ...]:
        """The weights files of its parts and its own."""
        own = () if self.weights is None else (self.weights,)
        return (*(file for part in self.parts.values() for file in part.files), *own)

    @property
    def trained(self) -> bool:
        """Whether the hash of its own weights is known; False also where it has none."""
        return self.weights_sha256 is not None

    def with_trained_parts(self) -> Self:
        """Return this with the hashes of parts that were trained meanwhile; raises WeightsError if one was not."""
        parts = {name: part.with_trained_parts() for name, part in self.parts.items()}
        found = {
            name: dataclasses.replace(part, weights_sha256=weights.read_card(part.weights).weights_sha256)
            for name, part in parts.items()
            if part.weights and not part.trained
        }
        return dataclasses.replace(self, parts=parts | found)

    @property
    def untrained(self) -> dict[str, TrainedRef[Trainable]]:
        """Everything that has to be trained before it can be loaded, by its name in `part`; parts come first."""
        parts = {
            f"{name}.{inner}" if inner else name: ref
            for name, part in self.parts.items()
            for inner, ref in part.untrained.items()
        }
        return parts | ({"": self} if self.weights and not self.trained else {})

    def part(self, name: str) -> TrainedRef[Trainable]:
        """Return the reference of a part by its dotted name (`classifier.generator`), this for "". Raises KeyError."""
        first, _, rest = name.partition(".")
        return self.parts[first].part(rest) if first else self


@dataclass(frozen=True, kw_only=True)
class DefenseRef(TrainedRef[Defense]):
    """A defense. name: name in the registry. label: label in the matrix. draws: see `DefenseChoice`."""

    name: str
    label: str
    draws: int | None = None

    @property
    def title_prefix(self) -> str:
        return ""


@dataclass(frozen=True)
class PlannedData:
    """A data set with its chosen images and the references of all defenses that a plan needs on it.

    indices: indices of the test images. calibration: indices of the validation images. undefended: model for the
    diagnosis' transfer attacks, or None. no_undefended: reason why there is none.
    """

    dataset: DatasetRef
    indices: tuple[int, ...]
    calibration: tuple[int, ...] = ()
    defenses: tuple[DefenseRef, ...] = ()
    undefended: DefenseRef | None = None
    no_undefended: str = ""

    def defenses_of(self, matrix: Matrix) -> list[DefenseRef]:
        """Return the defenses of a matrix that run on this data set, in the matrix's order.

        Those that a crossed matrix leaves out are not among them.
        """
        by_label = {ref.label: ref for ref in self.defenses}
        chosen = (choice.label for choice in matrix.defenses if choice.defends(self.dataset.name))
        return [by_label[label] for label in chosen if label in by_label]


def defense_ref(choice: DefenseChoice, dataset: Dataset) -> DefenseRef:
    """Return the reference of a defense for a data set, with its weights in the zoo or the cache, if there are any.

    Raises InputError if the parameters do not suit the data, or the weights are damaged.
    """
    with contained(f"defense {choice.label!r} on data set {dataset.name!r} cannot be built"):
        spec = choice.spec(dataset.shape, dataset.num_classes)
        own = system(choice.cls, *TRAINABLE, written=choice.name)
        ref = DefenseRef(name=choice.name, label=choice.label, draws=choice.draws, system=own, spec=spec)
        try:
            check_suits(choice.cls, spec)
        except ValueError as error:
            raise InputError(f"defense {choice.label!r} on data set {dataset.name!r}: {message_of(error)}") from error
        module = ref.build()
        check_defense(module)
        try:
            return located(ref, module, dataset)
        except weights.WeightsError as error:
            raise InputError(str(error)) from error


Ref = TypeVar("Ref", bound=TrainedRef)


def located(ref: Ref, module: Trainable, dataset: Dataset) -> Ref:
    """Return the reference with its weights and those of its parts, and load them into the module.

    Raises WeightsError.
    """
    parts: dict[str, TrainedRef[Trainable]] = {}
    for name, part in module.named_parts.items():
        parts[name] = located(TrainedRef(system=system(type(part), *TRAINABLE), spec=part.spec), part, dataset)
    ref = dataclasses.replace(ref, parts=parts)
    ready = all(part.trained for part in parts.values())
    if ref.cls.fit is Trainable.fit:
        other = other_state_sha256(module) if ref.system.source_sha256 else None
        own = weights.weights_hash(module) if ready else None
        return dataclasses.replace(ref, weights_sha256=own, other_sha256=other)
    cached = cache_file(ref, dataset)
    found = weights.find_weights(module, ref.system, dataset.zoo, cached) if ready else None
    if found is None:
        return dataclasses.replace(ref, weights=cached)
    path, card = found
    weights.load_into(module, path, card.weights_sha256)
    return dataclasses.replace(ref, weights=path, weights_sha256=card.weights_sha256)


def cache_file(ref: TrainedRef, dataset: Dataset, seed: int = TRAINING_SEED, budget: float = 1.0) -> Path:
    """Return the path in the cache for the weights of a training; the name depends on everything that they depend on.

    It depends on the parameters of parts, and not on their weights, because these may not exist yet.
    """
    identity = {
        "identity": SCHEME,
        **ref.system.identity(ref.cls.version, ref.spec),
        "parameters": weights.training_part(ref.spec),
        "dataset": dataset_identity(dataset),
        "seed": seed,
        "budget": budget,
    }
    name = re.sub(r"[^A-Za-z0-9.-]+", "_", ref.system.name)
    return cache_folder("weights") / f"{dataset.name}--{name}--{key_of(identity)[:16]}.safetensors"


def defense_identity(ref: DefenseRef) -> JsonObject:
    """Return the part of an identity that describes a defense."""
    own = ref.system.identity(ref.cls.version, ref.spec)
    other = {"other_sha256": ref.other_sha256} if ref.other_sha256 else {}
    return {"label": ref.label, **own, "weights_sha256": ref.weights_sha256, **other}


def dataset_identity(data: Dataset) -> JsonObject:
    """Return what a data set adds to the identity of a job: its name, its revision, and the hash of a user's code.

    Which images a job takes is another part of that identity.
    """
    return {"name": data.name, "revision": data.revision, "source_sha256": source_sha256(type(data))}
