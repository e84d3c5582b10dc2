"""Reads a matrix file (TOML), and validates all of it before anything runs."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from manifold_bench.attacks.base import Attack
from manifold_bench.attacks.threat import UNBOUNDED
from manifold_bench.bench.errors import InputError, one_of
from manifold_bench.bench.measurements.base import Measurement
from manifold_bench.bench.planning.claims import resolved_claims
from manifold_bench.bench.planning.crossed import crossed
from manifold_bench.bench.planning.declared import check_attack, check_measurement
from manifold_bench.bench.planning.faults import explain, unwrapped
from manifold_bench.bench.planning.folders import MATRICES
from manifold_bench.bench.planning.labels import check_labels, label, non_default, overlap
from manifold_bench.bench.planning.matrix import (
    AttackChoice,
    AttackEntry,
    Confined,
    ConfinedEntry,
    DefenseChoice,
    DefenseEntry,
    Matrix,
    MatrixFile,
    MeasurementChoice,
)
from manifold_bench.bench.planning.registry import find, settings_of
from manifold_bench.bench.planning.sizes import PARAMETERS, check_size, in_numbers
from manifold_bench.bench.planning.usercode import LEAST_SECONDS, SECONDS, contained, limit_time
from manifold_bench.bench.text import nearest
from manifold_bench.defenses.base import Defense, DefenseSpec
from manifold_bench.defenses.checks import check_spec_class
from manifold_bench.defenses.errors import message_of
from manifold_bench.defenses.identity import JsonObject
from manifold_bench.defenses.validation import adapter

V = TypeVar("V")


def matrix_path(name: str) -> Path:
    """Return the path of a matrix file, given by name (`quick`) or by path; raises InputError."""
    known = sorted(path.stem for path in MATRICES.glob("*.toml"))
    if name in known:
        return MATRICES / f"{name}.toml"
    path = Path(name)
    if path.suffix == ".toml" or path.exists():
        if not path.is_file():
            what = "is no file, but a pipe, a device or a folder; give a TOML file" if path.exists() else "no such file"
            raise InputError(f"--matrix: {name}: {what}")
        return path
    listed = f"known: {', '.join(known)}; or give a TOML file"
    raise InputError(f"--matrix: no matrix {name!r}{nearest(name, known, listed)}")


def read_matrix(name: str, datasets: Sequence[str] = ()) -> Matrix:
    """Read and validate a matrix, given by name or by path; raises InputError, which names the file and the key.

    datasets: names of data sets that a crossed matrix takes in besides its own.
    """
    path = matrix_path(name)
    shown = str(path) if path.parent != MATRICES else f"{MATRICES.parent.name}/{MATRICES.name}/{path.name}"
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors on Windows begin a file with this mark
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{shown}: cannot be read as UTF-8 text ({error})") from error
    try:
        raw = tomllib.loads(text)
        _check_numbers(raw, shown)
    except ValueError as error:
        if found := re.search(r"([\w.-]+)\s*=\s*([-+]?\d[\d_]{4000})", text):  # Python reads no more digits
            raise InputError(
                f"{shown}: {found[1]}: {found[2][:20]}… is not allowed; give a whole number < 2^63"
            ) from error
        raise InputError(f"{shown}: not valid TOML: {error}") from error
    except RecursionError as error:
        raise InputError(f"{shown}: nested too deeply; a matrix has tables in lists, and lists in these") from error
    if raw.get("crossed") is True:
        with at(shown):
            raw = crossed(raw, datasets)
    return parse_matrix(raw, shown)


def _check_numbers(value: object, place: str) -> None:
    """Check that the whole numbers in a file fit into 64 bits, as TOML demands; raises InputError."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise InputError(f"{place}: {str(value)[:20]}… is not allowed; give a whole number < 2^63")
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_numbers(inner, f"{place}: {name}" if ": " not in place else f"{place}.{name}")
    if isinstance(value, list):
        for index, inner in enumerate(value):
            _check_numbers(inner, f"{place}[{index}]")


