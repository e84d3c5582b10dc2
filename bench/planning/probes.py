"""The attacks and measurements that the diagnosis adds to a matrix: small ones, under names of their own.

They are ordinary jobs with ordinary records, but no figure of the run is taken over labels with the prefix
`records.schema.PROBE`.
"""

from __future__ import annotations

import math

from manifold_bench.attacks.base import Attack
from manifold_bench.attacks.gradient import FGSM, PGD
from manifold_bench.attacks.noise import RandomNoise
from manifold_bench.attacks.threat import Norm
from manifold_bench.attacks.transfer import Transfer
from manifold_bench.bench.planning.matrix import AttackChoice, AttackEntry, Matrix, MeasurementChoice
from manifold_bench.bench.planning.reading import attack_choice
from manifold_bench.bench.planning.registry import find
from manifold_bench.bench.records.schema import PROBE
from manifold_bench.defenses.base import Defense
from manifold_bench.defenses.identity import JsonObject

N = 50
"""Inputs of a probe: the first ones of the clean pass."""


N_OPTIMISING = 20
"""The same where each answer is an optimisation of its own."""


STEPS = 40


MORE_STEPS, MORE_RESTARTS = 100, 5
"""Of the attack that looks whether more of them would gain anything."""


LARGE = (0.5, 1.0)
"""L∞ sizes at which nothing can be robust: every image can be grey, and every image can be any other."""


QUERIES = 100


PROBLEMS = 20
"""Problems of the planted test; fewer where each answer is an optimisation of its own."""


DEFAULT_EPS = (0.05, 0.1)
"""L∞ sizes for data sets on which the matrix names none below ½."""


def inputs(optimising: bool) -> int:
    """How many inputs a probe takes of such a defense."""
    return N_OPTIMISING if optimising else N


def steps(optimising: bool) -> int:
    """How many steps a probe's ascent takes on such a defense."""
    return STEPS // 2 if optimising else STEPS


def strengths(matrix: Matrix, dataset: str) -> tuple[Norm, tuple[float, ...]]:
    """In which norm and at which ε the probes of a data set work, the same for all its defenses.

    The smallest, middle and largest ε that the matrix' attacks have in L∞ (below ½: `LARGE` is beyond that), else in
    L2; at least two, so that a fall can be seen.
    """
    norms: tuple[Norm, ...] = ("linf", "l2")
    for norm in norms:
        attacks = [a for a in matrix.attacks if a.attack.norm == norm and (not a.datasets or dataset in a.datasets)]
        eps = sorted({e for choice in attacks for e in choice.eps if math.isfinite(e) and (norm == "l2" or e < 0.5)})
        if len(eps) == 1:
            return norm, (eps[0] / 2, eps[0])
        if eps:
            return norm, tuple(dict.fromkeys((eps[0], eps[(len(eps) - 1) // 2], eps[-1])))
    return "linf", DEFAULT_EPS


def middle(eps: tuple[float, ...]) -> float:
    """The ε of a probe that has only one."""
    return eps[len(eps) // 2]


def probes(
    matrix: Matrix, dataset: str, defense: Defense, no_source: str | None
) -> list[tuple[AttackChoice, str | None]]:
    """Return the probes of one defense on one data set, each with the reason why it is skipped, or None.

    no_source: why there is no undefended model of the data set to attack in the defense's place; None if there is one.
    """
    norm, ladder = strengths(matrix, dataset)
    optimising = defense.inference_steps > 0
    climbs, one = steps(optimising), (middle(ladder),)
    more_steps, more_restarts = (3 * climbs, 2) if optimising else (MORE_STEPS, MORE_RESTARTS)

    def probe(name: str, label: str, attack: Attack, eps: tuple[float, ...], ladder: bool = False) -> AttackChoice:
        return AttackChoice(name, PROBE + label, attack, eps, ladder=ladder, n=inputs(optimising))

    made = [
        probe("fgsm", "fgsm", FGSM(norm=norm), ladder),
        probe("pgd", "pgd", PGD(norm=norm, steps=climbs), ladder),
        probe("pgd", "more", PGD(norm=norm, steps=more_steps, restarts=more_restarts), one),
        probe("pgd", "large", PGD(norm="linf", steps=climbs), LARGE, ladder=True),
        probe("noise", "noise", RandomNoise(norm=norm, draws=1 if optimising else 10), one),
    ]
    entry = AttackEntry.model_validate({"name": "art:SquareAttack", "norm": norm, "eps": [1.0], "max_iter": QUERIES})
    query = probe("art:SquareAttack", "query", attack_choice(entry, "diagnosis").attack, one)
    transfer = probe("transfer", "transfer", Transfer(norm=norm, steps=STEPS), ladder)
    costly = f"each of its {QUERIES} queries would cost an optimisation" if optimising else None
    return [*((choice, None) for choice in made), (query, costly), (transfer, no_source)]


def inspections(matrix: Matrix, dataset: str, n: int) -> list[MeasurementChoice]:
    """Return the measurements that the diagnosis adds on a data set; n: number of images of its clean pass."""
    norm, ladder = strengths(matrix, dataset)
    common = {"n": min(n, N), "norm": norm, "eps": middle(ladder)}
    parameters: dict[str, JsonObject] = {
        "gradients": common,
        "progress": common | {"steps": STEPS},
        "repeats": common,
        "planted": common | {"n": min(n, PROBLEMS), "steps": STEPS},
    }
    return [
        MeasurementChoice(f"diagnosis.{name}", PROBE + name, find("inspections", name)(**values))
        for name, values in parameters.items()
    ]
