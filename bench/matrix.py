"""The matrix file: what is crossed with what. TOML, validated as a whole before anything runs."""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from attacks.base import Attack
from attacks.threat import NORMS, Norm
from bench.errors import InputError
from bench.records import CLEAN, WORST_CASE
from bench.registry import find, nearest
from defenses.base import DefenseSpec

FOLDER = Path(__file__).parent / "matrices"
OWN_KEYS = ("name", "label", "norm", "eps")
"""Keys of an attack's or defense's entry that are the matrix file's own; all others are the system's parameters."""


class DatasetEntry(BaseModel):
    """A data set and how many of its test images are used (all, where n is not given)."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    name: Annotated[str, Field(min_length=1)]
    n: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class SystemEntry(BaseModel):
    """A defense or an attack with its parameters; the label tells it from others of the same name."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    name: Annotated[str, Field(min_length=1)]
    label: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def parameters(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class AttackEntry(SystemEntry):
    """An attack for one norm, with its ladder of perturbation sizes."""

    norm: Norm = "linf"
    eps: Annotated[list[Annotated[float, Field(gt=0, allow_inf_nan=False)]], Field(min_length=1)] | None = None


class MatrixFile(BaseModel):
    """The file as written."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    datasets: Annotated[tuple[DatasetEntry, ...], Field(min_length=1)]
    defenses: Annotated[tuple[SystemEntry, ...], Field(min_length=1)]
    attacks: Annotated[tuple[AttackEntry, ...], Field(min_length=1)]
    seed: Annotated[int, Field(ge=0)] = 0
    draws: Annotated[int, Field(ge=1)] = 1
    timeout: Annotated[float, Field(gt=0)] = 4 * 3600.0


@dataclass(frozen=True)
class DefenseChoice:
    """A defense of the matrix: its class, its label, and the parameters that its spec gets beside the image shape."""

    name: str
    label: str
    cls: type[Any]
    parameters: dict[str, Any]

    def spec(self, shape: tuple[int, int, int], num_classes: int) -> DefenseSpec:
        values = {"shape": list(shape), "num_classes": num_classes, **self.parameters}
        return TypeAdapter(self.cls.Spec).validate_json(json.dumps(values))


@dataclass(frozen=True)
class AttackChoice:
    """An attack of the matrix, ready to run, with its label and its ladder of ε (ascending)."""

    name: str
    label: str
    attack: Attack
    eps: tuple[float, ...]


@dataclass(frozen=True)
class Matrix:
    """What is crossed: everything resolved and valid.

    draws: how often a randomized defense is asked; an input is robust if every answer is. timeout: seconds a job may
    take before it counts as failed.
    """

    source: str
    datasets: tuple[DatasetEntry, ...]
    defenses: tuple[DefenseChoice, ...]
    attacks: tuple[AttackChoice, ...]
    seed: int
    draws: int
    timeout: float


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
        f"--matrix: no matrix {name!r}{nearest(name, known)} known: {', '.join(known)}; or give a TOML file"
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
        raise InputError(f"{source}: {explain(error, raw, tuple(MatrixFile.model_fields))}") from error
    except ValueError as error:
        raise InputError(f"{source}: {error}") from error
    for index, dataset in enumerate(file.datasets):
        with_place(f"{source}: datasets[{index}]", lambda name=dataset.name: find("datasets", name))
    defenses = tuple(_defense(entry, f"{source}: defenses[{i}]") for i, entry in enumerate(file.defenses))
    attacks = tuple(attack_choice(entry, f"{source}: attacks[{i}]") for i, entry in enumerate(file.attacks))
    _unique(source, "datasets", [entry.name for entry in file.datasets])
    _unique(source, "defenses", [choice.label for choice in defenses])
    _unique(source, "attacks", [f"{choice.label} in {choice.attack.norm}" for choice in attacks])
    return Matrix(source, file.datasets, defenses, attacks, file.seed, file.draws, file.timeout)


def with_place(place: str, action: Any) -> Any:
    """action(), its InputError prefixed with where it happened."""
    try:
        return action()
    except InputError as error:
        raise InputError(f"{place}: {error}") from error


def defense_choice(name: str) -> DefenseChoice:
    """A defense by name alone, as on the command line."""
    return _defense(SystemEntry(name=name), "--defense")


def _defense(entry: SystemEntry, place: str) -> DefenseChoice:
    cls = with_place(place, lambda: find("defenses", entry.name))
    fields = {f.name for f in dataclasses.fields(cls.Spec)} - {f.name for f in dataclasses.fields(DefenseSpec)}
    values = _known(entry.parameters, fields, place, entry.name)
    choice = DefenseChoice(entry.name, entry.label or label(entry.name, _unusual(cls.Spec, values)), cls, values)
    try:
        choice.spec((1, 32, 32), 10)  # any shape: the parameters are what is checked here
    except ValidationError as error:
        raise InputError(f"{place}: {explain(error, {**values}, tuple(sorted(fields)))}") from error
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
        attack = TypeAdapter(cls).validate_json(json.dumps({**arguments, "norm": entry.norm}))
    except ValidationError as error:
        raise InputError(f"{place}: {explain(error, arguments, tuple(sorted(fields)))}") from error
    except ValueError as error:
        raise InputError(f"{place}: {error}") from error
    if entry.norm not in attack.norms:
        raise InputError(f"{place}.norm: {entry.name!r} is not for {entry.norm!r}; it is for {', '.join(attack.norms)}")
    return AttackChoice(
        entry.name, entry.label or label(entry.name, _unusual(cls, values)), attack, _ladder(entry, place)
    )


def _ladder(entry: AttackEntry, place: str) -> tuple[float, ...]:
    if entry.norm == "unrestricted":
        if entry.eps is not None:
            raise InputError(f"{place}.eps: an unrestricted attack has no perturbation size; leave it out")
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
            raise InputError(
                f"{place}.{key}: {name!r} has no such parameter{nearest(key, allowed)} allowed: {', '.join(allowed)}"
            )
    return values


def _unique(source: str, key: str, labels: list[str]) -> None:
    for index, name in enumerate(labels):
        if name in labels[:index]:
            raise InputError(
                f"{source}: {key}[{index}]: {name!r} stands there twice; give one of them a label of its own"
            )
        if name.split(" in ")[0] in (CLEAN, WORST_CASE):
            raise InputError(f"{source}: {key}[{index}]: {name!r} is a reserved name; choose another label")


def explain(error: ValidationError, given: Any, allowed: tuple[str, ...]) -> str:
    """The first fault of a validation as `key[2].sub: value is not …; what is allowed`."""
    fault = error.errors()[0]
    place = ""
    for part in fault["loc"]:
        if isinstance(part, int):
            place += f"[{part}]"
        else:
            place += f".{part}" if place else str(part)
    if fault["type"] == "extra_forbidden":
        word = str(fault["loc"][-1])
        siblings = list(allowed) if len(fault["loc"]) == 1 else list(DatasetEntry.model_fields)
        return f"{place}: unknown key{nearest(word, siblings)} allowed: {', '.join(siblings)}"
    if fault["type"] == "missing":
        return f"{place}: missing; it has to be there"
    value = fault["input"]
    shown = json.dumps(value, default=str)
    shown = shown if len(shown) <= 60 else shown[:57] + "…"
    hint = {
        "greater_than": "is not allowed; give a number > {gt}",
        "greater_than_equal": "is not allowed; give a number ≥ {ge}",
        "less_than_equal": "is not allowed; give a number ≤ {le}",
        "less_than": "is not allowed; give a number < {lt}",
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
        "model_attributes_type": "is not a name or a table with one",
    }.get(fault["type"])
    context = fault.get("ctx", {})
    message = hint.format(**context) if hint else f"is not allowed: {fault['msg']}"
    if place.startswith("attacks") and ".eps" in place and fault["type"] == "greater_than":
        message = f"is not a perturbation size; give numbers > 0 ({', '.join(NORMS[:1])}: at most 1)"
    return f"{place}: {shown} {message}"
