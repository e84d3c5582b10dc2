"""Cuts a matrix down to the systems that the command line names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from manifold_bench.attacks.threat import UNBOUNDED
from manifold_bench.bench.errors import InputError, one_of
from manifold_bench.bench.planning.matrix import AttackChoice, DatasetEntry, DefenseChoice, Matrix
from manifold_bench.bench.planning.reading import attack_by_name, defense_by_name
from manifold_bench.bench.planning.registry import find
from manifold_bench.bench.planning.sizes import check_size
from manifold_bench.bench.records.schema import CLEAN

C = TypeVar("C", bound=DefenseChoice | AttackChoice)


def narrowed(
    matrix: Matrix,
    datasets: Sequence[str] = (),
    defenses: Sequence[str] = (),
    attacks: Sequence[str] = (),
    norms: Sequence[str] = (),
    eps: Sequence[float] = (),
) -> Matrix:
    """Return the matrix with the named systems alone; if none of a kind are named, all of that kind stay.

    A label matches its own entry; any other name matches all entries with that name. A system that is not in the matrix
    is added from the registry: a data set with as many images as the first one, and an attack in the first norm of the
    matrix that it supports, with the ε of that norm on each data set. An added defense meets also attacks that are
    confined to some defenses of the matrix. "clean" as the only attack means the clean passes alone. eps: perturbation
    sizes in place of the matrix's. Raises InputError for unknown names, and for sizes if the attacks have several
    norms.
    """
    for name in datasets:
        find("datasets", name)
    known = {entry.name: entry for entry in matrix.datasets}
    entries = [known.get(name) or DatasetEntry(name=name, n=matrix.datasets[0].n) for name in dict.fromkeys(datasets)]
    defended = matrix.defenses
    if defenses:
        defended = selected(defended, defenses, lambda name: [defense_by_name(name)])
    added = tuple(choice.label for choice in defended if choice not in matrix.defenses)
    attacking = tuple(_also_against(added, choice) for choice in matrix.attacks)
    if attacks:
        names = [name for name in attacks if name != CLEAN]
        attacking = selected(attacking, names, lambda name: attack_by_name(name, matrix))
    present = dict.fromkeys(str(choice.attack.norm) for choice in attacking)
    for norm in norms:
        one_of("--norm", norm, present)
    if norms:
        attacking = tuple(choice for choice in attacking if choice.attack.norm in norms)
    if eps:
        attacking = _with_sizes(tuple(sorted(set(eps))), attacking)
    return dataclasses.replace(matrix, datasets=tuple(entries) or matrix.datasets, defenses=defended, attacks=attacking)


def _with_sizes(eps: tuple[float, ...], attacks: tuple[AttackChoice, ...]) -> tuple[AttackChoice, ...]:
    """Return the attacks at these sizes; those in norms without a size stay as they are. Raises InputError."""
    norms = list(dict.fromkeys(str(one.attack.norm) for one in attacks if one.attack.norm not in UNBOUNDED))
    if len(norms) > 1:
        raise InputError(f"--eps: the attacks have several norms ({', '.join(norms)}); choose one of them with --norm")
    for norm in norms:
        for size in eps:
            check_size("--eps", norm, size)
    return tuple(one if one.attack.norm in UNBOUNDED else dataclasses.replace(one, eps=eps) for one in attacks)


def _also_against(labels: tuple[str, ...], choice: AttackChoice) -> AttackChoice:
    """Return the attack so that it runs on the defenses with these labels too."""
    if choice.defenses is None or not labels:
        return choice
    return dataclasses.replace(choice, defenses=(*choice.defenses, *labels))


def selected(choices: tuple[C, ...], names: Iterable[str], add: Callable[[str], list[C]]) -> tuple[C, ...]:
    """Return the choices whose label, or else whose name, is among those names, each once and in their order.

    add: function that makes the choices for a name that no choice has. One whose label another system has already, as
    files of the same name in two folders do, gets its whole name as its label.
    """
    found: list[C] = []
    for name in names:
        there = (
            [choice for choice in (*found, *choices) if choice.label == name]
            or [choice for choice in (*found, *choices) if choice.name == name]
            or [_told_apart(choice, (*found, *choices)) for choice in add(name)]
        )
        found += [choice for choice in there if choice not in found]
    return tuple(found)


def _told_apart(added: C, known: Iterable[C]) -> C:
    """Return an added choice, with its name as its label where another system has that label."""
    if any(one.label == added.label and one.name != added.name for one in known):
        return dataclasses.replace(added, label=added.name)
    return added
