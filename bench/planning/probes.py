"""The attacks and measurements that the masking diagnosis adds to a matrix.

They are ordinary jobs with ordinary records, whose labels have the prefix `records.schema.PROBE`. No figure of the run
is computed from these records.
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
from manifold_bench.bench.records.schema import LARGE, PROBE
from manifold_bench.defenses.base import Defense
from manifold_bench.defenses.identity import JsonObject

N = 50
"""Number of inputs of a probe: the first ones of the clean pass."""

N_OPTIMISING = 20
"""The same number for a defense that optimises at inference."""

STEPS = 40


MORE_STEPS, MORE_RESTARTS = 100, 5
"""Numbers of steps and restarts of the probe that checks whether more of them make an attack stronger."""


QUERIES = 100

PROBLEMS = 20
"""Number of problems of the planted test."""

DEFAULT_EPS = (0.05, 0.1)
"""L∞ sizes for data sets for which the matrix has none below ½."""


def inputs(optimising: bool) -> int:
    """Return the number of test images that a probe of the diagnosis attacks; smaller for slow defenses.

    optimising: whether the defense optimises at inference.
    """
    return N_OPTIMISING if optimising else N


def steps(optimising: bool) -> int:
    """Return the number of steps of a probe's ascent. optimising: whether the defense optimises at inference."""
    return STEPS // 2 if optimising else STEPS


def strengths(matrix: Matrix, dataset: str) -> tuple[Norm, tuple[float, ...]]:
    """Return the norm and the ε of the probes on a data set, the same for all its defenses.

    These are the smallest, middle and largest ε of the matrix's attacks in L∞ (below ½, since `LARGE` is above), or
    else in L2; at least two, so that a difference can be seen.
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
    """Return the middle ε, for probes with only one."""
    return eps[len(eps) // 2]


def probes(
    matrix: Matrix, dataset: str, defense: Defense, no_source: str | None
) -> list[tuple[AttackChoice, str | None]]:
    """Return the probes of one defense on one data set, each with the reason why it is skipped, or None.

    no_source: reason why there is no undefended model for transfer attacks; None if there is one.
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
    costly = f"each of its {QUERIES} queries would need a full optimisation" if optimising else None
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
