"""Whether each family of defenses in a plan meets an attack that is made for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from manifold_bench.attacks.base import Attack
from manifold_bench.bench.records.schema import ATTACK

if TYPE_CHECKING:
    from manifold_bench.bench.planning.plan import Plan

UNMARKED = ("none", "other")
"""Families that no attack is made for: no defense at all, and defenses that name no family."""


@dataclass(frozen=True)
class Undecided:
    """A family of defenses on a data set, with their labels, that meets no attack that is adapted to it."""

    dataset: str
    family: str
    defenses: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.dataset}: no attack of this matrix is adapted to {self.family} ({', '.join(self.defenses)}): what "
            "the others leave says little of its robustness"
        )


def undecided(plan: Plan) -> list[Undecided]:
    """The families of the plan without an adapted attack that suits at least one of their defenses.

    Jobs that a command line left out count, since their stored records are part of the report.
    """
    defenses: dict[tuple[str, str], list[str]] = {}
    decided = set()
    for job in (*plan.jobs, *plan.other_jobs):
        place = job.dataset.name, job.defense.cls.family
        attack = job.attack if job.kind == ATTACK and not job.skip else None
        if isinstance(attack, Attack) and place[1] in attack.adapted_to:
            decided.add(place)
        if place[1] not in UNMARKED and job.defense.label not in defenses.setdefault(place, []):
            defenses[place].append(job.defense.label)
    return [Undecided(*place, tuple(labels)) for place, labels in defenses.items() if labels and place not in decided]
