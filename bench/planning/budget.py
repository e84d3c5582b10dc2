"""Make a matrix smaller so that it fits a budget of time: fewer images first, fewer iterations of attacks second.

No system is ever left out. An attack with fewer iterations is another attack: its label says so, and so does its
identity.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le

from manifold_bench.bench.errors import InputError
from manifold_bench.bench.planning.matrix import AttackChoice, Matrix
from manifold_bench.bench.planning.plan import Plan, make_plan
from manifold_bench.bench.planning.work import SHARES, shortened

ENOUGH = 20
"""Number of images below which iterations are cut first."""

LEAST = 5
"""Smallest number of images."""


@dataclass(frozen=True)
class Cut:
    """How a matrix is cut to fit a budget.

    n: largest number of images of each data set. share: share of the attacks' iterations, in (0, 1].
    """

    n: Annotated[int, Ge(1)]
    share: Annotated[float, Gt(0), Le(1)]


def cut_matrix(matrix: Matrix, cut: Cut, sizes: dict[str, int]) -> Matrix:
    """Return the matrix with fewer images and iterations. sizes: number of images of each data set before the cut.

    A matrix that limits the work of its jobs gets a lower limit instead of shorter attacks.
    """
    datasets = tuple(
        entry.model_copy(update={"n": min(sizes.get(entry.name, cut.n), cut.n)}) for entry in matrix.datasets
    )
    share, work = (cut.share, None) if matrix.work is None else (1.0, matrix.work * cut.share)
    attacks = tuple(_shortened(choice, cut.n, share) for choice in matrix.attacks)
    return dataclasses.replace(matrix, datasets=datasets, attacks=attacks, work=work)


def summary(plan: Plan, uncut: Plan, budget: str) -> str:
    """Return a sentence that says what was cut of a plan; attacks that run on no defense are left out.

    plan, uncut: the plan with and without the cut. budget: time as the user wrote it.
    """
    if plan is uncut:
        return f"Nothing had to be cut for a budget of {budget}."
    sizes, before = sizes_of(plan), sizes_of(uncut)
    fewer = [f"n = {n} of {before[name]} ({name})" for name, n in sizes.items() if n < before[name]]
    images = ", ".join(fewer) or "all images"
    old, running = {choice.label for choice in uncut.matrix.attacks}, {job.label for job in plan.jobs if not job.skip}
    shorter = [one.label for one in plan.matrix.attacks if one.label in running - old]
    if plan.matrix.work is not None:
        iterations = f"at most {plan.matrix.work:,.3g} billion operations for a job instead of {uncut.matrix.work:,.0f}"
    else:
        iterations = f"fewer iterations: {', '.join(dict.fromkeys(shorter))}" if shorter else "all iterations"
    return f"Within a budget of {budget}: {images}; {iterations}."


def _shortened(choice: AttackChoice, most: int, share: float) -> AttackChoice:
    """Return the attack on at most that many images, with a share of its iterations and a label that says which."""
    n = None if choice.n is None else min(choice.n, most)
    if share == 1:
        return dataclasses.replace(choice, n=n)
    attack, changes = shortened(choice.attack, share)
    cuts = ", ".join(f"{new} of {old} {name}" for name, (old, new) in changes.items())
    return dataclasses.replace(choice, n=n, attack=attack, label=f"{choice.label} [{cuts}]" if cuts else choice.label)


def choose(most: int, seconds: float, cost: Callable[[Cut], float]) -> tuple[Cut, float]:
    """Return the largest cut that takes at most `seconds`, and how many seconds it takes.

    most: number of images without a budget. cost: function that returns the seconds of a cut. The number of images
    falls to `ENOUGH` before iterations are cut, and then to `LEAST` with the fewest iterations. If even that takes
    longer, that smallest cut is returned.
    """
    for share in SHARES:
        least = min(most, ENOUGH if share != SHARES[-1] else LEAST)
        smallest = cost(Cut(least, share))
        if smallest <= seconds or share == SHARES[-1]:
            return _largest(most, least, share, seconds, cost)
    raise AssertionError("the last share always returns")


def _largest(most: int, least: int, share: float, seconds: float, cost: Callable[[Cut], float]) -> tuple[Cut, float]:
    """Return the cut with the most images that fits, found by bisection, and its seconds; `least` images if none do."""
    fits, beyond = least, most + 1
    found = cost(Cut(least, share))
    trial = most
    while fits < trial < beyond:
        taken = cost(Cut(trial, share))
        if taken <= seconds:
            fits, found = trial, taken
        else:
            beyond = trial
        trial = (fits + beyond) // 2
        if beyond - fits <= max(1, fits // 20):  # within 5 %
            break
    return Cut(fits, share), found


def sizes_of(plan: Plan) -> dict[str, int]:
    """Return the number of test images of each data set in a plan, by name."""
    return {data.dataset.name: len(data.indices) for data in plan.data}


def plan_within(
    plan: Plan, budget: str, seconds: float, cut: Cut | None, cost: Callable[[Plan], float]
) -> tuple[Plan, Cut]:
    """Return the plan that fits into a budget, and the cut that it was made with.

    budget: time as the user wrote it. seconds: the same in seconds. cut: an earlier cut to use again; None: choose one.
    cost: function that returns the seconds of a plan. Raises InputError if not even the smallest cut fits.
    """
    sizes = sizes_of(plan)

    def planned(cut: Cut) -> Plan:
        if cut.share == 1 and cut.n >= max(sizes.values()):
            return plan
        matrix, whole = (cut_matrix(one, cut, sizes) for one in (plan.matrix, plan.whole))
        return make_plan(matrix, dataclasses.replace(plan.options, n=None), whole)

    if cut is None:
        cut, taken = choose(max(sizes.values()), seconds, lambda one: cost(planned(one)))
        if taken > seconds:
            least = f"{math.ceil(taken)} s" if taken < 90 else f"{math.ceil(taken / 60)} min"
            raise InputError(
                f"--budget: {budget} is too short; this matrix takes at least about {least} (n = {cut.n}, a "
                f"{round(1 / cut.share)}th of the iterations); give that time or more"
            )
    found = planned(cut)
    said = summary(found, plan, budget)
    matrix, whole = (dataclasses.replace(one, budget=said) for one in (found.matrix, found.whole))
    return dataclasses.replace(found, matrix=matrix, whole=whole), cut
