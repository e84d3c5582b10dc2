"""Turns a matrix into jobs: each a data set, defense, attack and norm with all ε, an identity, and an estimate."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from manifold_bench.attacks.base import Attack, Knowledge, ViewAttack
from manifold_bench.attacks.threat import Norm
from manifold_bench.attacks.transfer import Transfer
from manifold_bench.bench.errors import InputError
from manifold_bench.bench.planning.declared import solver_steps, unsuited
from manifold_bench.bench.planning.matrix import ONE_CPU, AttackChoice, Matrix, Needs
from manifold_bench.bench.planning.probes import probes
from manifold_bench.bench.planning.refs import DatasetRef, DefenseRef, PlannedData, dataset_identity, defense_identity
from manifold_bench.bench.planning.usercode import contained
from manifold_bench.bench.planning.work import ADAPTED, LEAST, SMALLEST, known_operations, limited, operations
from manifold_bench.bench.records.schema import (
    ATTACK,
    CALIBRATION,
    CLEAN,
    COUNTING,
    PROBED,
    REVISION,
    Kind,
    protocol,
)
from manifold_bench.defenses.base import Defense
from manifold_bench.defenses.identity import SCHEME, JsonObject, key_of, system
from manifold_bench.defenses.weights import with_cards


@dataclass(frozen=True)
class AttackFacts:
    """The properties of an attack that the judge needs without the attack's code; fields are as in `Attack`."""

    norm: Norm
    knowledge: Knowledge
    aims: Literal["none", "wrong", "every"]
    minimal: bool


@dataclass(frozen=True, kw_only=True)
class PlannedJob:
    """The base of attack jobs and measurement jobs: one call on one defense and data set.

    identity: everything that the result depends on. key: hash of the identity. skip: reason why the job makes no sense,
    or None. needs: resources that it occupies on a machine.
    """

    dataset: DatasetRef
    defense: DefenseRef
    label: str
    seed: int
    device: str
    identity: JsonObject = field(repr=False)
    skip: str | None = None
    needs: Needs = ONE_CPU

    @property
    def key(self) -> str:
        return key_of(self.identity)

    @property
    def title(self) -> str:
        return f"{self.dataset.name} / {self.defense.label} / {self.label}"


@dataclass(frozen=True, kw_only=True)
class Job(PlannedJob):
    """An attack on a defense, or the pass over its clean inputs, whose records all other jobs of the defense read.

    attack: None for the clean pass.

    kind: kind of its records. split: split that the indices belong to: test, validation, or noise for the norm
    "fooling". ladder: whether an input that is beaten at one ε counts as beaten at the larger ones. aims: number of
    target classes for each input; 1 if the attack gets none. forwards, backwards: estimates of the largest numbers
    of passes for one input and target class at one ε, without the judge's. inference_steps: number of solver steps
    of the defense's answer. operations: billions of operations of an answer, where the matrix limits the work of a
    job, or None. clean_key: key of the clean pass. source: another defense whose classifier the attacker owns, or
    None. keeps_images: whether every judged image is stored, not only the first few.
    """

    kind: Kind
    split: str
    indices: tuple[int, ...]
    attack: Attack | AttackFacts | None
    norm: str
    eps: tuple[float, ...]
    draws: int
    ladder: bool
    aims: int
    forwards: float
    backwards: float
    inference_steps: int
    operations: float | None = None
    clean_key: str = ""
    source: DefenseRef | None = None
    keeps_images: bool = False

    @property
    def for_judge(self) -> Job:
        """This job for its judge, which never imports the attack.

        The attack's norm, knowledge, aims and `minimal` are in the place of the attack, and `source` is None.
        """
        attack = self.attack
        facts = AttackFacts(attack.norm, attack.knowledge, attack.aims, attack.minimal) if attack else None
        return dataclasses.replace(self, attack=facts, source=None)

    @property
    def n(self) -> int:
        return len(self.indices)

    @property
    def names(self) -> tuple[str, str, str, str]:
        """Data set, defense, attack and norm, which name its record file."""
        return self.dataset.name, self.defense.label, self.label, self.norm

    @property
    def facts(self) -> JsonObject:
        """Return what the index of the records stores of this job (`records.store.Entry`)."""
        attack = self.attack
        known = {"knowledge": attack.knowledge, "minimal": attack.minimal} if attack else {}
        return {"family": self.defense.cls.family, **known}

    @property
    def title(self) -> str:
        norm = "" if self.attack is None else f" {self.norm}"
        seed = f", seed {self.seed}" if self.seed else ""  # 0 is the seed of most runs, and is left out
        return f"{super().title}{norm}{seed}"

    @property
    def reads(self) -> tuple[Path, ...]:
        """The files that it needs: those of its data, and the defenses' weights with their cards."""
        source = self.source.files if self.source else ()
        return (*self.dataset.load().files, *with_cards((*self.defense.files, *source)))

    @property
    def passes(self) -> float:
        """Estimated number of all passes, including the judge's; a minimal attack runs once, others once for each ε.

        The unit is one deployed answer: if a defense optimises at inference, passes of an attack may be cheaper.
        """
        runs = 1 if self.attack is not None and self.attack.minimal else len(self.eps)
        answers = self.draws if self.defense.cls.randomized else 1
        one = answers if self.attack is None else self.forwards + self.backwards + answers
        return one * self.n * self.aims * runs


