"""Finds families of defenses for which a plan has no adaptive attack."""

from __future__ import annotations

from dataclasses import dataclass

from manifold_bench.attacks.base import Attack
from manifold_bench.bench.planning.plan import Plan
from manifold_bench.bench.records.schema import ATTACK

UNMARKED = ("none", "plain model", "not stated")
"""Families that need no attack made for them: no defense at all, models of users, and defenses that name no family."""


@dataclass(frozen=True)
class Undecided:
    """A family of defenses on a data set, with their labels, that meets no attack that is adapted to it."""

    dataset: str
    family: str
    defenses: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.dataset}: no attack of this matrix is made for {self.family} ({', '.join(self.defenses)}), so that "
            "its robust accuracy says little"
        )


def undecided(plan: Plan) -> list[Undecided]:
    """Return the families of the plan for which no attack is made that suits at least one of their defenses.

    Jobs that the command line leaves out count too, since their stored records are part of the report.
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
