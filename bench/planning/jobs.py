"""From a matrix to jobs: each a (data set, defense, attack, norm) with its ladder of ε, an identity and an estimate."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from manifold_bench.attacks.base import Attack
from manifold_bench.attacks.transfer import Transfer
from manifold_bench.bench.datasets.base import Dataset
from manifold_bench.bench.errors import InputError
from manifold_bench.bench.planning.matrix import ONE_CPU, AttackChoice, Matrix, Needs
from manifold_bench.bench.planning.probes import probes
from manifold_bench.bench.planning.reading import defense_by_name
from manifold_bench.bench.planning.refs import (
    DatasetRef,
    DefenseRef,
    Options,
    calibration_indices,
    dataset_identity,
    defense_identity,
    defense_ref,
)
from manifold_bench.bench.records.schema import ATTACK, CALIBRATION, CLEAN, PROBE, PROBED, REVISION, Kind, protocol
from manifold_bench.defenses.base import Defense
from manifold_bench.defenses.identity import SCHEME, key_of, system


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
    def kind(self) -> Kind:
        """What its rows are about."""
        if self.attack is None:
            return CALIBRATION if self.label == CALIBRATION else CLEAN
        return PROBED if self.label.startswith(PROBE) else ATTACK

    @property
    def names(self) -> tuple[str, str, str, str]:
        """Data set, defense, attack and norm, as its record file is named."""
        return self.dataset.name, self.defense.label, self.label, self.norm

    @property
    def facts(self) -> dict[str, Any]:
        """What the records' index says of it (`records.store.Entry`)."""
        attack = self.attack
        known = {"knowledge": attack.knowledge, "minimal": attack.minimal} if attack else {}
        return {"family": self.defense.cls.family, **known}

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
                held_out = calibration_indices(dataset, matrix.calibration)
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


def _attack_identity(choice: AttackChoice | None, label: str) -> dict[str, Any]:
    if choice is None:
        return {"label": label, "name": label, "version": "1", "parameters": {}, "source_sha256": None}
    own = system(type(choice.attack), "attacks", written=choice.name)
    return {"label": label, **own.identity(choice.attack.revision, choice.attack)}
