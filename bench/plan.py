"""From a matrix to jobs: each a (data set, defense, attack, norm) with its ladder of ε, an identity and an estimate."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Self, TypeVar

import torch

from attacks.base import Attack
from attacks.transfer import Transfer
from bench.cache import cache_folder
from bench.datasets.base import Dataset
from bench.diagnosis.probes import probes
from bench.engines.calls import ONE_CPU, Needs
from bench.errors import InputError
from bench.judge import protocol
from bench.matrix import AttackChoice, DatasetEntry, DefenseChoice, Matrix, defense_by_name
from bench.records import CALIBRATION, CLEAN, REVISION
from bench.registry import find, one_line
from defenses import weights
from defenses.base import Defense, Trainable, TrainableSpec
from defenses.identity import SCHEME, TRAINABLE, System, source_sha256, system

TRAINING_SEED = 0
"""Seed of trainings that a run starts by itself; `python -m bench.train --seed` makes others."""


@dataclass(frozen=True)
class DatasetRef:
    """A data set by name, small enough to send to another process."""

    name: str
    data: Path | None

    def load(self) -> Dataset:
        return load_dataset(self)


@cache
def load_dataset(ref: DatasetRef) -> Dataset:
    """The data set, once per process."""
    return find("datasets", ref.name)(data=ref.data)


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
            part.fill(getattr(module, name))
        if self.weights is not None and self.weights_sha256 is not None:
            weights.load_into(module, self.weights, self.weights_sha256)

    def load(self, device: str = "cpu") -> Any:
        """The trained module, frozen, in eval mode; raises WeightsError."""
        module = self.build()
        self.fill(module)
        return weights.freeze(module).to(device)

    @property
    def told(self) -> str:
        """How it is called before the labels of the defenses that it is for."""
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
    def told(self) -> str:
        return ""


@dataclass(frozen=True)
class Job:
    """What runs at once. attack is None for the clean pass, which every other job of the defense reads.

    identity: everything the result depends on; key: its hash. skip: why the pair makes no sense.
    split: where the indices point to: test, validation, or noise made for the norm "fooling". ladder: whether what is
    beaten at one ε stays beaten at the larger ones. aims: classes that each input is to be taken for, one after the
    other; 1 where the attack chooses. forwards, backwards: estimated passes for one input and aim at one ε, at the
    most, before it is judged. inference_steps: of the defense. source: another defense whose classifier the attacker
    owns, if any. needs: what it occupies of a machine.
    """

    dataset: DatasetRef
    split: str
    indices: tuple[int, ...]
    defense: DefenseRef
    attack: Attack | None
    label: str
    norm: str
    eps: tuple[float, ...]
    seed: int
    draws: int
    device: str
    identity: dict[str, Any] = field(repr=False)
    ladder: bool = True
    aims: int = 1
    forwards: float = 1.0
    backwards: float = 0.0
    inference_steps: int = 0
    skip: str | None = None
    clean_key: str = ""
    source: DefenseRef | None = None
    needs: Needs = ONE_CPU

    @property
    def key(self) -> str:
        return key_of(self.identity)

    @property
    def n(self) -> int:
        return len(self.indices)

    @property
    def title(self) -> str:
        norm = "" if self.attack is None else f" {self.norm}"
        seed = f", seed {self.seed}" if self.seed else ""  # 0, that of most runs, goes without saying
        return f"{self.dataset.name} / {self.defense.label} / {self.label}{norm}{seed}"

    @property
    def reads(self) -> tuple[Path, ...]:
        """The files that it needs: its data's and the defenses'."""
        source = self.source.files if self.source else ()
        return (*self.dataset.load().files, *self.defense.files, *source)

    @property
    def passes(self) -> float:
        """Estimated passes in all, the judge's among them: a minimal-distance attack runs once, others once for each ε.

        In units of a full-strength answer: where a defense optimises inside, an attack's own passes are cheaper.
        """
        runs = 1 if self.attack is not None and self.attack.minimal else len(self.eps)
        answers = self.draws if self.defense.cls.randomized else 1
        one = answers if self.attack is None else self.forwards + self.backwards + answers
        return one * self.n * self.aims * runs


def key_of(identity: dict[str, Any]) -> str:
    """The key of a result: a hash of everything it depends on, the same for the plan and for the stored record."""
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


@dataclass(frozen=True)
class Options:
    """What the command line adds to a matrix; None and empty leave the matrix as it is."""

    data: Path | None = None
    n: int | None = None
    device: str = "cpu"


def dataset_refs(matrix: Matrix, options: Options) -> list[tuple[DatasetRef, tuple[int, ...]]]:
    """The data sets with the chosen test images; reads the data, so that what is missing is said at once."""
    refs = []
    for entry in matrix.datasets:
        ref = DatasetRef(entry.name, options.data)
        refs.append((ref, _chosen(ref, entry, options.n)))
        _calibration(ref, matrix.calibration)  # what is too many is said at once, too
    return refs


def _chosen(ref: DatasetRef, entry: DatasetEntry, n: int | None) -> tuple[int, ...]:
    dataset = ref.load()
    wanted = entry.n if n is None else n
    if wanted is not None and wanted > len(dataset.test):
        raise InputError(f"n = {wanted}: data set {ref.name!r} has {len(dataset.test)} test images")
    return tuple(int(index) for index in dataset.chosen(wanted))


def _calibration(ref: DatasetRef, n: int | None) -> tuple[int, ...]:
    """The chosen validation images; raises InputError where there are fewer."""
    dataset = ref.load()
    if n is not None and n > len(dataset.validation):
        raise InputError(f"calibration = {n}: data set {ref.name!r} has {len(dataset.validation)} validation images")
    return tuple(int(index) for index in dataset.calibration(n or 0))


def defense_ref(choice: DefenseChoice, dataset: Dataset) -> DefenseRef:
    """Finds the weights of a defense for a data set: in the zoo, in the cache, or nowhere yet.

    Raises InputError where the parameters don't suit the data or the weights are damaged.
    """
    try:
        spec = choice.spec(dataset.shape, dataset.num_classes)
        own = system(choice.cls, *TRAINABLE, written=choice.name)
        ref = DefenseRef(name=choice.name, label=choice.label, draws=choice.draws, system=own, spec=spec)
        module = ref.build()
    except Exception as error:  # it may be a user's code: anything may happen
        raise InputError(f"defense {choice.label!r} on data set {dataset.name!r}: {one_line(error)}") from error
    try:
        return located(ref, module, dataset)
    except weights.WeightsError as error:
        raise InputError(str(error)) from error


Ref = TypeVar("Ref", bound=TrainedRef)


def located(ref: Ref, module: Trainable, dataset: Dataset) -> Ref:
    """The same with its weights and those of its parts, which are loaded into the module; raises WeightsError."""
    parts: dict[str, TrainedRef] = {}
    for name in module.parts:
        part = getattr(module, name)
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


def make_jobs(
    matrix: Matrix,
    options: Options,
    datasets: list[tuple[DatasetRef, tuple[int, ...]]],
    refs: dict[str, list[DefenseRef]],
) -> list[Job]:
    """Every cell of the matrix as jobs, clean passes included; refs: data set name → its defenses.

    An attack has a job for each seed. A deterministic defense answers clean images the same with each: one pass serves
    them all.
    """
    jobs: list[Job] = []
    for dataset, indices in datasets:
        source = _undefended(dataset.load(), refs[dataset.name]) if matrix.diagnose else None
        for ref in refs[dataset.name]:
            module = ref.build()
            answers = matrix.seeds if module.randomized else [matrix.seed] * len(matrix.seeds)
            clean = {
                seed: _job(matrix, options, dataset, "test", indices, ref, module, CLEAN, seed) for seed in answers
            }
            jobs += clean.values()
            if matrix.calibration:
                held_out = _calibration(dataset, matrix.calibration)
                jobs.append(
                    _job(matrix, options, dataset, "validation", held_out, ref, module, CALIBRATION, matrix.seed)
                )
            jobs += [
                dataclasses.replace(
                    _job(
                        matrix, options, dataset, *_attacked(choice, indices), ref, module, choice.label, seed, choice
                    ),
                    clean_key=clean[answer].key,
                    skip=choice.attack.unsuited(module),
                )
                for choice in matrix.attacks
                if choice.concerns(dataset.name, ref.label)
                for seed, answer in zip(matrix.seeds, answers, strict=True)
            ]
            if matrix.diagnose:
                jobs += _probe_jobs(matrix, options, dataset, indices, ref, module, source, clean[matrix.seed].key)
    return jobs


def _probe_jobs(
    matrix: Matrix,
    options: Options,
    dataset: DatasetRef,
    indices: tuple[int, ...],
    ref: DefenseRef,
    module: Defense,
    source: DefenseRef | None,
    clean_key: str,
) -> list[Job]:
    """The diagnosis' own attacks on a defense; source: the undefended model, for those made on it."""
    made = []
    for choice, skip in probes(matrix, dataset.name, module, source is not None):
        job = _job(
            matrix, options, dataset, *_attacked(choice, indices), ref, module, choice.label, matrix.seed, choice
        )
        identity, own = job.identity, source if isinstance(choice.attack, Transfer) else None
        if own is not None:
            identity = identity | {"source": defense_identity(own)}
        made.append(dataclasses.replace(job, identity=identity, source=own, clean_key=clean_key, skip=skip))
    return made