def parse_matrix(raw: JsonObject, source: str) -> Matrix:
    """Validate the content of a matrix file; raises InputError. source: path of the file, for messages."""
    with at(source):
        file = validated(MatrixFile, raw, "", strict=None)
    limit_time(max(file.timeout, LEAST_SECONDS) if "timeout" in file.model_fields_set else SECONDS)
    for index, dataset in enumerate(file.datasets):
        with at(f"{source}: datasets[{index}]"):
            find("datasets", dataset.name)
    defenses = tuple(
        dataclasses.replace(
            defense_choice(entry.name, entry.label, entry.parameters, f"{source}: defenses[{i}]"),
            datasets=entry.datasets,
            draws=entry.draws,
            resources=entry.resources,
        )
        for i, entry in enumerate(file.defenses)
    )
    for i, defense in enumerate(defenses):
        _check_draws(defense, f"{source}: defenses[{i}]")
    attacks = tuple(
        _with_at_most(file.max_passes, attack_choice(entry, f"{source}: attacks[{i}]"))
        for i, entry in enumerate(file.attacks)
    )
    measurements = tuple(
        _measurement(entry, f"{source}: measurements[{i}]") for i, entry in enumerate(file.measurements)
    )
    check_labels(f"{source}: datasets", [entry.name for entry in file.datasets])
    check_labels(f"{source}: defenses", [choice.label for choice in defenses])
    check_labels(f"{source}: attacks", [one.label for one in attacks], lambda i, j: overlap(attacks[i], attacks[j]))
    check_labels(f"{source}: measurements", [choice.label for choice in measurements])
    matrix = Matrix(
        source=source,
        datasets=file.datasets,
        defenses=defenses,
        attacks=attacks,
        seeds=_seeds(file, source),
        draws=file.draws,
        timeout=file.timeout,
        calibration=file.calibration,
        measurements=measurements,
        diagnose=file.diagnose,
        crossed=file.crossed,
        work=file.work,
        resources=file.resources,
    )
    _check_names(matrix)
    return dataclasses.replace(matrix, claims=resolved_claims(matrix, file.claims))


def _seeds(file: MatrixFile, source: str) -> tuple[int, ...]:
    """Return `seeds`, or `seed` alone, or 0; raises InputError."""
    if file.seeds is None:
        return (file.seed or 0,)
    if file.seed is not None:
        raise InputError(f"{source}: seeds: both `seed` and `seeds` are given; keep one")
    for index, seed in enumerate(file.seeds):
        if seed in file.seeds[:index]:
            raise InputError(f"{source}: seeds[{index}]: {seed} is given twice; give it once")
    return file.seeds


def _check_names(matrix: Matrix) -> None:
    """Check that everything that defenses, attacks and measurements name is in the matrix; raises InputError."""
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


@contextmanager
def at(place: str, cls: type = object) -> Iterator[None]:
    """Turn errors of validation into InputErrors that name the place in the file.

    cls: model or dataclass that is made from the value; it may be a user's code, and raise anything.
    """
    with contained(f"{place}: {cls.__name__} fails"):
        try:
            yield
        except ValidationError as error:
            raise InputError(explain(error, place, cls)) from error
        except (InputError, ValueError) as error:
            raise InputError(f"{place}: {message_of(error)}") from error


def validated(cls: type[V], values: JsonObject, place: str, strict: bool | None = True) -> V:
    """Return an instance of a model or dataclass, made from values of a file; raises InputError.

    strict: whether no value is converted, such as a text to a number; None: as the model says.
    """
    with at(place, cls):
        # as JSON, which is strict about types, but takes lists for tuples
        return adapter(cls).validate_json(json.dumps(values, default=str), strict=strict)


