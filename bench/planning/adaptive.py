"""Finds defenses for which a plan has no attack that is made for their family."""

from __future__ import annotations

from dataclasses import dataclass

from manifold_bench.attacks.base import Attack
from manifold_bench.bench.planning.plan import Plan
from manifold_bench.bench.records.schema import ATTACK

UNMARKED = ("none", "plain model", "not stated")
"""Families that need no attack made for them: no defense at all, models of users, and defenses that name no family."""


@dataclass(frozen=True)
class Undecided:
    """Labels of the defenses of a family on a data set that meet no attack that is adapted to the family."""

    dataset: str
    family: str
    defenses: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.dataset}: no attack on {', '.join(self.defenses)} is made for their family ({self.family}), "
            "so that their robust accuracy says little"
        )


def undecided(plan: Plan) -> list[Undecided]:
    """Return the defenses of the plan that meet no attack made for their family, by family.

    Jobs that the command line leaves out count too, since their stored records are part of the report.
    """
    decided: dict[tuple[str, str], dict[str, bool]] = {}
    for job in (*plan.jobs, *plan.other_jobs):
        family, attack = job.defense.cls.family, job.attack if job.kind == ATTACK and not job.skip else None
        if family not in UNMARKED:
            labels = decided.setdefault((job.dataset.name, family), {})
            adapted = isinstance(attack, Attack) and family in attack.adapted_to
            labels[job.defense.label] = labels.get(job.defense.label, False) or adapted
    left = {place: tuple(label for label, met in labels.items() if not met) for place, labels in decided.items()}
    return [Undecided(*place, labels) for place, labels in left.items() if labels]