def _undefended(dataset: Dataset, refs: list[DefenseRef]) -> DefenseRef | None:
    """A trained model without a defense: of the matrix, or else of the zoo."""
    try:
        own = [ref for ref in refs if ref.name == "undefended"] or [defense_ref(defense_by_name("undefended"), dataset)]
    except InputError:  # the zoo's files are damaged; the matrix doesn't ask for them
        return None
    return own[0] if own[0].trained else None


def _attacked(choice: AttackChoice, indices: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """Split and indices of an attack's inputs: the first n of the clean pass' ones, or as many noise images."""
    first = indices[: choice.n]
    return ("noise", tuple(range(len(first)))) if choice.attack.norm == "fooling" else ("test", first)


def _job(
    matrix: Matrix,
    options: Options,
    dataset: DatasetRef,
    split: str,
    indices: tuple[int, ...],
    ref: DefenseRef,
    module: Defense,
    label: str,
    seed: int,
    choice: AttackChoice | None = None,
) -> Job:
    data = dataset.load()
    attack = choice.attack if choice else None
    norm = attack.norm if attack else "none"
    ladder = choice.ladder if choice else True
    eps = choice.eps if choice else (0.0,)
    draws = ref.draws or matrix.draws
    forwards, backwards = map(float, attack.passes() if attack else (1, 0))
    if attack is not None and module.inference_steps:
        # in units of a full-strength answer; what goes back passes the optimisation by, or a few steps of it
        forwards *= max(1, attack.steps_of_a_pass(module)) / module.inference_steps
        backwards /= module.inference_steps
    identity = {
        "identity": SCHEME,
        "records": REVISION,
        "dataset": {
            **dataset_identity(data),
            "split": split,
            "indices_sha256": hashlib.sha256(json.dumps(indices).encode()).hexdigest(),
            "n": len(indices),
        },
        "defense": defense_identity(ref),
        "attack": _attack_identity(choice, label),
        "norm": norm,
        "eps": [repr(value) for value in eps],
        "ladder": ladder,
        "seed": seed,
        "protocol": protocol(module.randomized, draws),
        "device": options.device,
        "shape": list(data.shape),
        "num_classes": data.num_classes,
    }
    resources = [*matrix.resources_of(ref.label), *([choice.resources] if choice else [])]
    return Job(
        dataset, split, indices, ref, attack, label, norm, eps, seed, draws, options.device,
        identity=identity, ladder=ladder, aims=_aims(attack, data.num_classes), forwards=forwards, backwards=backwards,
        inference_steps=module.inference_steps, needs=matrix.needs(options.device, *resources),
    )  # fmt: skip


def _aims(attack: Attack | None, num_classes: int) -> int:
    """How many classes each input is to be taken for, one after the other; noise has no right class to leave out."""
    if attack is None or attack.aims == "none":
        return 1
    return num_classes - int(attack.aims == "wrong" and attack.norm != "fooling")


def defense_identity(ref: DefenseRef) -> dict[str, Any]:
    """All of a defense that a result depends on."""
    own = ref.system.identity(ref.cls.version, ref.spec)
    return {"label": ref.label, **own, "weights_sha256": ref.weights_sha256}


def dataset_identity(data: Dataset) -> dict[str, Any]:
    """All of a data set that a result depends on, but which images are taken."""
    return {"name": data.name, "revision": data.revision, "source_sha256": source_sha256(type(data))}


def _attack_identity(choice: AttackChoice | None, label: str) -> dict[str, Any]:
    if choice is None:
        return {"label": label, "name": label, "version": "1", "parameters": {}, "source_sha256": None}
    own = system(type(choice.attack), "attacks", written=choice.name)
    return {"label": label, **own.identity(choice.attack.revision, choice.attack)}
