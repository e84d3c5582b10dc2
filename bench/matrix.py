"""The matrix file: what is crossed with what. TOML, validated as a whole before anything runs."""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, Tag, TypeAdapter, ValidationError, model_validator

from attacks.base import Attack
from attacks.threat import UNBOUNDED, Norm
from bench.claims.base import Claim, resolved_claims
from bench.engines.calls import Needs
from bench.errors import InputError
from bench.measurements.base import Measurement
from bench.records import CALIBRATION, CLEAN, PROBE, WORST_CASE
from bench.registry import find, nearest, one_of
from defenses.base import DefenseSpec

FOLDER = Path(__file__).parent / "matrices"
OWN_KEYS = ("name", "label", "norm", "eps")
"""Keys of an attack's or defense's entry that are the matrix file's own; all others are the system's parameters."""


Seed = Annotated[int, Field(ge=0, lt=2**63)]


class DatasetEntry(BaseModel):
    """A data set and how many of its test images are used (all, where n is not given)."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    name: Annotated[str, Field(min_length=1)]
    n: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class Resources(BaseModel):
    """What of a machine a job occupies, for engines that have several machines; None: what the matrix says, or 1.

    gpus: a share of one, or a whole number; counts only where the jobs' device is one.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    cpus: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    gpus: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _share_or_whole(self) -> Resources:
        if self.gpus is not None and self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError(f"gpus = {self.gpus} cannot be had; give a share of one GPU or a whole number")
        return self


UNSAID = Resources()


class SystemEntry(BaseModel):
    """A defense or an attack with its parameters; the label tells it from others of the same name."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    name: Annotated[str, Field(min_length=1)]
    label: Annotated[str, Field(min_length=1)] | None = None
    resources: Resources = UNSAID

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def parameters(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class DefenseEntry(SystemEntry):
    """A defense; datasets: of which data sets of the matrix (None: of all); draws: as the matrix', for this one."""

    datasets: Annotated[list[str], Field(min_length=1)] | None = None
    draws: Annotated[int, Field(ge=1)] | None = None


class ConfinedEntry(SystemEntry):
    """What may be confined to some of the matrix' data sets and defenses, named by their labels."""

    datasets: Annotated[list[str], Field(min_length=1)] | None = None
    defenses: Annotated[list[str], Field(min_length=1)] | None = None

    @property
    def confinement(self) -> dict[str, tuple[str, ...] | None]:
        """As `Confined` takes it."""
        named = {"datasets": self.datasets, "defenses": self.defenses}
        return {key: labels if labels is None else tuple(labels) for key, labels in named.items()}


class AttackEntry(ConfinedEntry):
    """An attack for one norm, with its ladder of perturbation sizes; n: on the first n of a data set's images.

    ladder: what is beaten at one size isn't attacked at larger ones; where false, each size attacks every input anew.
    """

    norm: Norm = "linf"
    ladder: bool = True
    n: Annotated[int, Field(ge=1)] | None = None
    eps: Annotated[list[Annotated[float, Field(gt=0, allow_inf_nan=False)]], Field(min_length=1)] | None = None


