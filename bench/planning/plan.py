"""The plan of a run: data sets with their chosen images, defenses with their weights, and all jobs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from manifold_bench.attacks.threat import UNBOUNDED
from manifold_bench.bench.datasets.base import Dataset
from manifold_bench.bench.datasets.checks import check_dataset
from manifold_bench.bench.errors import InputError, MissingData
from manifold_bench.bench.planning.jobs import Job, jobs_on
from manifold_bench.bench.planning.matrix import AttackChoice, DatasetEntry, DefenseChoice, Matrix, MeasurementChoice
from manifold_bench.bench.planning.measurements import MeasurementJob, measurements_on
from manifold_bench.bench.planning.reading import defense_by_name
from manifold_bench.bench.planning.refs import DatasetRef, DefenseRef, PlannedData, defense_ref
from manifold_bench.bench.planning.sizes import check_size
from manifold_bench.bench.planning.stale import check_not_stale
from manifold_bench.bench.planning.usercode import contained
from manifold_bench.bench.planning.work import work_text
from manifold_bench.bench.records.schema import ATTACK
from manifold_bench.defenses.base import Trainable
from manifold_bench.defenses.identity import JsonObject
from manifold_bench.defenses.models import RandomizedModel
from manifold_bench.defenses.weights import WeightsError

NO_TRAINING = "it has to be trained, and this data set has only test images"
"""Reason why a defense without weights has no place on a data set."""


@dataclass(frozen=True)
class Options:
    """The options of the command line that are not in a matrix.

    data: folder of data files. n: number of images of each data set; None: as in the matrix. device: device of the
    jobs. keep_images: whether every attacked image is stored. named: labels of the "defenses" and "attacks", and names
    of the "datasets", that the command line names.
    """

    data: Path | None = None
    n: int | None = None
    device: str = "cpu"
    keep_images: bool = False
    named: Mapping[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Omissions:
    """What a plan cannot run, with reasons.

    missing_data: name of each data set whose files are not found, so that it is skipped → why, and where to get them.
    left_out: (data set, label of the defense) → why a crossed matrix leaves the pair out. untrainable: (data set, label
    of the defense) → why its training failed.
    """

    missing_data: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[tuple[str, str], str] = field(default_factory=dict)
    untrainable: Mapping[tuple[str, str], str] = field(default_factory=dict)

    @property
    def lines(self) -> list[str]:
        """A line on each data set without files, and on the defenses that are left out on a data set for one reason."""
        together: dict[tuple[str, str], list[str]] = {}
        for (dataset, label), reason in self.left_out.items():
            together.setdefault((dataset, reason), []).append(label)
        lines = [f"{', '.join(labels)} on {dataset}: {reason}" for (dataset, reason), labels in together.items()]
        return [f"skipped: {reason}" for reason in (*self.missing_data.values(), *lines)]


@dataclass(frozen=True)
class Plan:
    """The plan of a run: the jobs that run, and the other jobs of the matrix, whose records may be stored already.

    matrix: matrix that runs. whole: matrix from which the command line cut it, or the same one. data: each data set
    with its images and with the references of all defenses of both matrices. omissions: what cannot run.
    """

    matrix: Matrix
    whole: Matrix
    options: Options
    data: tuple[PlannedData, ...]
    omissions: Omissions = Omissions()

    @cached_property
    def jobs(self) -> list[Job]:
        """The jobs that run, clean passes included."""
        jobs = [job for data in self.data for job in jobs_on(data, self.matrix, self.options.device)]
        return [replace(job, keeps_images=self.options.keep_images and job.kind == ATTACK) for job in jobs]

    @cached_property
    def other_jobs(self) -> list[Job]:
        """Jobs on these data sets that do not run now: those of the whole matrix combined with the added systems."""
        joined = replace(self, matrix=_joined(self.matrix, self.whole)) if self.is_cut else self
        running = {job.key for job in self.jobs}
        return [job for job in joined.jobs if job.key not in running]

    @cached_property
    def measurements(self) -> list[MeasurementJob]:
        """The measurements that run."""
        return [job for data in self.data for job in measurements_on(data, self.matrix, self.options.device)]

    @cached_property
    def other_measurements(self) -> list[MeasurementJob]:
        """Measurements of the whole matrix, on these data sets, that do not run now."""
        whole = replace(self, matrix=self.whole) if self.is_cut else self
        running = {job.key for job in self.measurements}
        return [job for job in whole.measurements if job.key not in running]

    @property
    def is_cut(self) -> bool:
        """Whether the command line changed which systems of the matrix run."""
        return self.whole != self.matrix

    @property
    def small_data(self) -> list[str]:
        """A line on each data set outside the matrix file that has fewer test images than n there, so all are used."""
        n, listed = self.whole.datasets[0].n or 0, {entry.name for entry in self.whole.datasets}
        added = [(one.dataset.name, len(one.indices)) for one in self.data if one.dataset.name not in listed]
        text = "{}: all its {} test images are used, fewer than the matrix's n = {}"
        return [text.format(name, size, n) for name, size in added if size < n and self.options.n is None]

    @property
    def running(self) -> list[tuple[DatasetRef, DefenseRef]]:
        """The defenses that run, each with its data set."""
        return [(data.dataset, ref) for data in self.data for ref in data.defenses_of(self.matrix)]

    @property
    def systems(self) -> list[tuple[str, type]]:
        """Every system that runs: its name in the matrix, and its class."""
        matrix = self.matrix
        return [
            *((data.dataset.name, type(data.dataset.load())) for data in self.data),
            *((choice.name, choice.cls) for choice in matrix.defenses),
            *((choice.name, type(choice.attack)) for choice in matrix.attacks),
            *((choice.name, type(choice.measurement)) for choice in matrix.measurements),
        ]

    @property
    def weights(self) -> list[Path]:
        """The files of weights that the defenses use, in order."""
        return sorted({file for _, ref in self.running for file in ref.files})

    def with_trained(self, untrainable: Mapping[tuple[str, str], str]) -> Plan:
        """Return the plan after trainings, with the new weights.

        untrainable: (data set, label of the defense) → why its training failed. Defenses that still have no weights, or
        damaged ones, are added, because a training runs a user's code, which may end without an error.
        """
        choices, untrainable = _choices(self.matrix, self.whole), dict(untrainable)
        running = {(dataset.name, ref.label) for dataset, ref in self.running}

        def located(data: PlannedData, ref: DefenseRef) -> DefenseRef:
            pair = (data.dataset.name, ref.label)
            if ref.trained or pair in untrainable:
                return ref
            try:
                found = defense_ref(choices[ref.label], data.dataset.load())
            except InputError as error:
                untrainable[pair] = str(error)
                return ref
            if not found.trained and pair in running:
                untrainable[pair] = "its training wrote no weights"
            return found

        data = tuple(replace(one, defenses=tuple(located(one, ref) for ref in one.defenses)) for one in self.data)
        data = tuple(_with_undefended(one, self.matrix) for one in data)
        return replace(self, data=data, omissions=replace(self.omissions, untrainable=untrainable))


def make_plan(matrix: Matrix, options: Options, whole: Matrix | None = None) -> Plan:
    """Plan a matrix: read the data, and look for the weights of every defense.

    whole: as in `Plan`; by default the matrix itself. A data set whose files are not found is
    skipped, unless it is named, or no other one is there. All images of a data set outside the whole matrix, or of any
    in a crossed matrix, are used if these are fewer than the matrix's n. Raises InputError for missing data, if data or
    weights are damaged, there are fewer images than requested, a defense does not suit its data, or a file of users'
    code has changed since this program imported it.
    """
    whole, named = whole or matrix, options.named
    chosen: list[PlannedData] = []
    missing: dict[str, MissingData] = {}
    listed = set() if whole.crossed else {entry.name for entry in whole.datasets}
    for entry in matrix.datasets:  # all data first: it fails fastest
        try:
            chosen.append(_chosen(entry, matrix, options, entry.name in listed))
        except MissingData as error:
            if entry.name in named.get("datasets", ()):
                raise
            missing[entry.name] = error
    if not chosen:
        raise next(iter(missing.values()))
    reasons = {name: f"{error}; docs/data.md says where to get it" for name, error in missing.items()}
    choices = _choices(matrix, whole).values()

    left_out: dict[tuple[str, str], str] = {}

    def fitted(entry: DatasetEntry) -> DatasetEntry:
        if matrix.crossed or options.n is not None or entry.n is None or sizes.get(entry.name, entry.n) >= entry.n:
            return entry
        return entry.model_copy(update={"n": None})

    def defended(one: PlannedData) -> PlannedData:
        refs = []
        needed = not matrix.crossed or one.dataset.name in named.get("datasets", ())
        for choice in choices:
            if choice.defends(one.dataset.name):
                crossed = matrix.crossed and choice.label not in named.get("defenses", ())
                found = _ref_or_reason(choice, one.dataset.load(), crossed)
                untrained = isinstance(found, DefenseRef) and bool(found.untrained)
                if untrained and one.dataset.load().test_only:
                    found = _no_training(choice, one.dataset.name, needed and choice in matrix.defenses)
                if isinstance(found, DefenseRef):
                    refs.append(found)
                elif choice in matrix.defenses:
                    left_out[one.dataset.name, choice.label] = found
        return _with_undefended(replace(one, defenses=tuple(refs)), matrix)

    sizes = {one.dataset.name: len(one.indices) for one in chosen}
    matrix = replace(matrix, datasets=tuple(map(fitted, matrix.datasets)))
    data = tuple(map(defended, chosen))
    plan = Plan(matrix, whole, options, data, Omissions(reasons, left_out))
    check_not_stale(plan.systems)
    return plan


def check_attacked(plan: Plan) -> None:
    """Raise InputError, with the reasons, if a matrix has attacks and only clean passes of its plan would run."""
    attacks = [job for job in plan.jobs if job.attack is not None]
    if not plan.matrix.attacks or plan.measurements or not all(job.skip for job in attacks):
        return
    skipped: dict[str, dict[str, None]] = {}
    for job in attacks:
        skipped.setdefault(str(job.skip), {})[f"{job.label} on {job.defense.label}"] = None
    reasons = [f"{', '.join(pairs)}: {reason}" for reason, pairs in skipped.items()] or plan.omissions.lines
    why = "; ".join(reasons) or "its attacks are for other data sets or defenses"
    raise InputError(f"{plan.matrix.source}: nothing would be attacked ({why}); name other attacks or defenses")


def _ref_or_reason(choice: DefenseChoice, dataset: Dataset, crossed: bool) -> DefenseRef | str:
    """Return the reference of a defense on a data set, or the reason why a crossed matrix leaves the pair out.

    Raises InputError if weights are damaged and, where the matrix is not crossed, if the pair does not fit.
    """
    cls = choice.cls
    if crossed and dataset.test_only and (cls.fit is not Trainable.fit or set(cls.parts) - {"classifier"}):
        return NO_TRAINING
    try:
        ref = defense_ref(choice, dataset)
    except InputError as error:
        if not crossed or isinstance(error.__cause__, WeightsError):
            raise
        return str(error)
    if crossed and not ref.trained:
        return f"no weights; `manifold-bench train --dataset {dataset.name} --defense NAME` makes them"
    return ref


def _no_training(choice: DefenseChoice, dataset: str, needed: bool) -> str:
    """Return why an untrained defense is left out on a data set of test images; raises InputError if it is `needed`."""
    if needed:
        raise InputError(
            f"defense {choice.label!r} on data set {dataset!r}: {NO_TRAINING}; give a model that is trained already, "
            "as --defense file.py:Name@weights or, in Python, mb.evaluate(model, data)"
        )
    return NO_TRAINING


def _choices(matrix: Matrix, whole: Matrix) -> dict[str, DefenseChoice]:
    """Return the defenses of both matrices by label."""
    return {choice.label: choice for choice in (*whole.defenses, *matrix.defenses)}


def _joined(matrix: Matrix, whole: Matrix) -> Matrix:
    """Return the whole matrix with the systems that the command line added."""
    known = {choice.label for choice in whole.defenses}

    def place(choice: AttackChoice) -> tuple[object, ...]:
        confined = choice.defenses and tuple(label for label in choice.defenses if label in known)
        return choice.label, choice.attack.norm, choice.datasets, confined

    attacks = {place(choice): choice for choice in (*whole.attacks, *matrix.attacks)}
    return replace(whole, defenses=tuple(_choices(matrix, whole).values()), attacks=tuple(attacks.values()))


def _chosen(entry: DatasetEntry, matrix: Matrix, options: Options, listed: bool) -> PlannedData:
    """Choose the test and validation images of a data set.

    listed: whether the matrix file itself names it; otherwise all test images are chosen where its n is larger.
    Raises InputError if there are too few, or if a perturbation size is larger than any distance between such images.
    """
    ref = DatasetRef(entry.name, options.data)
    with contained(f"data set {ref.name!r} cannot be loaded"):
        data = ref.load()
        check_dataset(data, "test", *(() if data.test_only else ("validation",)))
        n, there, held_out = options.n or entry.n, len(data.test), 0 if data.test_only else matrix.calibration or 0
        if n is not None and n > there and (listed or options.n):
            raise InputError(f"n = {n}: data set {ref.name!r} has {there} test images; give {there} or less")
        if held_out > len(data.validation):
            raise InputError(
                f"calibration = {held_out}: data set {ref.name!r} has {len(data.validation)} validation images; "
                "give that number or less"
            )
        for choice in matrix.attacks:
            if choice.runs_on(ref.name) and choice.attack.norm not in UNBOUNDED:
                for eps in choice.eps:
                    check_size(f"attack {choice.label!r} on {ref.name!r}", choice.attack.norm, eps, data.shape)
        return PlannedData(ref, tuple(map(int, data.chosen(n))), tuple(map(int, data.calibration(held_out))))


def _with_undefended(data: PlannedData, matrix: Matrix) -> PlannedData:
    """Add the model that the diagnosis' transfer attacks use: a trained `undefended` of the matrix, or of the zoo."""
    if not matrix.diagnose:
        return data
    reason = "neither the matrix nor the zoo has an undefended model of this data set"
    try:
        own = [ref for ref in data.defenses if ref.name == "undefended"]
        ref = own[0] if own else defense_ref(defense_by_name("undefended"), data.dataset.load())
    except InputError as error:  # the matrix does not name this model, so that only the transfer attacks are left out
        return replace(data, undefended=None, no_undefended=f"no undefended model to use: {error}")
    return replace(data, undefended=ref if ref.trained else None, no_undefended=reason)


