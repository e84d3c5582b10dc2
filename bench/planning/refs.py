"""References to data sets and defenses that can be sent to other processes, and where weights lie."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Self, TypeVar

import torch

from manifold_bench.bench.datasets.base import Dataset
from manifold_bench.bench.errors import InputError
from manifold_bench.bench.planning.folders import cache_folder
from manifold_bench.bench.planning.matrix import DefenseChoice, Matrix
from manifold_bench.bench.planning.registry import find
from manifold_bench.bench.planning.usercode import contained
from manifold_bench.defenses import weights
from manifold_bench.defenses.base import Trainable, TrainableSpec
from manifold_bench.defenses.checks import check_defense
from manifold_bench.defenses.identity import SCHEME, TRAINABLE, JsonObject, System, key_of, source_sha256, system

TRAINING_SEED = 0
"""Seed of trainings that a run starts by itself; `manifold-bench train --seed` makes others."""


@dataclass(frozen=True)
class DatasetRef:
    """A data set by name, small enough to send to another process."""

    name: str
    data: Path | None

    def load(self) -> Dataset:
        return _loaded(find("datasets", self.name), self.data)  # type: ignore[arg-type]  # a class, with its own __hash__


@cache
def _loaded(cls: type[Dataset], data: Path | None) -> Dataset:
    """The data set, once per process."""
    return cls(data=data)


@dataclass(frozen=True, kw_only=True)
class TrainedRef:
    """Something trainable for a data set: its class and spec, and where its weights are.

    weights: file, or None for what learns nothing. weights_sha256: None until it is trained. parts: what it is built
    on, by attribute.
    """

    system: System
    spec: TrainableSpec
    weights: Path | None = None
    weights_sha256: str | None = None
    parts: Mapping[str, TrainedRef] = field(default_factory=dict)

    @property
    def cls(self) -> type[Any]:
        return self.system.cls

    def build(self) -> Any:
        """The module with its initial weights, always the same ones."""
        with torch.random.fork_rng():
            torch.manual_seed(TRAINING_SEED)
            return self.cls(self.spec)

    def fill(self, module: Trainable) -> None:
        """Loads what is trained into a module that was built: the parts, then its own; raises WeightsError."""
        for name, part in self.parts.items():
            part.fill(module.named_parts[name])
        if self.weights is not None and self.weights_sha256 is not None:
            weights.load_into(module, self.weights, self.weights_sha256)

    def load(self, device: str = "cpu") -> Any:
        """The trained module, frozen, in eval mode; raises WeightsError."""
        module = self.build()
        self.fill(module)
        return weights.freeze(module).to(device)

    @property
    def title_prefix(self) -> str:
        """What is written before the labels of the defenses that it is a part of; empty for a defense itself."""
        return f"{self.cls.__name__} of "

    @property
    def files(self) -> tuple[Path, ...]:
        own = () if self.weights is None else (self.weights,)
        return (*(file for part in self.parts.values() for file in part.files), *own)

    @property
    def trained(self) -> bool:
        return self.weights_sha256 is not None

    def with_trained_parts(self) -> Self:
        """With the hashes of parts that were trained since this was made; raises WeightsError for what was not."""
        parts = {name: part.with_trained_parts() for name, part in self.parts.items()}
        found = {
            name: dataclasses.replace(part, weights_sha256=weights.read_card(part.weights).weights_sha256)
            for name, part in parts.items()
            if part.weights and not part.trained
        }
        return dataclasses.replace(self, parts=parts | found)

    @property
    def untrained(self) -> dict[str, TrainedRef]:
        """What has to be trained before it can be loaded, by `part`: missing parts first, then itself if it learns."""
        parts = {
            f"{name}.{inner}" if inner else name: ref
            for name, part in self.parts.items()
            for inner, ref in part.untrained.items()
        }
        return parts | ({"": self} if self.weights and not self.trained else {})

    def part(self, name: str) -> TrainedRef:
        """One of its parts, or a part of that (`classifier.generator`); "" is itself. Raises KeyError."""
        first, _, rest = name.partition(".")
        return self.parts[first].part(rest) if first else self


@dataclass(frozen=True, kw_only=True)
class DefenseRef(TrainedRef):
    """A defense by its name in the registry and its label in the matrix; draws: see `DefenseChoice`."""

    name: str
    label: str
    draws: int | None = None

    @property
    def title_prefix(self) -> str:
        return ""


@dataclass(frozen=True)
class PlannedData:
    """A data set with its chosen images and the references of all defenses that a plan needs on it.

    indices: of test images. calibration: indices of validation images. undefended: the model that the diagnosis'
    transfer attacks are made on; no_undefended: why there is none.
    """

    dataset: DatasetRef
    indices: tuple[int, ...]
    calibration: tuple[int, ...] = ()
    defenses: tuple[DefenseRef, ...] = ()
    undefended: DefenseRef | None = None
    no_undefended: str = ""

    def defenses_of(self, matrix: Matrix) -> list[DefenseRef]:
        """The defenses of a matrix on this data set, in its order."""
        by_label = {ref.label: ref for ref in self.defenses}
        name = self.dataset.name
        return [by_label[choice.label] for choice in matrix.defenses if choice.defends(name)]


def defense_ref(choice: DefenseChoice, dataset: Dataset) -> DefenseRef:
    """Finds the weights of a defense for a data set: in the zoo, in the cache, or nowhere yet.

    Raises InputError where the parameters don't suit the data or the weights are damaged.
    """
    with contained(f"defense {choice.label!r} on data set {dataset.name!r} cannot be built"):
        spec = choice.spec(dataset.shape, dataset.num_classes)
        own = system(choice.cls, *TRAINABLE, written=choice.name)
        ref = DefenseRef(name=choice.name, label=choice.label, draws=choice.draws, system=own, spec=spec)
        module = ref.build()
        check_defense(module)
        try:
            return located(ref, module, dataset)
        except weights.WeightsError as error:
            raise InputError(str(error)) from error


Ref = TypeVar("Ref", bound=TrainedRef)


def located(ref: Ref, module: Trainable, dataset: Dataset) -> Ref:
    """The same with its weights and those of its parts, which are loaded into the module; raises WeightsError."""
    parts: dict[str, TrainedRef] = {}
    for name, part in module.named_parts.items():
        parts[name] = located(TrainedRef(system=system(type(part), *TRAINABLE), spec=part.spec), part, dataset)
    ref = dataclasses.replace(ref, parts=parts)
    ready = all(part.trained for part in parts.values())
    if ref.cls.fit is Trainable.fit:
        return dataclasses.replace(ref, weights_sha256=weights.weights_hash(module) if ready else None)
    cached = cache_file(ref, dataset)
    found = weights.find_weights(module, ref.system, dataset.zoo, cached) if ready else None
    if found is None:
        return dataclasses.replace(ref, weights=cached)
    path, card = found
    weights.load_into(module, path, card.weights_sha256)
    return dataclasses.replace(ref, weights=path, weights_sha256=card.weights_sha256)


def cache_file(ref: TrainedRef, dataset: Dataset, seed: int = TRAINING_SEED, budget: float = 1.0) -> Path:
    """Where what is trained here is kept; the name depends on everything that the training does.

    On its parts by their own training, not by their weights: there may be none yet.
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
    """All of a defense that a result depends on."""
    own = ref.system.identity(ref.cls.version, ref.spec)
    return {"label": ref.label, **own, "weights_sha256": ref.weights_sha256}


def dataset_identity(data: Dataset) -> JsonObject:
    """All of a data set that a result depends on, but which images are taken."""
    return {"name": data.name, "revision": data.revision, "source_sha256": source_sha256(type(data))}