class MatrixFile(BaseModel):
    """The file as written."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    datasets: Annotated[tuple[DatasetEntry, ...], Field(min_length=1)]
    defenses: Annotated[tuple[DefenseEntry, ...], Field(min_length=1)]
    attacks: Annotated[tuple[AttackEntry, ...], Field(min_length=1)]
    measurements: tuple[ConfinedEntry, ...] = ()
    claims: tuple[Claim, ...] = ()
    seed: Seed | None = None
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] | None = None
    draws: Annotated[int, Field(ge=1)] = 1
    calibration: Annotated[int, Field(ge=1)] | None = None
    diagnose: bool = False
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 4 * 3600.0
    resources: Resources = UNSAID


@dataclass(frozen=True)
class DefenseChoice:
    """A defense of the matrix: its class, its label, and the parameters that its spec gets beside the image shape.

    datasets: those it is a defense of; None: all of the matrix. draws: how often it is asked if it is randomized; None:
    as the matrix says. resources: what its jobs occupy.
    """

    name: str
    label: str
    cls: type[Any]
    parameters: dict[str, Any]
    datasets: tuple[str, ...] | None = None
    draws: int | None = None
    resources: Resources = UNSAID

    def defends(self, dataset: str) -> bool:
        return self.datasets is None or dataset in self.datasets

    def spec(self, shape: tuple[int, int, int], num_classes: int) -> DefenseSpec:
        values = {"shape": list(shape), "num_classes": num_classes, **self.parameters}
        return TypeAdapter(self.cls.Spec).validate_json(json.dumps(values), strict=True)


@dataclass(frozen=True)
class Confined:
    """What is done only on those data sets and to those defenses, by label; None: on all of them.

    resources: what its jobs occupy.
    """

    datasets: tuple[str, ...] | None = field(default=None, kw_only=True)
    defenses: tuple[str, ...] | None = field(default=None, kw_only=True)
    resources: Resources = field(default=UNSAID, kw_only=True)

    def concerns(self, dataset: str, defense: str) -> bool:
        return (self.datasets is None or dataset in self.datasets) and (
            self.defenses is None or defense in self.defenses
        )


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

    seeds: each attack runs once with each; an input is robust if it is with all of them. What no attack takes part in
    has the first alone, but the answers of a randomized defense.
    draws: how often a randomized defense is asked; an input is robust if every answer is. timeout: seconds a job may
    take before it counts as failed. calibration: validation images that each defense answers as they are, for
    thresholds that figures need; None: none. claims: what was published, and what of this matrix it is compared with.
    diagnose: whether the probes of the masking diagnosis run too.
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
    resources: Resources = UNSAID

    def resources_of(self, defense: str) -> list[Resources]:
        """What jobs of the defense with that label occupy: an entry, or none where it is not in the matrix."""
        return [choice.resources for choice in self.defenses if choice.label == defense]

    def needs(self, device: str, *parts: Resources) -> Needs:
        """What a job of those parts (its defense's, its attack's) occupies: the most that one of them says.

        Where none says anything, what the matrix says; one CPU, and one GPU where the device is one.
        """

        def most(name: str, otherwise: float) -> float:
            said = [value for part in parts if (value := getattr(part, name)) is not None]
            own = getattr(self.resources, name)
            return max(said, default=otherwise if own is None else own)

        return Needs(most("cpus", 1.0), 0.0 if device == "cpu" else most("gpus", 1.0))

    @property
    def seed(self) -> int:
        """The first."""
        return self.seeds[0]


def matrix_path(name: str) -> Path:
    """The file of a matrix by name (`quick`) or path; raises InputError."""
    known = sorted(path.stem for path in FOLDER.glob("*.toml"))
    if name in known:
        return FOLDER / f"{name}.toml"
    path = Path(name)
    if path.suffix == ".toml" or path.exists():
        if not path.is_file():
            raise InputError(f"--matrix: {name}: no such file")
        return path
    raise InputError(
        f"--matrix: no matrix {name!r}{nearest(name, known)}; known: {', '.join(known)}; or give a TOML file"
    )


def read_matrix(name: str) -> Matrix:
    """Reads and validates a matrix by name or path; raises InputError that names the file and the key."""
    path = matrix_path(name)
    shown = str(path) if path.parent != FOLDER else f"{FOLDER.parent.name}/{FOLDER.name}/{path.name}"
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{shown}: not valid TOML: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{shown}: cannot be read as UTF-8 text ({error})") from error
    return parse_matrix(raw, shown)


def parse_matrix(raw: dict[str, Any], source: str) -> Matrix:
    """Validates the content of a matrix file."""
    try:
        # as JSON: strict about types, yet lists may stand for tuples
        file = MatrixFile.model_validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        raise InputError(f"{source}: {explain(error, '', MatrixFile)}") from error
    except ValueError as error:
        raise InputError(f"{source}: {error}") from error
    for index, dataset in enumerate(file.datasets):
        with_place(f"{source}: datasets[{index}]", lambda name=dataset.name: find("datasets", name))
    defenses = tuple(
        dataclasses.replace(
            defense_choice(entry.name, entry.label, entry.parameters, f"{source}: defenses[{i}]"),
            datasets=None if entry.datasets is None else tuple(entry.datasets),
            draws=entry.draws,
            resources=entry.resources,
        )
        for i, entry in enumerate(file.defenses)
    )
    for i, defense in enumerate(defenses):
        if defense.draws and not defense.cls.randomized:
            raise InputError(f"{source}: defenses[{i}].draws: {defense.label!r} isn't randomized, and answers once")
    attacks = tuple(attack_choice(entry, f"{source}: attacks[{i}]") for i, entry in enumerate(file.attacks))
    _unique(source, "datasets", [entry.name for entry in file.datasets])
    _unique(source, "defenses", [choice.label for choice in defenses])
    _unique(source, "attacks", [f"{choice.label} in {choice.attack.norm}" for choice in attacks])
    for index, choice in enumerate(attacks):
        _free(f"{source}: attacks[{index}]", choice.label)
    measurements = tuple(
        _measurement(entry, f"{source}: measurements[{i}]") for i, entry in enumerate(file.measurements)
    )
    _unique(source, "measurements", [choice.label for choice in measurements])
    for index, measuring in enumerate(measurements):
        _free(f"{source}: measurements[{index}]", measuring.label)
    matrix = Matrix(
        source, file.datasets, defenses, attacks, _seeds(file, source), file.draws, file.timeout, file.calibration,
        measurements, diagnose=file.diagnose, resources=file.resources,
    )  # fmt: skip
    _check_names(matrix)
    return dataclasses.replace(matrix, claims=resolved_claims(matrix, file.claims))


def _seeds(file: MatrixFile, source: str) -> tuple[int, ...]:
    """`seeds`, or `seed` alone, or 0."""
    if file.seeds is None:
        return (file.seed or 0,)
    if file.seed is not None:
        raise InputError(f"{source}: seeds: 'seed' is there too; give one of the two")
    for index, seed in enumerate(file.seeds):
        if seed in file.seeds[:index]:
            raise InputError(f"{source}: seeds[{index}]: {seed} stands there twice")
    return file.seeds


def _check_names(matrix: Matrix) -> None:
    """Whether what defenses, attacks and measurements name is in the matrix; raises InputError."""
    datasets = [entry.name for entry in matrix.datasets]
    defenses = [choice.label for choice in matrix.defenses]
    for i, defending in enumerate(matrix.defenses):
        for name in defending.datasets or ():
            one_of(f"{matrix.source}: defenses[{i}].datasets", name, datasets)
    confined: list[tuple[str, Confined]] = [(f"attacks[{i}]", choice) for i, choice in enumerate(matrix.attacks)]
    confined += [(f"measurements[{i}]", choice) for i, choice in enumerate(matrix.measurements)]
    for place, choice in confined:
        for key, named, known in (("datasets", choice.datasets, datasets), ("defenses", choice.defenses, defenses)):
            for name in named or ():
                one_of(f"{matrix.source}: {place}.{key}", name, known)
    for i, measuring in enumerate(matrix.measurements):
        for name in measuring.measurement.others:
            one_of(f"{matrix.source}: measurements[{i}]", name, defenses)


def with_place(place: str, action: Any) -> Any:
    """action(), its InputError prefixed with where it happened."""
    try:
        return action()
    except InputError as error:
        raise InputError(f"{place}: {error}") from error


def defense_by_name(name: str, parameters: Mapping[str, Any] = {}, place: str = "--defense") -> DefenseChoice:
    """A defense by name, as on the command line; place: where a fault of the parameters lies."""
    find("defenses", name)
    return defense_choice(name, None, parameters, place)


def attack_by_name(name: str, others: tuple[AttackChoice, ...]) -> AttackChoice:
    """An attack by name alone, as on the command line: in the first norm of `others` that it works in, with its ε."""
    find("attacks", name)
    refusals = []
    for other in others:
        norm = other.attack.norm
        eps = None if norm in UNBOUNDED else list(other.eps)
        try:
            return attack_choice(AttackEntry(name=name, norm=norm, eps=eps), "--attack")
        except InputError as error:
            refusals.append(error)
    raise refusals[0]


def defense_choice(name: str, own_label: str | None, parameters: Mapping[str, Any], place: str) -> DefenseChoice:
    """The defense of an entry, its parameters checked against the fields of its spec; raises InputError."""
    cls = with_place(place, lambda: find("defenses", name))
    fields = {f.name for f in dataclasses.fields(cls.Spec)} - {f.name for f in dataclasses.fields(DefenseSpec)}
    values = _known(dict(parameters), fields, place, name)
    choice = DefenseChoice(name, own_label or label(name, _unusual(cls.Spec, values)), cls, values)
    try:
        choice.spec((1, 32, 32), 10)  # any shape: the parameters are what is checked here
    except ValidationError as error:
        raise InputError(explain(error, place, cls.Spec)) from error
    except ValueError as error:
        raise InputError(f"{place}: {error}") from error
    return choice


def attack_choice(entry: AttackEntry, place: str) -> AttackChoice:
    """The attack of an entry, its parameters checked against its fields; raises InputError."""
    cls: type[Attack] = with_place(place, lambda: find("attacks", entry.name))
    fields = {f.name for f in dataclasses.fields(cls)} - {"norm"}
    values = entry.parameters
    if cls.open_parameters:
        prefix, _, suffix = entry.name.partition(":")
        if not suffix:
            raise InputError(
                f"{place}.name: {prefix!r} runs that library's attacks: name one, as in {prefix}:ClassName"
            )
        fields -= {"attack", "parameters"}
        inner = {key: value for key, value in values.items() if key not in fields}
        given = {key: value for key, value in values.items() if key in fields}
        arguments = {**given, "attack": suffix, "parameters": inner}
    else:
        arguments = _known(values, fields, place, entry.name)
    try:
        attack = TypeAdapter(cls).validate_json(json.dumps({**arguments, "norm": entry.norm}), strict=True)
    except ValidationError as error:
        raise InputError(explain(error, place, cls)) from error
    except ValueError as error:
        raise InputError(f"{place}: {error}") from error
    if entry.norm not in attack.norms:
        raise InputError(f"{place}.norm: {entry.name!r} is not for {entry.norm!r}; it is for {', '.join(attack.norms)}")
    if attack.minimal and not entry.ladder:
        raise InputError(f"{place}.ladder: {entry.name!r} runs once for all sizes; false is for attacks at one size")
    shown = label(entry.name, _unusual(cls, values) | ({} if entry.ladder else {"ladder": False}))
    return AttackChoice(
        entry.name, entry.label or shown, attack, _ladder(entry, place),
        ladder=entry.ladder, n=entry.n, resources=entry.resources, **entry.confinement,
    )  # fmt: skip


def _measurement(entry: ConfinedEntry, place: str) -> MeasurementChoice:
    cls: type[Measurement] = with_place(place, lambda: find("measurements", entry.name))
    values = _known(entry.parameters, {f.name for f in dataclasses.fields(cls)}, place, entry.name)
    try:
        measurement = TypeAdapter(cls).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        raise InputError(explain(error, place, cls)) from error
    shown = entry.label or label(entry.name, _unusual(cls, values))
    return MeasurementChoice(entry.name, shown, measurement, resources=entry.resources, **entry.confinement)


def _ladder(entry: AttackEntry, place: str) -> tuple[float, ...]:
    if entry.norm in UNBOUNDED:
        if entry.eps is not None:
            raise InputError(f"{place}.eps: norm {entry.norm!r} has no perturbation size; leave it out")
        return (math.inf,)
    if entry.eps is None:
        raise InputError(f"{place}.eps: missing; give a list of numbers > 0, as in eps = [0.1, 0.2]")
    for index, eps in enumerate(entry.eps):
        if entry.norm == "linf" and eps > 1:
            raise InputError(f"{place}.eps[{index}]: {eps} is no L∞ size; images lie in [0,1], give numbers in (0, 1]")
        if entry.norm == "l0" and eps != int(eps):
            raise InputError(f"{place}.eps[{index}]: {eps} is no L0 size; give whole numbers of pixels ≥ 1")
    if len(set(entry.eps)) != len(entry.eps):
        raise InputError(f"{place}.eps: a size stands there twice")
    return tuple(sorted(entry.eps))


def label(name: str, parameters: dict[str, Any]) -> str:
    """`name`, or `name(key=value, …)` where parameters are set."""
    if not parameters:
        return name
    return f"{name}({', '.join(f'{key}={plain(value)}' for key, value in sorted(parameters.items()))})"


def _unusual(cls: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    """The values that differ from the defaults of a dataclass' fields."""
    defaults = {field.name: field.default for field in dataclasses.fields(cls)}
    return {key: value for key, value in values.items() if value != defaults.get(key, dataclasses.MISSING)}


def plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value).replace('"', "")


def _known(values: dict[str, Any], fields: Iterable[str], place: str, name: str) -> dict[str, Any]:
    allowed = sorted(fields)
    for key in values:
        if key not in allowed:
            listed = f"{nearest(key, allowed)}; allowed: {', '.join(allowed)}"
            raise InputError(f"{place}.{one_line(key)}: {name!r} has no such parameter{listed}")
    return values


def _unique(source: str, key: str, labels: list[str]) -> None:
    for index, name in enumerate(labels):
        if name in labels[:index]:
            raise InputError(
                f"{source}: {key}[{index}]: {name!r} stands there twice; give one of them a label of its own"
            )


def _free(place: str, name: str) -> None:
    if name in (CLEAN, CALIBRATION, WORST_CASE) or name.startswith(PROBE):
        raise InputError(f"{place}: {name!r} is a reserved name; choose another label")


UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")


def explain(error: ValidationError, place: str, owner: type[Any]) -> str:
    """The first fault of a validation as `place.key[2]: value is not …; what is allowed`.

    owner: the model or dataclass whose values these are, for what is allowed in place of a misspelt key.
    """
    fault = error.errors()[0]
    path, known = keys_at(owner, fault["loc"][:-1] if fault["type"] in UNKNOWN_KEY else fault["loc"])
    for part in [*path, *fault["loc"][-1:]] if fault["type"] in UNKNOWN_KEY else path:
        place += f"[{part}]" if isinstance(part, int) else f".{one_line(part)}" if place else one_line(part)
    context: dict[str, Any] = fault.get("ctx", {})
    kind, value = fault["type"], fault["input"]
    if kind in UNKNOWN_KEY:
        return f"{place}: unknown key{nearest(str(fault['loc'][-1]), known)}; allowed: {', '.join(known)}"
    if kind == "missing":
        return f"{place}: missing; it has to be there"
    if kind == "value_error":
        return f"{place}: {one_line(context['error'])}"
    if kind == "union_tag_invalid":
        return f"{place}: {context['tag']!r} is not allowed; give {context['expected_tags']}"
    shown = one_line(json.dumps(value, default=str, ensure_ascii=False))
    shown = shown if len(shown) <= 60 else shown[:57] + "…"
    if place.startswith("attacks") and ".eps" in place and kind == "greater_than":
        return f"{place}: {shown} is not a perturbation size; give numbers > 0 (L∞: at most 1)"
    hint = {
        "greater_than": "is not allowed; give a number > {gt}",
        "greater_than_equal": "is not allowed; give a number ≥ {ge}",
        "less_than_equal": "is not allowed; give a number ≤ {le}",
        "less_than": "is not allowed; give a finite number < {lt}",
        "too_short": "is empty; give at least one",
        "literal_error": "is not allowed; give {expected}",
        "finite_number": "is not allowed; give a finite number",
        "int_type": "is not a whole number",
        "int_from_float": "is not a whole number",
        "float_type": "is not a number",
        "bool_type": "is not true or false",
        "string_type": "is not a text",
        "tuple_type": "is not a list",
        "list_type": "is not a list",
        "model_type": "is not a name or a table with one",
        "union_tag_not_found": "is not a table of parameters",
        "dataclass_type": "is not a table of parameters",
        "dataclass_exact_type": "is not a table of parameters",
    }.get(kind)
    return f"{place}: {shown} {hint.format(**context) if hint else 'is not allowed: ' + one_line(fault['msg'])}"


def keys_at(owner: type[Any], path: Iterable[str | int]) -> tuple[list[str | int], list[str]]:
    """The path as the file has it, and the names of the fields of what lies there in a model or dataclass.

    In a validation's path a value of several possible classes is followed by the tag of the one that was taken.
    """
    known: dict[str | None, type[Any]] = {}
    there: list[str | int] = []
    for name in path:
        if isinstance(name, str) and name in known:
            owner = known[name]
            known = {}
            continue
        there.append(name)
        if isinstance(name, str):
            known = dict(_classes(get_type_hints(owner, include_extras=True).get(name), None))
            owner = next(iter(known.values()), owner)
    return there, sorted(name for name in get_type_hints(owner) if not name.startswith("_"))


def _classes(hint: Any, tag: str | None) -> Iterator[tuple[str | None, type[Any]]]:
    """Every class in a type hint with its tag, if it has one; first the classes of the hint's arguments."""
    tags = [extra.tag for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Tag)]
    parts = get_args(hint)[:1] if hasattr(hint, "__metadata__") else get_args(hint)
    for part in parts:
        yield from _classes(part, tags[0] if tags else tag)
    if isinstance(hint, type):
        yield tag, hint


def one_line(text: Any) -> str:
    return " ".join(str(text).split())
