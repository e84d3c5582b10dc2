"""Finds worst cases of a plan in which no attack is made for the family of the defense."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from manifold_bench.attacks.base import Attack
from manifold_bench.bench.metrics.robustness import FOOLING
from manifold_bench.bench.planning.jobs import Job
from manifold_bench.bench.records.schema import ATTACK
from manifold_bench.bench.text import eps_text, norm_text

UNMARKED = ("none", "plain model", "not stated")
"""Families that need no attack made for them: no defense at all, models of users, and defenses that name no family."""

Sizes = Mapping[str, tuple[float, ...]]
"""Norm → perturbation sizes, ascending."""


@dataclass(frozen=True)
class Undecided:
    """The defenses of a family on a data set with worst cases in which no attack is adapted to the family.

    defenses: their labels. sizes: label → norms and sizes of these worst cases; a defense that meets no adapted attack
    at all is left out there, since the whole of its robust accuracy is undecided.
    """

    dataset: str
    family: str
    defenses: tuple[str, ...]
    sizes: Mapping[str, Sizes] = field(default_factory=dict)

    def __str__(self) -> str:
        named = ", ".join(label + _sizes_text(self.sizes.get(label, {})) for label in self.defenses)
        return (
            f"{self.dataset}: no attack on {named} is made for their family ({self.family}), "
            "so that their robust accuracy there says little"
        )


def undecided(jobs: Iterable[Job]) -> list[Undecided]:
    """Return the defenses with worst cases in which no attack of these jobs is made for their family, by family.

    Defenses that meet no attack at all are among them. Attacks on noise do not count, since it has no robust accuracy.
    """
    decided: dict[tuple[str, str], dict[str, dict[tuple[str, float], bool]]] = {}
    for job in jobs:
        family, attack = job.defense.cls.family, job.attack
        if family not in UNMARKED:
            cells = decided.setdefault((job.dataset.name, family), {}).setdefault(job.defense.label, {})
            if job.kind == ATTACK and not job.skip and job.norm != FOOLING:
                adapted = isinstance(attack, Attack) and family in attack.adapted_to
                cells |= {(job.norm, eps): cells.get((job.norm, eps), False) or adapted for eps in job.eps}
    found = []
    for place, defenses in decided.items():
        left = {label: _left(cells) for label, cells in defenses.items() if not (cells and all(cells.values()))}
        partly = {label: sizes for label, sizes in left.items() if any(defenses[label].values())}
        if left:
            found.append(Undecided(*place, tuple(left), partly))
    return found


def _left(cells: Mapping[tuple[str, float], bool]) -> Sizes:
    """Return the norms and sizes that no adapted attack decides."""
    left: dict[str, tuple[float, ...]] = {}
    for norm, eps in sorted(cell for cell, is_decided in cells.items() if not is_decided):
        left[norm] = (*left.get(norm, ()), eps)
    return left


def _sizes_text(sizes: Sizes) -> str:
    """Return norms and sizes in parentheses: ` (L∞ ε = 0.1 0.2; L2 ε = 1)`; empty where there are none."""
    texts = [f"{norm_text(norm)} ε = {' '.join(map(eps_text, of_norm))}" for norm, of_norm in sizes.items()]
    return f" ({'; '.join(texts)})" if texts else ""