def jobs_on(data: PlannedData, matrix: Matrix, device: str) -> list[Job]:
    """Return all jobs of the matrix on one data set, clean passes included; raises InputError."""
    jobs = []
    for ref in data.defenses_of(matrix):
        with contained(f"defense {ref.label!r} on data set {data.dataset.name!r} cannot be planned"):
            jobs += _Defended(data, matrix, device, ref).jobs()
    return jobs


@dataclass(frozen=True)
class _Defended:
    """Makes the jobs of one defense on one data set."""

    data: PlannedData
    matrix: Matrix
    device: str
    ref: DefenseRef

    @cached_property
    def module(self) -> Defense:
        return self.ref.build()

    @cached_property
    def own_identity(self) -> JsonObject:
        return defense_identity(self.ref)

    def jobs(self) -> list[Job]:
        """Return a job for the clean pass, one for the calibration images, and one for each attack, norm and seed.

        A deterministic defense needs one clean pass, because its answers do not depend on the seed. If the limit on
        work leaves no attack on a slow defense, its clean pass has `LEAST` images, too.
        """
        matrix, here = self.matrix, (self.data.dataset.name, self.ref.label)
        answers = matrix.seeds if self.module.randomized else [matrix.seed] * len(matrix.seeds)
        chosen = [self.fitted(entry) for entry in matrix.attacks if entry.applies_to(*here)]
        spared = matrix.work is not None and chosen and all(skip for _, skip in chosen)
        indices = self.data.indices[: LEAST if spared else None]
        clean = {seed: self.job(CLEAN, ("test", indices), seed) for seed in answers}
        jobs = list(clean.values())
        if self.data.calibration:
            jobs.append(self.job(CALIBRATION, ("validation", self.data.calibration), matrix.seed))
        for choice, skip in chosen:
            for seed, answer in zip(matrix.seeds, answers, strict=True):
                job = self.job(ATTACK, self.attacked(choice), seed, choice)
                jobs.append(dataclasses.replace(job, clean_key=clean[answer].key, skip=skip))
        return jobs + (self.probes(clean[matrix.seed].key) if matrix.diagnose else [])

    def fitted(self, choice: AttackChoice) -> tuple[AttackChoice, str | None]:
        """Return an attack as it fits into the limit on work, and why it is skipped, or None."""
        if skip := unsuited(choice.attack, self.module) or self.repeated(choice):
            return choice, skip
        found = self.affordable(choice)
        return (choice, found) if isinstance(found, str) else (found, None)

    def repeated(self, choice: AttackChoice) -> str | None:
        """Return why a crossed matrix leaves out an attack with a named gradient, or None.

        With the gradient that is the defense's default, the attack is the one that leaves the choice to the defense.
        """
        attack, modes = choice.attack, self.module.gradient_modes
        if not self.matrix.crossed or not isinstance(attack, ViewAttack):
            return None
        if attack.gradient == "default" or attack.gradient != modes[0]:
            return None
        same = dataclasses.replace(attack, gradient="default")
        twin = next((one.label for one in self.matrix.attacks if one.attack == same and one.eps == choice.eps), None)
        return twin and f"{attack.gradient!r} is the default gradient of this defense, so this is the same as {twin!r}"

    def affordable(self, choice: AttackChoice) -> AttackChoice | str:
        """Return the attack as it fits into the matrix's limit on work, or why it cannot run (`limited`)."""
        if self.matrix.work is None:
            return choice
        attack, inputs = choice.attack, len(self.attacked(choice)[1])
        answers = (self.ref.draws or self.matrix.draws) if self.module.randomized else 1
        runs = 1 if attack.minimal else len(choice.eps)
        passes = (sum(self.effort(attack)) + answers) * runs * _aims(attack, self.data.dataset.load().num_classes)
        limit = self.matrix.work * (ADAPTED if self.module.family in attack.adapted_to else 1.0)
        found = limited(attack, inputs, self.operations * passes, limit)
        return found if isinstance(found, str) else dataclasses.replace(choice, attack=found[0], n=found[1])

    @property
    def operations(self) -> float:
        """Estimated billions of operations of one answer, used only where the matrix limits the work of a job."""
        known, key = known_operations(), key_of(self.own_identity)
        if key not in known:
            known[key] = SMALLEST
            image = self.data.dataset.load().test.images[self.data.indices[0]]
            with suppress(InputError), contained(f"defense {self.ref.label!r} cannot answer"):  # its jobs will say why
                known[key] = operations(self.ref.load(), image)
        return known[key]

    def effort(self, attack: Attack) -> tuple[float, float]:
        """Return the forward and backward passes of an attack for one input, in units of a deployed answer.

        Where the defense has a solver, a backward pass takes none or only a few steps of it.
        """
        forwards, backwards = attack.affordable_passes()
        steps = self.module.inference_steps
        if not steps:
            return forwards, backwards
        return forwards * max(1, solver_steps(attack, self.module)) / steps, backwards / steps

    def probes(self, clean_key: str) -> list[Job]:
        """Return the jobs of the diagnosis' attacks."""
        data, made = self.data, []
        no_source = None if data.undefended else data.no_undefended
        for choice, skip in probes(self.matrix, data.dataset.name, self.module, no_source):
            job = self.job(PROBED, self.attacked(choice), self.matrix.seed, choice)
            if data.undefended and isinstance(choice.attack, Transfer):
                identity = job.identity | {"source": defense_identity(data.undefended)}
                job = dataclasses.replace(job, identity=identity, source=data.undefended)
            made.append(dataclasses.replace(job, clean_key=clean_key, skip=skip))
        return made

    def attacked(self, choice: AttackChoice) -> tuple[str, tuple[int, ...]]:
        """Return split and indices of an attack's inputs: the first n of the clean pass, or as many noise images."""
        first = self.data.indices[: choice.n]
        return ("noise", tuple(range(len(first)))) if choice.attack.norm == "fooling" else ("test", first)

    def job(
        self, kind: Kind, inputs: tuple[str, tuple[int, ...]], seed: int, choice: AttackChoice | None = None
    ) -> Job:
        """Return a job of that kind on these inputs (split and indices); choice: the attack, None for clean inputs."""
        (split, indices), dataset, matrix = inputs, self.data.dataset.load(), self.matrix
        label, attack = (choice.label, choice.attack) if choice else (kind, None)
        norm = attack.norm if attack else "none"
        eps, ladder = (choice.eps, choice.ladder) if choice else ((0.0,), True)
        draws = self.ref.draws or matrix.draws
        forwards, backwards = self.effort(attack) if attack else (1.0, 0.0)
        identity = {
            "identity": SCHEME,
            "records": REVISION,
            "dataset": {
                **dataset_identity(dataset),
                "split": split,
                "indices_sha256": hashlib.sha256(json.dumps(indices).encode()).hexdigest(),
                "n": len(indices),
            },
            "defense": self.own_identity,
            "attack": _attack_identity(choice, label),
            "norm": norm,
            "eps": [repr(value) for value in eps],
            "ladder": ladder,
            "seed": seed,
            "protocol": protocol(self.module.randomized, draws),
            "device": self.device,
            "shape": list(dataset.shape),
            "num_classes": dataset.num_classes,
            **({"answers": COUNTING} if self.module.randomized else {}),
        }
        resources = [*matrix.resources_of(self.ref.label), *([choice.resources] if choice else [])]
        return Job(
            dataset=self.data.dataset,
            defense=self.ref,
            label=label,
            seed=seed,
            device=self.device,
            identity=identity,
            kind=kind,
            split=split,
            indices=indices,
            attack=attack,
            norm=norm,
            eps=eps,
            draws=draws,
            ladder=ladder,
            aims=_aims(attack, dataset.num_classes),
            forwards=forwards,
            backwards=backwards,
            inference_steps=self.module.inference_steps,
            operations=self.operations if matrix.work is not None else None,
            needs=matrix.needs(self.device, *resources),
        )


def _aims(attack: Attack | None, num_classes: int) -> int:
    """Return the number of target classes for each input; for noise it is all classes, since no class is right."""
    if attack is None or attack.aims == "none":
        return 1
    return num_classes - int(attack.aims == "wrong" and attack.norm != "fooling")


def _attack_identity(choice: AttackChoice | None, label: str) -> JsonObject:
    if choice is None:
        return {"label": label, "name": label, "version": "1", "parameters": {}, "source_sha256": None}
    own = system(type(choice.attack), "attacks", written=choice.name)
    return {"label": label, **own.identity(choice.attack.revision, choice.attack)}
