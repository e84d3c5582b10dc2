"""Cut a matrix down to the systems that the command line names."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from manifold_bench.bench.planning.matrix import AttackChoice, DefenseChoice, Matrix


C = TypeVar("C", bound="DefenseChoice | AttackChoice")


def filtered(matrix: Matrix, given: argparse.Namespace) -> Matrix:
    """The matrix cut down to what --defense, --attack, --norm and --dataset name; unknown ones come from the registry.

    A label selects its entry, a name that is nobody's label every entry of that name; the attack "clean" is none. An
    attack that is not in the matrix takes the first norm of the matrix that it works in, with the ε there.
    """
    from manifold_bench.bench.planning.matrix import DatasetEntry
    from manifold_bench.bench.planning.reading import attack_by_name, defense_by_name
    from manifold_bench.bench.planning.registry import find, one_of
    from manifold_bench.bench.records.schema import CLEAN

    datasets, defenses, attacks = matrix.datasets, matrix.defenses, matrix.attacks
    if given.dataset:
        for name in given.dataset:
            find("datasets", name)
        known = {entry.name: entry for entry in datasets}
        datasets = tuple(known.get(name) or DatasetEntry(name=name, n=datasets[0].n) for name in unique(given.dataset))
    if given.defense:
        defenses = selected(defenses, given.defense, defense_by_name)
    if given.attack:
        named = [name for name in given.attack if name != CLEAN]
        attacks = selected(attacks, named, lambda name: attack_by_name(name, matrix.attacks))
    if given.norm:
        norms = dict.fromkeys(str(choice.attack.norm) for choice in attacks)
        for norm in given.norm:
            one_of("--norm", norm, list(norms))
        attacks = tuple(choice for choice in attacks if choice.attack.norm in given.norm)
    return dataclasses.replace(matrix, datasets=datasets, defenses=defenses, attacks=attacks)


def selected(choices: tuple[C, ...], names: Iterable[str], add: Callable[[str], C]) -> tuple[C, ...]:
    """The choices of those labels or else names, each once, in that order; `add` makes what is not there."""
    found: list[C] = []
    for name in names:
        there = (
            [choice for choice in (*found, *choices) if choice.label == name]
            or [choice for choice in (*found, *choices) if choice.name == name]
            or [add(name)]
        )
        found += [choice for choice in there if choice not in found]
    return tuple(found)


def unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