def defense_by_name(name: str, parameters: Mapping[str, object] = {}, place: str = "--defense") -> DefenseChoice:
    """Return a defense by name, as on the command line; raises InputError. place: beginning of its messages."""
    find("defenses", name)
    if not (own := settings_of(name)):
        return defense_choice(name, None, parameters, place)
    entry = validated(DefenseEntry, {**own, "name": name, "label": name}, f"defense {name!r}", strict=None)
    made = defense_choice(name, name, entry.parameters, f"defense {name!r}")
    choice = dataclasses.replace(made, datasets=entry.datasets, draws=entry.draws, resources=entry.resources)
    _check_draws(choice, f"defense {name!r}")
    return choice


def _check_draws(defense: DefenseChoice, place: str) -> None:
    """Check that a defense with a number of draws is randomized; raises InputError."""
    if defense.draws and not defense.cls.randomized:
        raise InputError(
            f"{place}.draws: {defense.label!r} is not randomized; leave draws out, or say that its "
            "answers differ from call to call (randomized=True in Python, an attribute randomized in a file)"
        )


def attack_by_name(name: str, matrix: Matrix) -> list[AttackChoice]:
    """Return an attack by name, as on the command line, in the first norm of the matrix that it supports.

    It takes the ε of that norm on each data set, so that it is several choices where these differ. Raises InputError.
    """
    find("attacks", name)
    refusals: list[InputError] = []
    found: list[AttackChoice] = []
    left = [entry.name for entry in matrix.datasets]
    for other in matrix.attacks:
        norm = other.attack.norm
        on = [dataset for dataset in left if other.runs_on(dataset)]
        if not on or (found and found[0].attack.norm != norm):
            continue
        eps = None if norm in UNBOUNDED else other.eps
        try:
            made = attack_choice(AttackEntry(name=name, norm=norm, eps=eps), "--attack")
        except InputError as error:
            refusals.append(error)
            continue
        found.append(dataclasses.replace(made, datasets=tuple(on)))
        left = [dataset for dataset in left if dataset not in on]
    if not found:
        raise refusals[0]
    return found if len(found) > 1 else [dataclasses.replace(found[0], datasets=None)]


def defense_choice(name: str, own_label: str | None, parameters: Mapping[str, object], place: str) -> DefenseChoice:
    """Return the defense of an entry, with checked parameters; raises InputError.

    own_label: label that the entry gives, or None. place: place of the entry in the file, for messages.
    """
    with at(place):
        cls = find("defenses", name)
        check_spec_class(cls)
    _check_named_fully(cls, name, place)
    fields = {f.name for f in dataclasses.fields(cls.Spec)} - {f.name for f in dataclasses.fields(DefenseSpec)}
    values = _known(_in_numbers(parameters, place), fields, place, name, DefenseEntry.model_fields)
    choice = DefenseChoice(name, own_label or label(name, non_default(cls.Spec, values)), cls, values)
    with at(place, cls.Spec):
        choice.spec((1, 32, 32), 10)  # with any shape, to check the parameters
    return choice


def _check_named_fully(cls: type[Attack] | type[Defense], name: str, place: str) -> None:
    """Check that the name of a library's adapter is followed by one of its classes; raises InputError."""
    if cls.open_parameters and not name.partition(":")[2]:
        prefix = name.removesuffix(":")
        raise InputError(
            f"{place}.name: {prefix!r} runs classes of that library; name one of them, as in {prefix}:ClassName"
        )