def _shown(system: object) -> str:
    """Return a system as text, in which a user's code may have a say."""
    with contained(f"{type(system).__name__}.__repr__ fails"):
        return repr(system)


def matrix_json(matrix: Matrix, options: Options) -> JsonObject:
    """Return the matrix with its options as JSON data, for run.json."""

    def entry(choice: DefenseChoice | AttackChoice | MeasurementChoice, **more: object) -> JsonObject:
        return {"name": choice.name, "label": choice.label, "datasets": choice.datasets, **more}

    def defense(one: DefenseChoice) -> JsonObject:
        randomized = issubclass(one.cls, RandomizedModel)
        return entry(one, parameters=one.parameters, draws=one.draws, randomized=randomized)

    def attack(one: AttackChoice) -> JsonObject:
        own = {"norm": one.attack.norm, "eps": list(one.eps), "ladder": one.ladder, "n": one.n}
        return entry(one, attack=_shown(one.attack), parameters=one.parameters, defenses=one.defenses, **own)

    return {
        "source": matrix.source,
        "datasets": [{"name": one.name, "n": options.n or one.n} for one in matrix.datasets],
        "defenses": [defense(one) for one in matrix.defenses],
        "attacks": [attack(one) for one in matrix.attacks],
        "measurements": [
            entry(one, measurement=_shown(one.measurement), defenses=one.defenses) for one in matrix.measurements
        ],
        "claims": [claim.model_dump() for claim in matrix.claims],
        "calibration": matrix.calibration,
        "diagnose": matrix.diagnose,
        "work": matrix.work,
        "budget": " ".join(filter(None, (work_text(matrix.work), matrix.budget))),
        "timeout": matrix.timeout,
    }