def attack_choice(entry: AttackEntry, place: str) -> AttackChoice:
    """Return the attack of an entry, with checked parameters; raises InputError. place: as in `defense_choice`."""
    with at(place):
        cls: type[Attack] = find("attacks", entry.name)
    fields = {f.name for f in dataclasses.fields(cls)} - {"norm"}
    values = _in_numbers(entry.parameters, place)
    if cls.open_parameters:
        _check_named_fully(cls, entry.name, place)
        fields -= {"attack", "parameters"}
        inner = {key: value for key, value in values.items() if key not in fields}
        given = {key: value for key, value in values.items() if key in fields}
        arguments = {**given, "attack": entry.name.partition(":")[2], "parameters": inner}
    else:
        arguments = _known(values, fields, place, entry.name, AttackEntry.model_fields)
    attack = validated(cls, {**arguments, "norm": entry.norm}, place)
    with at(place, cls):
        check_attack(attack)
    if entry.norm not in attack.norms:
        allowed = ", ".join(attack.norms)
        raise InputError(f"{place}.norm: {entry.name!r} does not support {entry.norm!r}; give {allowed}")
    if attack.minimal and not entry.ladder:
        raise InputError(f"{place}.ladder: false is not allowed, since {entry.name!r} runs once for all sizes")
    shown = label(entry.name, non_default(cls, values) | ({} if entry.ladder else {"ladder": False}))
    return AttackChoice(
        entry.name,
        entry.label or shown,
        attack,
        _ladder(entry, place),
        ladder=entry.ladder,
        n=entry.n,
        resources=entry.resources,
        datasets=entry.datasets,
        defenses=entry.defenses,
        parameters=entry.parameters,
    )


def _with_at_most(passes: int | None, choice: AttackChoice) -> AttackChoice:
    """Return an attack of the matrix that has at most that many passes, unless its entry says how many."""
    own = choice.attack.max_passes
    return dataclasses.replace(choice, attack=dataclasses.replace(choice.attack, max_passes=own or passes))


def _measurement(entry: ConfinedEntry, place: str) -> MeasurementChoice:
    with at(place):
        cls: type[Measurement] = find("measurements", entry.name)
    values = _known(entry.parameters, {f.name for f in dataclasses.fields(cls)}, place, entry.name)
    shown = entry.label or label(entry.name, non_default(cls, values))
    measurement = validated(cls, values, place)
    with at(place, cls):
        check_measurement(measurement)
    confined = {"datasets": entry.datasets, "defenses": entry.defenses}
    return MeasurementChoice(entry.name, shown, measurement, resources=entry.resources, **confined)


def _ladder(entry: AttackEntry, place: str) -> tuple[float, ...]:
    if entry.norm in UNBOUNDED:
        if entry.eps is not None:
            raise InputError(f"{place}.eps: norm {entry.norm!r} has no perturbation size; leave it out")
        return (math.inf,)
    if entry.eps is None:
        raise InputError(f'{place}.eps: missing; give one size > 0 or a list, as in eps = 0.1 or eps = ["8/255"]')
    for index, eps in enumerate(entry.eps):
        check_size(f"{place}.eps[{index}]", entry.norm, eps)
    if len(set(entry.eps)) != len(entry.eps):
        raise InputError(f"{place}.eps: a size is given twice; give each once")
    return tuple(sorted(entry.eps))


def _in_numbers(parameters: Mapping[str, object], place: str) -> JsonObject:
    """Return the parameters of a system, with perturbation sizes as numbers in place of fractions."""
    found = dict(parameters)
    for name in PARAMETERS:
        if name in found:
            with at(f"{place}.{name}"):
                found[name] = in_numbers(found[name])
    return found


def _known(values: JsonObject, fields: Iterable[str], place: str, name: str, keys: Iterable[str] = ()) -> JsonObject:
    """Return the parameters of a system if it has all of them; raises InputError, with the nearest name.

    fields: names of its parameters. keys: other keys of its entry, which may be meant, too.
    """
    allowed = sorted(fields)
    for key in values:
        if key == "randomized" and key not in allowed:
            raise InputError(f"{place}.{key}: {name!r} has to say it itself, by an attribute `randomized = True`")
        if key not in allowed:
            listed = nearest(key, [*keys, *allowed], f"allowed: {', '.join(allowed)}")
            raise InputError(f"{place}.{unwrapped(key)}: {name!r} has no such parameter{listed}")
    return values
